// Owns one part of a constellation while it should run: started, watched, started again when it dies.
import { setTimeout as wait } from 'node:timers/promises';

/** A started program, whichever way it was started. */
export interface Started {
  readonly pid: number;
  readonly exited: Promise<unknown>;
  stop(): Promise<unknown>;
}

export interface PartOptions {
  readonly name: string;
  readonly start: () => Promise<Started>;
  readonly onEvent: (event: { part: string; what: 'started' | 'died' | 'failed'; detail: string }) => void;
}

const backoffMsMin = 50;
const backoffMsMax = 5_000;

/** `#current` belongs to the watch loop alone; `stop` waits for the loop to leave. */
export class Part implements AsyncDisposable {
  readonly name: string;
  readonly #options: PartOptions;
  readonly #stopping = new AbortController();
  #current: Started;
  #loop: Promise<void>;
  #restarted = Promise.withResolvers<number>();
  #held: PromiseWithResolvers<void> | undefined;

  private constructor(options: PartOptions, first: Started) {
    this.name = options.name;
    this.#options = options;
    this.#current = first;
    this.#loop = this.#watch();
  }

  static async start(options: PartOptions): Promise<Part> {
    const first = await options.start();
    options.onEvent({ part: options.name, what: 'started', detail: `pid ${first.pid}` });
    return new Part(options, first);
  }

  get pid(): number {
    return this.#current.pid;
  }

  /** Sends a signal to the part itself, and tells when it is ready again. Needs a signal that ends it. */
  async kill(signal: NodeJS.Signals): Promise<{ dead: Promise<unknown>; restarted: Promise<number> }> {
    const restarted = this.#restarted.promise;
    const dead = this.#current.exited;
    process.kill(this.#current.pid, signal);
    return { dead, restarted };
  }

  /** Ends the part and keeps it down until `up`. Resolves when it has gone. */
  async down(signal: NodeJS.Signals): Promise<void> {
    this.#held ??= Promise.withResolvers();
    const { dead } = await this.kill(signal);
    await dead;
  }

  /** Starts it again after `down`. Resolves with its pid when it is ready. */
  async up(): Promise<number> {
    if (this.#held === undefined) return this.pid;
    const restarted = this.#restarted.promise;
    this.#held.resolve();
    this.#held = undefined;
    return restarted;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort();
    this.#held?.resolve();
    await this.#current.stop();
    await this.#loop;
  }

  async #watch(): Promise<void> {
    const { name, start, onEvent } = this.#options;
    let backoffMs = backoffMsMin;
    for (;;) {
      await this.#current.exited;
      if (this.#stopping.signal.aborted) return;
      onEvent({ part: name, what: 'died', detail: `pid ${this.#current.pid}` });
      await this.#held?.promise;
      if (this.#stopping.signal.aborted) return;
      for (;;) {
        try {
          this.#current = await start();
          break;
        } catch (error) {
          if (this.#stopping.signal.aborted) return;
          onEvent({ part: name, what: 'failed', detail: error instanceof Error ? error.message : 'unknown' });
          await wait(backoffMs, undefined, { signal: this.#stopping.signal }).catch(() => undefined);
          if (this.#stopping.signal.aborted) return;
          backoffMs = Math.min(backoffMs * 2, backoffMsMax);
        }
      }
      if (this.#stopping.signal.aborted) {
        await this.#current.stop();
        return;
      }
      backoffMs = backoffMsMin;
      onEvent({ part: name, what: 'started', detail: `pid ${this.#current.pid}` });
      this.#restarted.resolve(this.#current.pid);
      this.#restarted = Promise.withResolvers();
    }
  }
}
