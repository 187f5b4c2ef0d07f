// Owns the bench of a whole constellation's start: from nothing, and again over what is there.
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startConstellation } from '@custody/constellation/constellation';
import { spreadOf, type Results } from './results.ts';

const rounds = 5;
const hosts = 2;

export async function up(): Promise<Results> {
  const samples = { cold: [] as number[], warm: [] as number[] };
  for (let round = 0; round < rounds; round += 1) {
    const dir = mkdtempSync(join(tmpdir(), 'custody-bench-'));
    chmodSync(dir, 0o711);
    try {
      for (const kind of ['cold', 'warm'] as const) {
        const from = performance.now();
        await using _constellation = await startConstellation({
          dataDir: join(dir, 'data'),
          hosts,
          environment: process.env,
          now: () => new Date(),
        });
        samples[kind].push(performance.now() - from);
      }
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }
  const spreads = { cold: spreadOf(samples.cold), warm: spreadOf(samples.warm) };
  for (const [kind, { medianMs, p10Ms, p90Ms }] of Object.entries(spreads)) {
    console.log(
      `${kind}: median ${(medianMs / 1_000).toFixed(2)} s   (${(p10Ms / 1_000).toFixed(2)} to ${(p90Ms / 1_000).toFixed(2)})`,
    );
  }
  return {
    command: 'npm run bench -- up',
    method: `until ${hosts} hosts can be granted credentials; ${rounds} rounds of one start from nothing and one over its data; medians`,
    figures: { spreads },
  };
}
