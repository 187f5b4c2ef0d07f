// Owns what tests take from the environment of whoever runs them: where programs are found, and the seed of chance.

export const searchPath = process.env['PATH'] ?? '/usr/bin:/bin';

/** Another each time; the tests that use it name it, and `CUSTODY_TEST_SEED` brings it back. */
export const testSeed = Number(process.env['CUSTODY_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
