// Holds the proof in virtual time: whatever befalls a fleet, nothing is alive beyond its revocation and the bound of its policy.
import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { plants } from './simulation/plants.ts';
import type { Meetings } from './simulation/meetings.ts';
import type { Findings } from './simulation/world.ts';

const program = join(import.meta.dirname, 'simulation', 'main.ts');
const msMax = 240_000;
/** The full size, a thousand hosts, is `npm run bench -- simulation`. */
const hosts = 20;
/** A planted fault may hide for a day and ten thousand meetings, but not for so many. */
const seeds = [2, 1, 3, 4, 5, 6];

async function simulate<Result = Findings>(...flags: string[]): Promise<Result> {
  const child = spawn(process.execPath, ['--conditions=custody-source', program, ...flags], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [out, wrong] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => (out += chunk));
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (wrong += chunk));
  await new Promise((resolve) => child.once('close', resolve));
  if (out === '') throw new Error(wrong);
  return JSON.parse(out) as Result;
}

const day = (seed: number): string[] => ['--seed', String(seed), '--hosts', String(hosts), '--hours', '24'];

const met = (seed: number): string[] => ['--seed', String(seed), '--meetings', '10000'];

/** The first alone, with its story: it is often the cause of the others. */
function nothingViolated(seed: number, [first]: Findings['violations']): void {
  if (first !== undefined) throw new Error(`with seed ${seed}: ${JSON.stringify(first, null, 2)}`);
}

describe('a fleet in virtual time', () => {
  it(
    'has nothing alive beyond revocation and bound, nor after a receipt',
    async () => {
      const seed = randomInt(2 ** 40);
      const { violations, counts } = await simulate(...day(seed));
      nothingViolated(seed, violations);
      // A fleet that nothing befalls, or that runs nothing, would prove nothing.
      for (const what of [
        'trees',
        'dead within a second',
        'dead within the bound',
        'receipts: killed',
        'partitions',
        'disorders',
        'held back',
        'replays and forgeries',
        'agents killed',
        'agents stopped',
        'agents died at a step of a revocation',
      ]) {
        expect(counts[what] ?? 0, `${what}, with seed ${seed}`).toBeGreaterThan(10);
      }
    },
    msMax,
  );

  it(
    'leaves nothing alive after a receipt, and starts nothing, in 10,000 meetings of grant and revocation of one secret',
    async () => {
      const seed = randomInt(2 ** 40);
      const { violations, meetings, orders, counts } = await simulate<Meetings>(...met(seed));
      nothingViolated(seed, violations);
      expect(meetings).toBe(10_000);
      // One order after another would prove nothing either.
      expect(orders, `orders, with seed ${seed}`).toBeGreaterThan(200);
      expect(counts['receipt killed'] ?? 0).toBeGreaterThan(1_000);
    },
    msMax,
  );

  it(
    'has one story for one seed',
    async () => {
      const flags = ['--seed', '11', '--hosts', '4', '--hours', '6'];
      const [one, other] = [await simulate(...flags), await simulate(...flags)];
      expect({ ...one, seconds: 0 }).toEqual({ ...other, seconds: 0 });
    },
    msMax,
  );

  it.each(Object.keys(plants))(
    'finds a planted fault: %s',
    async (name) => {
      let found = 0;
      for (const seed of seeds) {
        for (const size of [day(seed), met(seed)]) {
          if (found > 0) break;
          found = (await simulate(...size, '--plant', name, '--until-found')).violations.length;
        }
      }
      expect(found, `violations with seeds ${seeds.join(', ')}`).toBeGreaterThan(0);
    },
    msMax,
  );
});
