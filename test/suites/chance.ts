// Owns chance that can be drawn again: a seed, told when a test fails.
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
  // mulberry32: https://gist.github.com/tommyettinger/46a874533244883189143505d203312c
  let state = seed;
  const next = (): number => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return { seed, below: (end) => Math.floor(next() * end) };
}
