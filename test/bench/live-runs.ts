// Owns what the bench of revocations holds alive: runs under custody, and trees that a poller ends as it is done without it.
import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import type { HostOfConstellation } from '@custody/constellation/constellation';
import { call, type ClientOptions } from '@custody/wire/client';
import { sharedMs } from './wire.ts';

const root = join(import.meta.dirname, '..', '..');
const custody = join(root, 'apps', 'cli', 'bin', 'custody');
/** A shell and two children; `up` once they stand. */
const tree = 'sleep 900 & sleep 900 & echo "up $CUSTODY_GRANT"; wait';
const credential = ['--env', 'KEY=custody://prod/bench/key'];
const startMsMax = 20_000;

export interface LiveRun {
  readonly grantId: string;
  readonly host: string;
  /** Resolves when its keeper has exited. */
  readonly gone: Promise<void>;
}

const exit = (child: ChildProcess): Promise<void> =>
  new Promise((resolve) => child.once('exit', () => resolve()));

async function upLine(child: ChildProcess): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const late = setTimeout(() => reject(new Error('a tree did not come up')), startMsMax);
  let text = '';
  child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    if (text.includes('\n')) resolve(text.trim());
  });
  child.once('exit', () => reject(new Error(`a tree ended before it was up: ${text}`)));
  return promise.finally(() => clearTimeout(late));
}

/** `custody run` with a credential and a tree of three; resolves when the tree is up. */
export async function startLive({ name, socket }: HostOfConstellation): Promise<LiveRun> {
  const child = spawn(custody, ['run', ...credential, '--', 'sh', '-c', tree], {
    env: { ...process.env, CUSTODY_SOCKET: socket },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const gone = exit(child);
  const [, grantId = ''] = (await upLine(child)).split(' ');
  return { grantId, host: name, gone };
}

/** Runs that begin and end, one every `everyMs`, on each host in turn: the ledgers of both grow all the while. */
export class LedgerLoad implements AsyncDisposable {
  readonly #timer: NodeJS.Timeout;
  readonly #running = new Set<Promise<void>>();
  finished = 0;
  failed = 0;

  constructor(hosts: readonly HostOfConstellation[], everyMs: number) {
    let turn = 0;
    this.#timer = setInterval(() => {
      const host = hosts[(turn += 1) % hosts.length];
      if (host !== undefined) this.#start(host.socket);
    }, everyMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    await Promise.all(this.#running);
  }

  #start(socket: string): void {
    const child = spawn(custody, ['run', ...credential, '--', 'true'], {
      env: { ...process.env, CUSTODY_SOCKET: socket },
      stdio: 'ignore',
    });
    const one = exit(child).then(() => {
      if (child.exitCode === 0) this.finished += 1;
      else this.failed += 1;
      this.#running.delete(one);
    });
    this.#running.add(one);
  }
}

/**
 * What is done without a broadcast: one process for each host asks every `everyMs` what was revoked since, and ends the
 * process group that holds it. The same API, the same trees, no custody.
 */
export class Pollers implements AsyncDisposable {
  readonly #client: ClientOptions;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #trees = new Map<string, { readonly child: ChildProcess; readonly gone: Promise<void> }>();
  readonly #emptyMs = new Map<string, PromiseWithResolvers<number>>();
  readonly #polling = new Set<Promise<void>>();

  private constructor(client: ClientOptions) {
    this.#client = client;
  }

  /** Their first polls are spread over the interval. */
  static start(client: ClientOptions, hosts: readonly string[], after: number, everyMs: number): Pollers {
    const made = new Pollers(client);
    hosts.forEach((host, index) => {
      const cursor = { epoch: after };
      const poll = (): void => {
        const one = made.#poll(host, cursor).finally(() => made.#polling.delete(one));
        made.#polling.add(one);
      };
      const first = (everyMs * (index + 0.5)) / hosts.length;
      made.#timers.push(
        setTimeout(() => {
          poll();
          made.#timers.push(setInterval(poll, everyMs));
        }, first),
      );
    });
    return made;
  }

  /** A tree like that of the run, under no keeper, that the poller of its host ends. */
  async hold({ grantId, host }: LiveRun): Promise<void> {
    const child = spawn('sh', ['-c', tree], { detached: true, stdio: ['ignore', 'pipe', 'inherit'] });
    const gone = exit(child);
    await upLine(child);
    this.#trees.set(`${host} ${grantId}`, { child, gone });
    this.#emptyMs.set(grantId, Promise.withResolvers());
  }

  /** When the tree beside that run was empty. */
  emptied(grantId: string): Promise<number> {
    const word = this.#emptyMs.get(grantId);
    if (word === undefined) throw new Error(`no poller holds a tree beside ${grantId}`);
    return word.promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const timer of this.#timers) clearTimeout(timer);
    await Promise.all(this.#polling);
    for (const { child } of this.#trees.values()) killGroup(child);
    await Promise.all([...this.#trees.values()].map(({ gone }) => gone));
  }

  async #poll(host: string, cursor: { epoch: number }): Promise<void> {
    for (const { epoch, grantId } of await this.#after(cursor.epoch)) {
      const held = this.#trees.get(`${host} ${grantId}`);
      if (held !== undefined) {
        this.#trees.delete(`${host} ${grantId}`);
        killGroup(held.child);
        void held.gone.then(() => this.#emptyMs.get(grantId)?.resolve(sharedMs()));
      }
      cursor.epoch = Math.max(cursor.epoch, epoch);
    }
  }

  /** One question, as a poller asks it: what was revoked since. */
  async #after(after: number): Promise<{ epoch: number; grantId: string }[]> {
    const { revocations } = await call(this.#client, 'revocation.list', { query: {} });
    return revocations.flatMap(({ epoch, target }) =>
      epoch > after && target.kind === 'grant' ? [{ epoch, grantId: target.id }] : [],
    );
  }
}

function killGroup({ pid }: ChildProcess): void {
  if (pid !== undefined) process.kill(-pid, 'SIGKILL');
}
