// Owns giving a test file a real constellation of its own, the terminal that speaks to it, and sight of its processes.
import {
  startConstellation,
  type Constellation,
  type ConstellationOptions,
} from '@custody/constellation/constellation';
import { spawn, type ChildProcess } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll } from 'vitest';
import { searchPath } from './config.ts';

const root = path.join(import.meta.dirname, '..', '..', '..');
const bin = path.join(root, 'node_modules', '.bin');
const untilMsDefault = 15_000;
const pollMs = 10;
const runMsMax = 60_000;

/** The policy of the newcomer's first minutes: everybody may hold what is under `prod`. */
export const openPolicy = `@id("anyone-may-hold-prod")
@ceiling("15m")
permit (principal, action == Action::"hold", resource in Folder::"prod");
`;

export interface Outcome {
  /** 128 + n where signal n ended it. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly ms: number;
}

export interface CommandOptions {
  /** Whose socket runs ask. Default: host-a. */
  readonly host?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly input?: string | Uint8Array;
  readonly cwd?: string;
}

export interface RunOptions extends CommandOptions {
  /** `NAME=custody://…` */
  readonly holds?: readonly string[];
  readonly flags?: readonly string[];
}

/** A `custody run` under way. The process is the keeper itself. */
export interface StartedRun {
  readonly pid: number;
  readonly outcome: Promise<Outcome>;
  /** The `number`th line that the child wrote, from 1. Rejects when it ends without it. */
  line(number: number): Promise<string>;
  kill(signal: NodeJS.Signals): void;
}

export interface TestConstellation {
  readonly constellation: Constellation;
  /** The data folder. */
  readonly dir: string;
  /** A folder beside it, for what the tests write themselves. */
  readonly scratch: string;
  /** `custody ARGS`, to its end. */
  custody(args: readonly string[], options?: CommandOptions): Promise<Outcome>;
  /** The same with `--json`. Throws where it does not exit with 0. */
  json<Value>(args: readonly string[], options?: CommandOptions): Promise<Value>;
  /** `custody run`, to its end. */
  run(command: readonly string[], options?: RunOptions): Promise<Outcome>;
  /** `custody run`, left running; ended with the file where it still runs then. */
  startRun(command: readonly string[], options?: RunOptions): StartedRun;
}

export interface ConstellationChoice extends Pick<ConstellationOptions, 'controlPlanes' | 'bus' | 'around'> {
  readonly hosts: number;
  /** True where Postgres is killed: without fsync a commit may be lost with the process. */
  readonly durable?: boolean;
  /** For the programs: `OTEL_*`, `CUSTODY_LOG`. Asked when the constellation starts. */
  readonly environment?: () => Promise<Readonly<Record<string, string>>>;
}

/**
 * Called once at the top of a test file; the fields are valid inside tests and hooks. What was started is
 * ended, and what was written removed, after the file's last test.
 */
export function withConstellation(choice: ConstellationChoice): TestConstellation {
  let opened: { constellation: Constellation; dir: string; scratch: string } | undefined;
  const children = new Set<ChildProcess>();

  beforeAll(async () => {
    const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-suite-'));
    // Postgres runs as another user where we are root.
    fs.chmodSync(scratch, 0o711);
    const dir = path.join(scratch, 'data');
    const { environment, ...chosen } = choice;
    const more = (await environment?.()) ?? {};
    const constellation = await startConstellation({
      ...chosen,
      dataDir: dir,
      // A canary is a run that no test started: only those that are about canaries have them.
      environment: { PATH: searchPath, HOME: scratch, CUSTODY_CANARY: 'off', ...more },
      now: () => new Date(),
      durable: choice.durable ?? false,
    });
    opened = { constellation, dir, scratch };
  });

  let failed = false;
  afterEach(({ task }) => {
    failed ||= task.result?.state === 'fail';
  });

  afterAll(async () => {
    for (const child of children) child.kill('SIGTERM');
    await opened?.constellation[Symbol.asyncDispose]();
    if (opened === undefined) return;
    if (failed) keepLogs(opened.constellation.layout);
    fs.rmSync(opened.scratch, { recursive: true, force: true });
  });

  const current = (): NonNullable<typeof opened> => {
    if (opened === undefined) throw new Error('use the constellation: it is up inside tests and hooks only');
    return opened;
  };

  const start = (args: readonly string[], options: CommandOptions): StartedRun => {
    const { constellation, scratch } = current();
    const wanted = options.host ?? 'host-a';
    const host = constellation.hosts.find(({ name }) => name === wanted);
    if (host === undefined) throw new Error(`the constellation has no ${wanted}`);
    const child = spawn(path.join(bin, 'custody'), [...args], {
      cwd: options.cwd ?? scratch,
      stdio: ['pipe', 'pipe', 'pipe'],
      env: {
        PATH: `${bin}:${searchPath}`,
        HOME: scratch,
        CUSTODY_API: constellation.api,
        CUSTODY_TOKEN: constellation.token,
        CUSTODY_SOCKET: host.socket,
        ...options.env,
      },
    });
    children.add(child);
    const started = follow(child, `custody ${args.join(' ')}`);
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input ?? '');
    child.once('close', () => children.delete(child));
    return started;
  };

  const custody = (args: readonly string[], options: CommandOptions = {}): Promise<Outcome> =>
    start(args, options).outcome;
  const runArgs = (command: readonly string[], { holds = [], flags = [] }: RunOptions): string[] => [
    'run',
    ...holds.flatMap((each) => ['--env', each]),
    ...flags,
    '--',
    ...command,
  ];
  return {
    get constellation() {
      return current().constellation;
    },
    get dir() {
      return current().dir;
    },
    get scratch() {
      return current().scratch;
    },
    custody,
    json: async <Value>(args: readonly string[], options?: CommandOptions): Promise<Value> => {
      const outcome = await custody([...args, '--json'], options);
      if (outcome.code !== 0) throw new Error(`custody ${args.join(' ')}: ${told(outcome)}`);
      return JSON.parse(outcome.stdout) as Value;
    },
    run: (command, options = {}) => start(runArgs(command, options), options).outcome,
    startRun: (command, options = {}) => start(runArgs(command, options), options),
  };
}

/** What the programs said is the first thing that whoever looks into a failure wants to read. */
function keepLogs({ logs, nats }: Constellation['layout']): void {
  const kept = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-suite-logs-'));
  fs.cpSync(logs, kept, { recursive: true });
  fs.cpSync(path.join(nats, 'nats.log'), path.join(kept, 'nats.log'));
  process.stderr.write(`the logs of the constellation are kept under ${kept}\n`);
}

function follow(child: ChildProcess, what: string): StartedRun {
  const startedAt = performance.now();
  let stdout = '';
  let stderr = '';
  const arrived = new Set<() => void>();
  const wake = (): void => {
    for (const each of arrived) each();
  };
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    wake();
  });
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  let ended: Outcome | undefined;
  const outcome = new Promise<Outcome>((resolve, reject) => {
    const late = setTimeout(() => child.kill('SIGKILL'), runMsMax);
    child.once('error', reject);
    child.once('close', (code, signal) => {
      clearTimeout(late);
      const number = signal === null ? 0 : os.constants.signals[signal];
      ended = { code: code ?? 128 + number, stdout, stderr, ms: performance.now() - startedAt };
      resolve(ended);
      wake();
    });
  });
  outcome.catch(() => undefined);
  return {
    pid: child.pid ?? 0,
    outcome,
    line: (number) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          const lines = stdout.split('\n').slice(0, -1);
          const found = lines[number - 1];
          if (found === undefined && ended === undefined) return;
          arrived.delete(look);
          if (found !== undefined) resolve(found);
          else reject(new Error(`${what}: it ended without line ${number}: ${told(ended)}`));
        };
        arrived.add(look);
        look();
      }),
    kill: (signal) => void child.kill(signal),
  };
}

function told(outcome: Outcome | undefined): string {
  if (outcome === undefined) return 'it runs';
  return `exit ${outcome.code}; stdout: ${outcome.stdout.trim()}; stderr: ${outcome.stderr.trim()}`;
}

/** The outcome, which must be this exit code: otherwise an error that tells all that was said. */
export function exited(code: number, outcome: Outcome): Outcome {
  if (outcome.code === code) return outcome;
  throw new Error(`exit ${code} was expected: ${told(outcome)}`);
}

/** Asks until the condition says something else than false or undefined, and answers with it. Throws when it never does. */
export async function until<Value>(
  condition: () => Value | false | undefined | Promise<Value | false | undefined>,
  what: string,
  msMax = untilMsDefault,
): Promise<Value> {
  const deadline = performance.now() + msMax;
  for (;;) {
    const found = await condition();
    if (found !== false && found !== undefined) return found;
    if (performance.now() > deadline) throw new Error(`${what}: not so after ${msMax} ms`);
    await delay(pollMs);
  }
}

/** Whether a process of that number is there and is no corpse. */
export function alive(pid: number): boolean {
  const stat = readIfAny(`/proc/${pid}/stat`)?.toString('latin1');
  if (stat === undefined) return false;
  const state = stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3);
  return state !== 'Z' && state !== 'X';
}

/** Every process, corpses too. */
export function processes(): number[] {
  return fs
    .readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

/** Processes whose parent it is. */
export function childrenOf(pid: number): number[] {
  return processes().filter((each) => {
    const stat = readIfAny(`/proc/${each}/stat`)?.toString('latin1') ?? '';
    // After the name, which may hold spaces: the state and the parent (proc_pid_stat(5)).
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]) === pid;
  });
}

/** The environment a process was started with, and its arguments, as the kernel shows them; empty for one that has gone. */
export function shownOf(pid: number): { readonly environment: Buffer; readonly arguments: Buffer } {
  return {
    environment: readIfAny(`/proc/${pid}/environ`) ?? Buffer.alloc(0),
    arguments: readIfAny(`/proc/${pid}/cmdline`) ?? Buffer.alloc(0),
  };
}

/** Processes that were started with the marker of this grant. */
export function processesWithMarker(grantId: string): number[] {
  const marker = `CUSTODY_GRANT=${grantId}`;
  return processes().filter((pid) =>
    shownOf(pid).environment.toString('latin1').split('\0').includes(marker),
  );
}

function readIfAny(file: string): Buffer | undefined {
  try {
    return fs.readFileSync(file);
  } catch {
    return undefined;
  }
}
