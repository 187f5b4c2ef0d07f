// Owns the form of a bench's results: the machine, the figures, and the file they are kept in.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, platform, release, totalmem } from 'node:os';
import { join, relative } from 'node:path';

const root = join(import.meta.dirname, '..', '..');

export type Bench = () => Promise<Results>;

export interface Results {
  readonly command: string;
  readonly method: string;
  readonly figures: Readonly<Record<string, unknown>>;
}

export interface Spread {
  readonly medianMs: number;
  readonly p10Ms: number;
  readonly p90Ms: number;
  readonly runs: number;
}

export function spreadOf(samplesMs: readonly number[]): Spread {
  const sorted = samplesMs.toSorted((a, b) => a - b);
  const at = (share: number): number =>
    round(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0);
  return { medianMs: at(0.5), p10Ms: at(0.1), p90Ms: at(0.9), runs: sorted.length };
}

export interface Percentiles {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  readonly samples: number;
}

/** Nearest rank: with fewer than 100 samples the 99th percentile is the greatest of them. */
export function percentilesOf(samplesMs: readonly number[]): Percentiles {
  const sorted = samplesMs.toSorted((a, b) => a - b);
  const at = (share: number): number =>
    round(sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN);
  return { p50Ms: at(0.5), p99Ms: at(0.99), maxMs: at(1), samples: sorted.length };
}

export function round(value: number): number {
  return Math.round(value * 1_000) / 1_000;
}

/** One line on the terminal that counts. */
export function progress(what: string, done: number, of: number): void {
  if (done % 20 === 0 || done === of)
    process.stdout.write(`\r${what} ${done} of ${of}${done === of ? '\n' : ''}`);
}

export function writeResults(name: string, results: Results): string {
  const dir = join(import.meta.dirname, 'results');
  mkdirSync(dir, { recursive: true });
  const file = join(dir, `${name}.json`);
  const [cpu] = cpus();
  const machine = {
    system: `${platform()} ${release().split('-')[0]}`,
    processor: cpu?.model ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.versions.node,
    commit: execFileSync('git', ['-C', root, 'rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim(),
  };
  writeFileSync(
    file,
    `${JSON.stringify({ name, at: new Date().toISOString(), machine, ...results }, null, 2)}\n`,
  );
  return relative(root, file);
}
