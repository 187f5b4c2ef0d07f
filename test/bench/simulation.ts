// Owns the simulation at its full size: a thousand hosts for a day, in as many processes as there are cores.
import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { round, type Results } from './results.ts';

const hosts = 1_000;
const hours = 24;
const program = join(import.meta.dirname, '..', '..', 'apps', 'agent', 'test', 'simulation', 'main.ts');

interface Findings {
  readonly seed: number;
  readonly hosts: number;
  readonly events: number;
  readonly counts: Readonly<Record<string, number>>;
  readonly violations: readonly unknown[];
  readonly seconds: number;
}

/** Each process simulates a fleet of its own, with a control plane of its own. */
export async function simulation(): Promise<Results> {
  const processes = cpus().length;
  const seed = randomInt(2 ** 40);
  console.log(`seeds ${Array.from({ length: processes }, (_, index) => seed + index).join(', ')}`);
  const from = performance.now();
  const found = await Promise.all(
    Array.from({ length: processes }, (_, index) => {
      const share = Math.floor(((index + 1) * hosts) / processes) - Math.floor((index * hosts) / processes);
      return simulate(seed + index, share);
    }),
  );
  const counts: Record<string, number> = {};
  for (const [what, count] of found.flatMap((each) => Object.entries(each.counts))) {
    counts[what] = (counts[what] ?? 0) + count;
  }
  const violations = found.flatMap((each) => each.violations);
  const figures = {
    hosts,
    hours,
    fleets: found.map((each) => ({ seed: each.seed, hosts: each.hosts, events: each.events })),
    seconds: round((performance.now() - from) / 1_000),
    counts,
    violations,
  };
  console.log(figures);
  if (violations.length > 0) process.exitCode = 1;
  return {
    command: 'npm run bench -- simulation',
    method:
      `${hosts} hosts for ${hours} virtual hours in ${processes} fleets; the agent's own Link and Runs, on simulated timers, ` +
      'bus, disks, keepers and a control plane; signatures are replaced by a table',
    figures,
  };
}

async function simulate(seed: number, share: number): Promise<Findings> {
  const args = ['--conditions=custody-source', program];
  const flags = ['--seed', String(seed), '--hosts', String(share), '--hours', String(hours)];
  const child = spawn(process.execPath, [...args, ...flags], { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
  await new Promise((resolve) => child.once('close', resolve));
  if (text === '') throw new Error(`the simulation of seed ${seed} said nothing`);
  return JSON.parse(text) as Findings;
}
