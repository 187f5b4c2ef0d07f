// Owns the bench of the keeper alone: its start beside tini, how fast a tree is empty beside tree-kill and cgroup.kill,
// what it costs work that forks, and its memory. The agent is the least there can be: it grants at once.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { encodeFrame, FrameReader, number, type Frame } from '@custody/keeper/frames';
import { bootTimeMs, keeperPath } from '@custody/keeper/native';
import { round, spreadOf, type Results } from './results.ts';

const root = join(import.meta.dirname, '..', '..');
const peers = join(root, '.cache', 'bench-peers');
const built = (name: string): string => join(keeperPath(), '..', name);

const startRounds = 600;
const treeRounds = 12;
const groupRounds = 100;
const forkRounds = 11;
const forks = 10_000;
const keepers = 16;

/** A third each: children, daemons that double-forked out of the session and dropped the marker, and the deaf. */
const mixedTree = `
  i=0; while [ $i -lt 100 ]; do
    sleep 900 &
    (setsid env -i sleep 900 &)
    (trap '' TERM INT HUP; exec sleep 900) &
    i=$((i+1))
  done; echo up; wait`;
const plainTree = 'i=0; while [ $i -lt 99 ]; do sleep 900 & i=$((i+1)); done; echo up; wait';

export async function keeper(): Promise<Results> {
  const dir = fs.mkdtempSync(join(tmpdir(), 'custody-bench-keeper-'));
  try {
    const start = await startTimes(dir);
    const forking = await forkTimes(dir);
    const memory = await keeperMemory(dir);
    const trees = await treeTimes(dir);
    const groups = await groupTimes(dir);
    return {
      command: 'npm run bench -- keeper',
      method:
        `start: ${startRounds} rounds, whole processes from posix_spawn to waitpid by a C clock, agent in C that grants at once; ` +
        `trees: ${treeRounds} rounds, from the word to kill until the keeper finds the tree empty, or tree-kill calls back; ` +
        `groups: ${groupRounds} rounds of 100 processes, cgroup.kill until cgroup.events says that nothing is left; ` +
        `forks: ${forkRounds} rounds of ${forks} subshells; all interleaved`,
      figures: { start, trees, groups, forking, memory },
    };
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
}

// Start, forks and memory: whole processes under the least agent.

async function underLeastAgent<Made>(
  dir: string,
  work: (env: NodeJS.ProcessEnv) => Promise<Made>,
): Promise<Made> {
  const socket = join(dir, `least-${fs.readdirSync(dir).length}.sock`);
  const agent = spawn(built('agent-least'), [socket, '600000', '2000'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => agent.stdout.once('data', resolve));
  try {
    return await work({ ...process.env, CUSTODY_SOCKET: socket });
  } finally {
    agent.kill();
  }
}

/** Microseconds of each command, in rounds. */
function clocked(
  rounds: number,
  commands: readonly (readonly string[])[],
  env: NodeJS.ProcessEnv,
): number[][] {
  const args = commands.flatMap((command, index) => (index === 0 ? command : ['---', ...command]));
  const { status, stdout, stderr } = spawnSync(built('spawn-times'), [String(rounds), ...args], {
    env,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  if (status !== 0) throw new Error(`spawn-times: ${stderr}`);
  const times: number[][] = commands.map(() => []);
  for (const line of stdout.trim().split('\n')) {
    const [index, ns] = line.split(' ').map(Number);
    times[index ?? 0]?.push((ns ?? Number.NaN) / 1_000);
  }
  return times;
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
/** Of the rounds, each with itself: what slows one down slows its neighbour down too. */
const ratioOf = (ours: readonly number[], theirs: readonly number[]): number =>
  round(median(ours.map((each, index) => each / (theirs[index] ?? Number.NaN))));

async function startTimes(dir: string): Promise<Record<string, unknown>> {
  const places = [join(peers, 'bin'), ...(process.env['PATH'] ?? '').split(delimiter)];
  const tini = places.map((place) => join(place, 'tini')).find((file) => fs.existsSync(file));
  const ours = [keeperPath(), 'run', '--', 'true'];
  const commands = [ours, ['true'], ...(tini === undefined ? [] : [[tini, '-s', '--', 'true']])];
  const [run = [], bare = [], beside] = await underLeastAgent(dir, async (env) => {
    clocked(50, commands, env);
    return clocked(startRounds, commands, env);
  });
  const figures = {
    keeperMicros: round(median(run)),
    trueMicros: round(median(bare)),
    ...(beside === undefined
      ? {}
      : { tiniMicros: round(median(beside)), keeperToTini: ratioOf(run, beside) }),
  };
  console.log('start', figures);
  return figures;
}

async function forkTimes(dir: string): Promise<Record<string, unknown>> {
  const loop = ['sh', '-c', `i=0; while [ $i -lt ${forks} ]; do (:); i=$((i+1)); done`];
  const [ours = [], bare = []] = await underLeastAgent(dir, async (env) =>
    clocked(forkRounds, [[keeperPath(), 'run', '--', ...loop], loop], env),
  );
  const figures = {
    keeperMs: round(median(ours) / 1_000),
    bareMs: round(median(bare) / 1_000),
    keeperToBare: ratioOf(ours, bare),
  };
  console.log('forks', figures);
  return figures;
}

async function keeperMemory(dir: string): Promise<Record<string, unknown>> {
  const pss = await underLeastAgent(dir, async (env) => {
    const running = Array.from({ length: keepers }, () =>
      spawn(keeperPath(), ['run', '--', 'sh', '-c', 'echo up; read _'], {
        env,
        stdio: ['pipe', 'pipe', 'inherit'],
      }),
    );
    await Promise.all(running.map((each) => new Promise((resolve) => each.stdout.once('data', resolve))));
    const sizes = running.map(({ pid }) => pssKiB(pid ?? 0));
    await Promise.all(
      running.map((each) => {
        const gone = new Promise((resolve) => each.once('exit', resolve));
        each.stdin.end('\n');
        return gone;
      }),
    );
    return sizes;
  });
  const figures = { keepers, pssKiBMedian: median(pss), pssKiBMax: Math.max(...pss) };
  console.log('memory', figures);
  return figures;
}

/** Proportional set size: a page shared by n processes counts 1/n in each. Of a keeper, root alone may ask. */
function pssKiB(pid: number): number {
  try {
    return Number(/^Pss:\s+(\d+) kB$/m.exec(fs.readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1]);
  } catch {
    return Number.NaN;
  }
}

// Trees: an agent here, which sends the word and reads what the keeper found.

class Agent implements AsyncDisposable {
  readonly path: string;
  readonly #server: Server;
  #heard: ((socket: Socket) => void) | undefined;

  private constructor(path: string) {
    this.path = path;
    this.#server = createServer((socket) => this.#heard?.(socket));
  }

  static async open(path: string): Promise<Agent> {
    const agent = new Agent(path);
    await new Promise<void>((resolve) => agent.#server.listen(path, resolve));
    return agent;
  }

  /** Starts a tree, waits until it is up, ends it without grace: milliseconds until the keeper found it empty. */
  async emptied(
    script: string,
    marker: string,
  ): Promise<{ ms: number; processes: number; survivors: number }> {
    const connected = new Promise<Socket>((resolve) => (this.#heard = resolve));
    const run = spawn(keeperPath(), ['run', '--', 'sh', '-c', script], {
      env: { ...process.env, CUSTODY_SOCKET: this.path, BENCH_TREE: marker },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const up = new Promise((resolve) => run.stdout.once('data', resolve));
    const gone = new Promise((resolve) => run.once('exit', resolve));
    const socket = await connected;
    const reader = new FrameReader();
    let take: (frame: Frame) => void = () => {};
    socket.on('data', (chunk: Buffer) => reader.push(chunk).forEach((frame) => take(frame)));
    const frame = (): Promise<Frame> => new Promise((resolve) => (take = resolve));
    await frame();
    const ceiling = Math.round(bootTimeMs() + 600_000);
    const started = frame();
    socket.write(
      encodeFrame({
        verb: 'granted',
        fields: [
          ['grant', marker],
          ['ceiling_boot_ms', ceiling],
          ['grace_ms', 2_000],
        ],
      }),
    );
    await started;
    await up;
    const ended = frame();
    const fromMs = bootTimeMs();
    socket.write(
      encodeFrame({
        verb: 'end',
        fields: [
          ['cause', 'revoked'],
          ['grace_ms', 0],
        ],
      }),
    );
    const account = await ended;
    await gone;
    const ms = number(account, 'empty_boot_us') / 1_000 - fromMs;
    return { ms, processes: number(account, 'processes'), survivors: sleepersLeft() };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** The sleepers of a bench, whoever is their parent now: nobody else sleeps for 900 s. */
function sleepers(): number[] {
  return fs
    .readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const state = /\) (.)/.exec(fs.readFileSync(`/proc/${pid}/stat`, 'latin1'))?.[1];
        return state !== 'Z' && fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1') === 'sleep\x00900\x00';
      } catch {
        return false;
      }
    });
}
const sleepersLeft = (): number => sleepers().length;

async function startTree(script: string): Promise<ChildProcess> {
  const child = spawn('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  return child;
}

async function treeTimes(dir: string): Promise<Record<string, unknown>> {
  const treeKill = createRequire(join(peers, 'package.json'))('tree-kill') as (
    pid: number,
    signal: string,
    done: (error?: Error) => void,
  ) => void;
  await using agent = await Agent.open(join(dir, 'trees.sock'));
  const [ours, theirs]: [number[], number[]] = [[], []];
  const left = { keeper: 0, treeKill: 0 };
  for (let each = 0; each < treeRounds; each += 1) {
    const run = await agent.emptied(mixedTree, `bench-tree-${each}`);
    ours.push(run.ms);
    left.keeper += run.survivors;
    const child = await startTree(mixedTree);
    const fromMs = bootTimeMs();
    await new Promise<void>((resolve) => treeKill(child.pid ?? 0, 'SIGKILL', () => resolve()));
    theirs.push(bootTimeMs() - fromMs);
    await new Promise((resolve) => setTimeout(resolve, 100)); // what was killed needs a moment to be gone
    const survivors = sleepers();
    left.treeKill += survivors.length;
    for (const pid of survivors) process.kill(pid, 'SIGKILL');
  }
  const figures = {
    processes: 301,
    keeper: spreadOf(ours),
    treeKill: spreadOf(theirs),
    treeKillToKeeper: ratioOf(theirs, ours),
    survivorsPerTree: { keeper: left.keeper / treeRounds, treeKill: left.treeKill / treeRounds },
  };
  console.log('trees', figures);
  return figures;
}

// cgroup.kill, where a group can be made here.

function unifiedAt(): string | undefined {
  const mounts = fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  return mounts.find((line) => / - cgroup2 /.test(line))?.split(' ')[4];
}

function makeGroup(): string | undefined {
  const at = unifiedAt();
  const group = at === undefined ? undefined : join(at, `custody-bench-${process.pid}`);
  try {
    if (group !== undefined) fs.mkdirSync(group);
    return group !== undefined && fs.existsSync(join(group, 'cgroup.kill')) ? group : undefined;
  } catch {
    return undefined;
  }
}

async function groupTimes(dir: string): Promise<Record<string, unknown>> {
  await using agent = await Agent.open(join(dir, 'groups.sock'));
  const group = makeGroup();
  const [ours, raw]: [number[], number[]] = [[], []];
  for (let each = 0; each < groupRounds; each += 1) {
    ours.push((await agent.emptied(plainTree, `bench-group-${each}`)).ms);
    if (group === undefined) continue;
    const child = await startTree(`echo $$ > ${group}/cgroup.procs; ${plainTree}`);
    const fromMs = bootTimeMs();
    fs.writeFileSync(join(group, 'cgroup.kill'), '1');
    while (!fs.readFileSync(join(group, 'cgroup.events'), 'utf8').includes('populated 0')) continue;
    raw.push(bootTimeMs() - fromMs);
    if (child.exitCode === null && child.signalCode === null)
      await new Promise((resolve) => child.once('exit', resolve));
  }
  if (group !== undefined) fs.rmdirSync(group);
  const p99 = (values: readonly number[]): number =>
    round(values.toSorted((a, b) => a - b)[Math.ceil(values.length * 0.99) - 1] ?? Number.NaN);
  const figures = {
    keeper: { ...spreadOf(ours), p99Ms: p99(ours) },
    ...(raw.length === 0
      ? {}
      : {
          cgroupKill: { ...spreadOf(raw), p99Ms: p99(raw) },
          keeperToCgroupKillP99: round(p99(ours) / p99(raw)),
        }),
  };
  console.log('groups', figures);
  return figures;
}
