// Owns the bench of `custody run -- true` beside what people use today: whole processes, start to exit, interleaved.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { groundWith } from './ground.ts';
import { round, spreadOf, type Results, type Spread } from './results.ts';

const root = join(import.meta.dirname, '..', '..');
const peers = join(root, '.cache', 'bench-peers');
const clock = join(peers, 'clock');
const roundsWarm = 5;
const rounds = 60;
/** dotenvx is slow enough for fewer. */
const roundsSlow = 20;

interface Contender {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly rounds: number;
}

export async function run(): Promise<Results> {
  buildClock();
  await using ground = await groundWith(1);
  const { constellation, dir } = ground;
  const env = { ...process.env, CUSTODY_SOCKET: constellation.hosts[0]?.socket ?? '' };
  writeFileSync(join(dir, '.env'), 'KEY=a-value-to-hold\n');
  const contenders = contendersIn(dir);
  const samples = new Map(contenders.map(({ name }) => [name, [] as number[]]));
  for (let each = -roundsWarm; each < rounds; each += 1) {
    for (const contender of contenders) {
      if (each >= contender.rounds) continue;
      const ms = once(contender, dir, env);
      if (each >= 0) samples.get(contender.name)?.push(ms);
    }
    process.stdout.write(`\rround ${Math.max(each + 1, 0)} of ${rounds}`);
  }
  const spreads = Object.fromEntries([...samples].map(([name, ms]) => [name, spreadOf(ms)]));
  const memory = await memoryOf(constellation.part('host-a').pid, env);
  return report(spreads, memory);
}

function contendersIn(dir: string): Contender[] {
  const custody = join(root, 'apps', 'cli', 'bin', 'custody');
  const credential = ['--env', 'KEY=custody://prod/bench/key'];
  const bin = (name: string): string => join(peers, 'node_modules', '.bin', name);
  const tini = [
    join(peers, 'bin', 'tini'),
    ...(process.env['PATH'] ?? '').split(delimiter).map((each) => join(each, 'tini')),
  ];
  const found = tini.find((path) => existsSync(path));
  return [
    { name: 'true', command: 'true', args: [], rounds },
    ...(found === undefined
      ? []
      : [{ name: 'tini -s -- true', command: found, args: ['-s', '--', 'true'], rounds }]),
    { name: 'custody run -- true', command: custody, args: ['run', ...credential, '--', 'true'], rounds },
    { name: 'dotenv -- true', command: bin('dotenv'), args: ['-e', join(dir, '.env'), '--', 'true'], rounds },
    {
      name: 'dotenvx run -- true',
      command: bin('dotenvx'),
      args: ['run', '--quiet', '-f', join(dir, '.env'), '--', 'true'],
      rounds: roundsSlow,
    },
  ];
}

/** Milliseconds from vfork to the end, by a clock that weighs nothing: a large caller pays for its own size at each fork. */
function once({ name, command, args }: Contender, cwd: string, env: NodeJS.ProcessEnv): number {
  const stdio = ['ignore', 'ignore', 'pipe', 'pipe'] as const;
  const { status, error, output } = spawnSync(clock, [command, ...args], { cwd, env, stdio: [...stdio] });
  const [, , stderr, ns] = output ?? [];
  if (status === 0) return Number(ns?.toString()) / 1e6;
  throw new Error(`${name} ended with ${status}: ${error?.message ?? stderr?.toString()}`);
}

function buildClock(): void {
  execFileSync(process.env['CC'] ?? 'cc', ['-O2', '-o', clock, join(import.meta.dirname, 'clock.c')]);
}

/** Proportional set size: a page shared by n processes counts 1/n in each. Linux only. */
async function memoryOf(
  agentPid: number,
  env: NodeJS.ProcessEnv,
): Promise<{ agentKiB: number; keeperKiB: number }> {
  const keeper = spawn(
    join(root, 'apps', 'cli', 'bin', 'custody'),
    ['run', '--env', 'KEY=custody://prod/bench/key', '--', 'sh', '-c', 'echo up; read _'],
    {
      env,
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  await new Promise((resolve) => keeper.stdout.once('data', resolve));
  const memory = { agentKiB: pssKiB(agentPid), keeperKiB: pssKiB(keeper.pid ?? 0) };
  const exited = new Promise((resolve) => keeper.once('exit', resolve));
  keeper.stdin.end('\n');
  await exited;
  return memory;
}

function pssKiB(pid: number): number {
  return Number(/^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1]);
}

function report(spreads: Record<string, Spread>, memory: { agentKiB: number; keeperKiB: number }): Results {
  const ours = spreads['custody run -- true']?.medianMs ?? Number.NaN;
  const ratios = Object.fromEntries(
    Object.entries(spreads).map(([name, { medianMs }]) => [`${name} / custody run`, round(medianMs / ours)]),
  );
  console.log('\n');
  for (const [name, { medianMs, p10Ms, p90Ms }] of Object.entries(spreads)) {
    console.log(
      `${name.padEnd(22)} median ${medianMs.toFixed(2)} ms   (p10 ${p10Ms.toFixed(2)}, p90 ${p90Ms.toFixed(2)})   ${round(medianMs / ours)}× custody run`,
    );
  }
  console.log(
    `memory (PSS): agent ${(memory.agentKiB / 1_024).toFixed(1)} MiB, one keeper ${memory.keeperKiB} KiB`,
  );
  return {
    command: 'npm run bench -- run',
    method: `whole processes from start to exit, one credential, warm agent; interleaved, ${rounds} counted rounds (dotenvx ${roundsSlow}) after ${roundsWarm} warm ones; medians`,
    figures: { spreads, ratios, memory },
  };
}
