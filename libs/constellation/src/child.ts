// Owns one program started as a child: its log file, its end, and the wait until it is ready.
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, fchownSync, openSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';

const termMsDefault = 5_000;
const readyMsDefault = 15_000;
const readyTryMs = 10;
const logTailBytesMax = 4_096;

export type Exit = { readonly code: number | null; readonly signal: NodeJS.Signals | null };

export type ChildOptions = {
  /** A path, or a name found on `env.PATH`. No shell reads it. */
  readonly command: string;
  readonly args: readonly string[];
  /** The whole environment of the child; nothing is inherited. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  /** stdout and stderr are appended to it; it is made with mode 0600. */
  readonly logFile: string;
  /** Start as this user; needs root. */
  readonly uid?: number;
  readonly gid?: number;
  /** Asked every few milliseconds until it says true. A child that exits meanwhile is an error. */
  readonly ready?: () => Promise<boolean>;
  readonly readyMs?: number;
};

export interface Child extends AsyncDisposable {
  readonly pid: number;
  /** Never rejects. */
  readonly exited: Promise<Exit>;
  /** TERM, and KILL when it has not exited after `termMs`. Resolves when it has exited; any number of calls. */
  stop(options?: { readonly termMs?: number }): Promise<Exit>;
}

/**
 * Resolves when the program runs, and is ready where `ready` is given. Rejects when it cannot be executed,
 * exits before it is ready (with the end of its log), or is not ready in `readyMs`; nothing is left running.
 */
export async function startChild(options: ChildOptions): Promise<Child> {
  const started = await spawnLogged(options);
  const child = new Program(started.process, started.pid);
  leash(child.pid, child.exited, { signal: 'TERM' });
  if (options.ready === undefined) return child;
  try {
    await untilReady(child, options.ready, options.readyMs ?? readyMsDefault);
    return child;
  } catch (cause) {
    await child.stop();
    const tail = await logTail(options.logFile);
    throw new Error(`start ${options.command}: it did not become ready\n${tail}`, { cause });
  }
}

/**
 * Sends a program that signal when we die without a word: a shell waits on a pipe that only we hold open. Where the
 * shell is killed too, the next start finds the orphan.
 */
export function leash(
  pid: number,
  exited: Promise<unknown>,
  { signal, ...owner }: { signal: 'TERM' | 'INT'; uid?: number; gid?: number },
): void {
  const shell = spawn('/bin/sh', ['-c', 'read -r never; kill -"$1" "$2"', 'sh', signal, String(pid)], {
    cwd: '/',
    env: { PATH: '/usr/bin:/bin', LC_ALL: 'C' },
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
    ...owner,
  });
  shell.on('error', () => undefined);
  shell.unref();
  void exited.then(() => shell.kill('SIGKILL'));
}

class Program implements Child {
  readonly pid: number;
  readonly exited: Promise<Exit>;
  readonly #process: ChildProcess;
  #running = true;

  constructor(process: ChildProcess, pid: number) {
    this.#process = process;
    this.pid = pid;
    this.exited = new Promise((resolve) => {
      process.once('exit', (code, signal) => {
        this.#running = false;
        resolve({ code, signal });
      });
    });
  }

  async stop(options: { readonly termMs?: number } = {}): Promise<Exit> {
    if (!this.#running) return this.exited;
    this.#process.kill('SIGTERM');
    const bound = new AbortController();
    const kill = wait(options.termMs ?? termMsDefault, undefined, { signal: bound.signal })
      .then(() => this.#process.kill('SIGKILL'))
      .catch(() => undefined);
    const exit = await this.exited;
    bound.abort();
    await kill;
    return exit;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

function spawnLogged(options: ChildOptions): Promise<{ process: ChildProcess; pid: number }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ process: ChildProcess; pid: number }>();
  const log = openSync(options.logFile, 'a', 0o600);
  try {
    if (options.uid !== undefined) fchownSync(log, options.uid, options.gid ?? options.uid);
    const process = spawn(options.command, [...options.args], {
      cwd: options.cwd,
      env: { ...options.env },
      stdio: ['ignore', log, log],
      ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.gid ?? options.uid }),
    });
    process.once('error', (cause) => {
      reject(new Error(`start ${options.command}: it cannot be executed`, { cause }));
    });
    process.once('spawn', () => resolve({ process, pid: process.pid ?? 0 }));
  } finally {
    closeSync(log);
  }
  return promise;
}

async function untilReady(child: Child, ready: () => Promise<boolean>, readyMs: number): Promise<void> {
  const bound = new AbortController();
  const asking = (async (): Promise<void> => {
    while (!bound.signal.aborted) {
      if (await ready()) return;
      await wait(readyTryMs);
    }
  })();
  const exited = child.exited.then(({ code, signal }) => {
    throw new Error(`it exited with ${signal ?? code}`);
  });
  const late = wait(readyMs, undefined, { signal: bound.signal }).then(() => {
    throw new Error(`not ready after ${readyMs} ms`);
  });
  for (const other of [exited, late, asking]) other.catch(() => undefined);
  try {
    await Promise.race([asking, exited, late]);
  } finally {
    bound.abort();
  }
}

async function logTail(path: string): Promise<string> {
  await using file = await open(path, 'r');
  const { size } = await file.stat();
  const length = Math.min(size, logTailBytesMax);
  const { buffer } = await file.read(Buffer.alloc(length), 0, length, size - length);
  return buffer.toString('utf8');
}
