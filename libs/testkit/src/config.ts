// Owns what tests take from the environment of whoever runs them: where programs are found, and nothing else.

export const searchPath = process.env['PATH'] ?? '/usr/bin:/bin';
