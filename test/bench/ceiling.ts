// Owns the bench of ceilings: how long after ceiling and grace the last process of a tree is dead, whatever is stopped,
// busy or moved meanwhile. A real constellation; each tree has a root that obeys TERM and a deaf daemon out of its session.
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Constellation } from '@custody/constellation/constellation';
import { graceMsDefault } from '@custody/core/limits';
import { randomOf } from '@custody/testkit/random';
import { call } from '@custody/wire/client';
import { hostKinds } from '@custody/wire/ledger';
import { groundWith } from './ground.ts';
import { round, type Results } from './results.ts';

const root = join(import.meta.dirname, '..', '..');
const tools = join(root, '.cache', 'bench-peers', 'ceiling');
const seedDefault = 20_261_122;
const batchRuns = 10;
const [ttlMsLeast, ttlMsSpread] = [1_200, 1_000];
/** Short: ceiling and end of grace fall into the two halves of one move of the wall clock. */
const ttlMsMoved = 600;
const moveMs = 2_900;
const batchMsMax = 60_000;

const conditions = {
  plain: 'nothing happens',
  load: 'twice as many busy loops as cores',
  agentStopped: 'the agent has SIGSTOP from before the first ceiling until the last process is dead',
  keeperStopped: 'the keeper has SIGSTOP once',
  keeperHeld: 'the keeper has SIGSTOP every 0.2 ms: the agent ends the tree',
  clockMoved:
    'the wall clock goes an hour ahead before the ceiling, and an hour back behind before the grace is over',
} as const;
type Condition = keyof typeof conditions;

/** Batches of each, 200 runs in all. */
const batches: Readonly<Record<Condition, number>> = {
  plain: 4,
  load: 5,
  agentStopped: 4,
  keeperStopped: 4,
  keeperHeld: 2,
  clockMoved: 1,
};

interface Tree {
  readonly run: ChildProcess;
  readonly exit: Promise<unknown>;
  readonly grantId: string;
  readonly root: number;
  readonly daemon: number;
}

interface Lag {
  /** Of the root, after the ceiling. Nobody tells it to end before the grace is over where the keeper is held. */
  readonly ceilingMs: number | undefined;
  /** Of the daemon, after ceiling and grace. */
  readonly graceMs: number;
}

/** `npm run bench -- ceiling [move-clock] [SEED]`. Without `move-clock` the machine's wall clock stays alone. */
export async function ceiling(): Promise<Results> {
  const words = process.argv.slice(3);
  const moves = words.includes('move-clock');
  const seed = Number(words.find((word) => /^\d+$/.test(word)) ?? seedDefault);
  execFileSync(process.env['CC'] ?? 'cc', ['-O2', '-o', tools, join(import.meta.dirname, 'ceiling.c')]);
  const plan = planOf(seed, moves);
  await using ground = await groundWith(1);
  const { constellation, client } = ground;
  const lags = new Map<Condition, Lag[]>();
  for (const [index, { condition, ttlsMs }] of plan.entries()) {
    const found = await batch(constellation, condition, ttlsMs);
    lags.set(condition, [...(lags.get(condition) ?? []), ...found]);
    process.stdout.write(`\rbatch ${index + 1} of ${plan.length}`);
  }
  const { grants } = await call(client, 'grant.list', {});
  return report(seed, lags, grants[0]?.containment ?? 'unknown');
}

function planOf(seed: number, moves: boolean): { condition: Condition; ttlsMs: number[] }[] {
  const random = randomOf(seed);
  return (Object.keys(batches) as Condition[])
    .filter((condition) => moves || condition !== 'clockMoved')
    .flatMap((condition) => Array.from({ length: batches[condition] }, () => condition))
    .map((condition) => ({ condition, at: random() }))
    .toSorted((a, b) => a.at - b.at)
    .map(({ condition }) => ({
      condition,
      ttlsMs: Array.from({ length: batchRuns }, () =>
        condition === 'clockMoved' ? ttlMsMoved : Math.round(ttlMsLeast + random() * ttlMsSpread),
      ),
    }));
}

async function batch(
  constellation: Constellation,
  condition: Condition,
  ttlsMs: readonly number[],
): Promise<Lag[]> {
  const watcher = spawn(tools, ['watch'], { stdio: ['pipe', 'pipe', 'inherit'] });
  const deaths = new Map<number, number>();
  createInterface({ input: watcher.stdout }).on('line', (line) => {
    const [pid = 0, bootUs = 0] = line.split(' ').map(Number);
    deaths.set(pid, bootUs / 1_000);
  });
  const watched = once(watcher, 'exit');
  const busy: ChildProcess[] = [];
  try {
    const trees = await Promise.all(ttlsMs.map((ttlMs) => start(constellation, ttlMs)));
    if (condition === 'load') busy.push(...busyLoops());
    watcher.stdin.end(trees.flatMap((tree) => [`${tree.root}\n`, `${tree.daemon}\n`]).join(''));
    const keepers = trees.map(({ run }) => run.pid ?? 0);
    const agent = constellation.part('host-a').pid;
    if (condition === 'agentStopped') process.kill(agent, 'SIGSTOP');
    if (condition === 'keeperStopped') for (const keeper of keepers) process.kill(keeper, 'SIGSTOP');
    const helper =
      condition === 'keeperHeld'
        ? spawn(tools, ['hold', ...keepers.map(String)], { stdio: 'inherit' })
        : condition === 'clockMoved'
          ? spawn(tools, ['move', String(moveMs)], { stdio: ['ignore', 'pipe', 'inherit'] })
          : undefined;
    const helped = helper === undefined ? undefined : once(helper, 'exit');
    try {
      await within(watched, batchMsMax, `the last process of a batch (${condition}) dead`);
    } finally {
      if (condition === 'agentStopped') process.kill(agent, 'SIGCONT');
      const [code] = (await helped) ?? [0];
      if (code !== 0) console.error(`\n${condition}: the helper failed`);
    }
    await Promise.all(trees.map(({ exit }) => exit));
    const ceilings = ceilingsOf(constellation);
    return trees.map((tree) => {
      const ceilingMs = ceilings.get(tree.grantId) ?? Number.NaN;
      const ofRoot = (deaths.get(tree.root) ?? Number.NaN) - ceilingMs;
      return {
        ceilingMs: condition === 'keeperHeld' ? undefined : ofRoot,
        graceMs: (deaths.get(tree.daemon) ?? Number.NaN) - ceilingMs - graceMsDefault,
      };
    });
  } finally {
    for (const loop of busy) loop.kill('SIGKILL');
    watcher.kill('SIGKILL');
  }
}

function busyLoops(): ChildProcess[] {
  return Array.from({ length: availableParallelism() * 2 }, () =>
    // Whatever becomes of this bench, the kernel ends them after so many seconds of processor time.
    spawn('sh', ['-c', `ulimit -t ${batchMsMax / 1_000}; while :; do :; done`], { stdio: 'ignore' }),
  );
}

async function start(constellation: Constellation, ttlMs: number): Promise<Tree> {
  const deaf = `((trap '' TERM HUP; exec setsid env -i sleep 900 >/dev/null) & echo "$CUSTODY_GRANT $$ $!")`;
  const run = spawn(
    join(root, 'apps', 'cli', 'bin', 'custody'),
    [
      ...['run', '--ttl', `${ttlMs}ms`, '--env', 'KEY=custody://prod/bench/key', '--'],
      ...['sh', '-c', `${deaf}; exec sleep 900`],
    ],
    {
      env: { ...process.env, CUSTODY_SOCKET: constellation.hosts[0]?.socket ?? '' },
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  const exit = once(run, 'exit');
  const line = await new Promise<string>((resolve, reject) => {
    createInterface({ input: run.stdout }).once('line', resolve);
    exit.then(([code]) => reject(new Error(`a run ended before it was up, with ${String(code)}`)), reject);
  });
  const [grantId = '', of = '', daemon = ''] = line.split(' ');
  return { run, exit, grantId, root: Number(of), daemon: Number(daemon) };
}

/** By the host's own ledger: what it put on record before it released anything. */
function ceilingsOf({ layout }: Constellation): Map<string, number> {
  const dir = join(layout.hostDir('host-a'), 'ledger');
  const lines = fs
    .readdirSync(dir)
    .filter((name) => name.endsWith('.ledger'))
    .flatMap((name) => fs.readFileSync(join(dir, name), 'utf8').split('\n'));
  return new Map(
    lines.flatMap((line) => {
      if (!line.includes('"kind":"released"')) return [];
      const { body } = JSON.parse(line.slice(0, line.lastIndexOf('}') + 1)) as { body: unknown };
      const { grantId, ceilingBootMs } = hostKinds.released.parse(body);
      return [[grantId, ceilingBootMs] as const];
    }),
  );
}

async function within<Value>(promise: Promise<Value>, ms: number, what: string): Promise<Value> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`${what}: not so after ${ms} ms`)), ms);
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function distribution(values: readonly number[]): Record<string, number> {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number): number => round(sorted[Math.ceil(share * sorted.length) - 1] ?? Number.NaN);
  return {
    runs: sorted.length,
    minMs: round(sorted[0] ?? Number.NaN),
    p50Ms: at(0.5),
    p99Ms: at(0.99),
    maxMs: at(1),
  };
}

function report(seed: number, lags: ReadonlyMap<Condition, readonly Lag[]>, containment: string): Results {
  const both = (found: readonly Lag[]) => {
    const roots = found.flatMap(({ ceilingMs }) => ceilingMs ?? []);
    return {
      ...(roots.length === 0 ? {} : { afterCeiling: distribution(roots) }),
      afterGrace: distribution(found.map(({ graceMs }) => graceMs)),
    };
  };
  const each = Object.fromEntries(
    [...lags].map(([condition, found]) => [condition, { what: conditions[condition], ...both(found) }]),
  );
  const all = both([...lags.values()].flat());
  console.log('\n');
  for (const [name, figures] of [...Object.entries(each), ['all', all] as const]) console.log(name, figures);
  return {
    command: `npm run bench -- ceiling${lags.has('clockMoved') ? ' move-clock' : ''} ${seed}`,
    method:
      `runs in batches of ${batchRuns} at once, their ceilings from ${ttlMsLeast} ms up spread over ${ttlMsSpread} ms, conditions ` +
      'mixed by a seeded plan; afterCeiling: the root, which obeys TERM; afterGrace: a daemon that ignores it, less the grace of ' +
      `${graceMsDefault} ms; the ceiling as the host's ledger has it, death as a pidfd tells it to another process, whose own wake-up counts`,
    figures: { containment, all, each },
  };
}
