// Owns the agent that the keeper's tests talk to: a real Unix socket, real frames, and answers the test chooses.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encodeFrame, FrameReader, number, text, type Frame, type FrameToSend } from '../src/frames.ts';
import { bootTimeMs } from '../src/native.ts';

/** A queue that can be awaited; `close` makes every later take fail. */
class Mailbox<T> {
  #items: T[] = [];
  #takers: { resolve: (item: T) => void; reject: (fault: Error) => void }[] = [];
  #closed: Error | undefined;

  put(item: T): void {
    const taker = this.#takers.shift();
    if (taker === undefined) this.#items.push(item);
    else taker.resolve(item);
  }

  close(fault: Error): void {
    this.#closed ??= fault;
    for (const taker of this.#takers.splice(0)) taker.reject(fault);
  }

  take(): Promise<T> {
    const item = this.#items.shift();
    if (item !== undefined) return Promise.resolve(item);
    if (this.#closed !== undefined) return Promise.reject(this.#closed);
    return new Promise((resolve, reject) => this.#takers.push({ resolve, reject }));
  }
}

export interface GrantToSend {
  grant?: string;
  ceilingInMs?: number;
  graceMs?: number;
  env?: readonly (string | Uint8Array)[];
  fields?: FrameToSend['fields'];
}

/** One connection of a keeper. */
export class Link {
  readonly #socket: Socket;
  readonly #frames = new Mailbox<Frame>();
  readonly closed: Promise<unknown>;

  constructor(socket: Socket) {
    this.#socket = socket;
    const reader = new FrameReader();
    this.closed = new Promise((resolve) => socket.once('close', resolve));
    socket.on('error', () => {}); // a keeper that exits with our frame unread resets the connection
    socket.on('data', (chunk: Buffer) => {
      for (const frame of reader.push(chunk)) this.#frames.put(frame);
    });
    socket.on('close', () => this.#frames.close(new Error('the keeper closed the connection')));
  }

  next(): Promise<Frame> {
    return this.#frames.take();
  }

  /** The next frame, which must have that verb. */
  async expect(verb: Frame['verb']): Promise<Frame> {
    const frame = await this.#frames.take();
    if (frame.verb !== verb) throw new Error(`expected ${verb}, the keeper said ${frame.verb}`);
    return frame;
  }

  send(verb: FrameToSend['verb'], fields: FrameToSend['fields'] = []): void {
    this.#socket.write(encodeFrame({ verb, fields }));
  }

  sendBytes(bytes: Uint8Array): void {
    this.#socket.write(bytes);
  }

  grant({ grant = 'g-1', ceilingInMs = 60_000, graceMs = 0, env = [], fields = [] }: GrantToSend = {}): void {
    this.send('granted', [
      ['grant', grant],
      ['ceiling_boot_ms', Math.round(bootTimeMs() + ceilingInMs)],
      ['grace_ms', graceMs],
      ...env.map((entry) => ['env', entry] as const),
      ...fields,
    ]);
  }

  close(): void {
    this.#socket.destroy();
  }
}

export class FakeAgent implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'keeper-'));
  readonly path: string;
  readonly #links = new Mailbox<Link>();
  readonly #open = new Set<Link>();
  #server: Server | undefined;

  constructor(name = 'agent.sock') {
    this.path = join(this.folder, name);
  }

  static async start(): Promise<FakeAgent> {
    const agent = new FakeAgent();
    await agent.listen();
    return agent;
  }

  async listen(): Promise<void> {
    this.#server = createServer((socket) => {
      const link = new Link(socket);
      this.#open.add(link);
      void link.closed.then(() => this.#open.delete(link));
      this.#links.put(link);
    });
    this.#server.listen(this.path);
    await once(this.#server, 'listening');
  }

  /** The next connection. */
  link(): Promise<Link> {
    return this.#links.take();
  }

  /** As an agent that has died: no listener, no connection. */
  async die(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#server = undefined;
    for (const link of this.#open) link.close();
    await new Promise((resolve) => server.close(resolve));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.die();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export interface KeeperStart {
  keeper: string;
  agent?: FakeAgent;
  flags?: readonly string[];
  command: readonly string[];
  env?: Record<string, string | undefined>;
}

/** A `custody-keeper run` under test. Disposing kills it, and its root, where they still run. */
export class Keeper implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly exit: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  #stdout = '';
  #stderr = '';
  #heard: (() => void)[] = [];

  constructor(program: string, args: readonly string[], env: Record<string, string | undefined>) {
    this.child = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.child.stdout?.on('data', (chunk: Buffer) => {
      this.#stdout += chunk.toString('latin1');
      for (const heard of this.#heard.splice(0)) heard();
    });
    this.child.stdout?.on('end', () => {
      for (const heard of this.#heard.splice(0)) heard();
    });
    this.child.stderr?.on('data', (chunk: Buffer) => (this.#stderr += chunk.toString('utf8')));
    // `exit`, not `close`: what the run left behind may hold the pipes.
    this.exit = new Promise((resolve, reject) => {
      this.child.once('error', reject);
      this.child.once('exit', (code, signal) => resolve({ code, signal }));
    });
  }

  static run({ keeper, agent, flags = [], command, env = {} }: KeeperStart): Keeper {
    const socket = agent === undefined ? {} : { CUSTODY_SOCKET: agent.path };
    return new Keeper(keeper, ['run', ...flags, '--', ...command], {
      PATH: process.env['PATH'],
      ...socket,
      ...env,
    });
  }

  get pid(): number {
    if (this.child.pid === undefined) throw new Error('the keeper was not started');
    return this.child.pid;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get stdout(): string {
    return this.#stdout;
  }

  /** Everything that the run wrote, once both pipes have closed. */
  async output(): Promise<string> {
    await this.exit;
    const { stdout } = this.child;
    if (stdout !== null && !stdout.readableEnded) await once(stdout, 'end');
    return this.#stdout;
  }

  /** What a pattern finds in stdout, as soon as it is there. Throws where stdout closes without it. */
  async says(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const found = pattern.exec(this.#stdout);
      if (found !== null) return found;
      if (this.child.stdout?.readableEnded !== false) {
        throw new Error(`the run ended without ${pattern}: ${JSON.stringify(this.#stdout + this.#stderr)}`);
      }
      await new Promise<void>((resolve) => this.#heard.push(resolve));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const roots = alive(this.pid) ? children(this.pid) : [];
      this.child.kill('SIGKILL');
      for (const root of roots) endIfThere(root); // on macOS nothing ends it with its keeper
    }
    await this.exit.catch(() => {});
  }
}

let grants = 0;
/** Of no other run on this machine: sweeps look for it everywhere. */
export const nextGrant = (): string => `test-${process.pid}-${++grants}`;

/** Starts `sh -c script` under a grant of its own and waits until it runs. */
export async function running(
  { keeper, path }: { readonly keeper: string; readonly path?: string },
  agent: FakeAgent,
  script: string,
  grant: GrantToSend = {},
  { flags, env = {} }: Pick<KeeperStart, 'flags' | 'env'> = {},
) {
  const id = nextGrant();
  const run = Keeper.run({
    ...{ keeper, agent, command: ['sh', '-c', script] },
    ...(flags === undefined ? {} : { flags }),
    env: { ...(path === undefined ? {} : { PATH: path }), ...env },
  });
  const link = await agent.link();
  const request = await link.expect('request');
  const beganBootMs = bootTimeMs();
  link.grant({ grant: id, ...grant });
  return { run, link, request, id, beganBootMs, root: await started(link) };
}

function endIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // it died with its keeper
  }
}

/** The state letter and start ticks of a process; undefined when there is none (or only its zombie). */
export function processOf(pid: number): { state: string; ppid: number; startTicks: string } | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const [state = '', ppid = ''] = fields;
    if (state === 'Z' || state === 'X') return undefined;
    return { state, ppid: Number(ppid), startTicks: fields[19] ?? '' };
  } catch {
    return undefined;
  }
}

/** Whether it has come to `exec sleep`: a shell before that may not have collected what it forked. */
export const sleeps = (pid: number): boolean => readFileSync(`/proc/${pid}/comm`, 'latin1') === 'sleep\n';

export const alive = (pid: number): boolean => processOf(pid) !== undefined;

/** Resolves when the condition holds: for states of /proc, which announce no change. */
export async function until(condition: () => boolean, what: string, withinMs = 5000): Promise<void> {
  const endMs = performance.now() + withinMs;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`not within ${withinMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** Reads the pid and start ticks that `started` gives. */
export async function started(link: Link): Promise<{ pid: number; startTicks: string }> {
  const frame = await link.expect('started');
  return { pid: number(frame, 'pid'), startTicks: text(frame, 'start_ticks') };
}

/** Those of its main thread. */
export function children(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1')
    .split(' ')
    .filter((child) => child !== '')
    .map(Number);
}
