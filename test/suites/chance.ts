// Owns chance that can be drawn again: a seed, told when a test fails.
import { randomOf } from '@custody/testkit/random';
import { randomInt } from 'node:crypto';
import { onTestFailed } from 'vitest';

export interface Chance {
  readonly seed: number;
  /** A whole number from 0 to below `end`. */
  readonly below: (end: number) => number;
}

/** Inside a test. A seed is given to draw the same again. */
export function chance(seed = randomInt(2 ** 32)): Chance {
  onTestFailed(() => void process.stderr.write(`the seed was ${seed}\n`));
  const next = randomOf(seed);
  return { seed, below: (end) => Math.floor(next() * end) };
}
