// Owns the watch for escapes: who holds a run's marker outside of its tree, on record once each, while the run is open.
import { setTimeout as wait } from 'node:timers/promises';
import { escapeLookShareMs, escapeRecordsMax, escapeScanIntervalMs } from '@custody/core/limits';
import type { OpenRun, Outsider } from '@custody/keeper/scan';
import type { Log } from './log.ts';

/** What was seen of one run. A process is named by its pid and start time. */
export interface Seen extends OpenRun {
  readonly credentials: readonly { readonly path: string }[];
  readonly escapes: Set<string>;
}

export interface EscapesOptions {
  readonly open: () => readonly Seen[];
  readonly scan: (runs: readonly OpenRun[]) => Promise<readonly Outsider[]>;
  readonly record: (run: Seen, escape: Outsider) => void;
  readonly log: Log;
}

/** Undefined where nobody could look: that nothing was found says nothing then. */
type Found = readonly Outsider[] | undefined;

/** One scan at a time serves everybody who asked before it began: its price does not grow with the runs. */
export class Escapes implements AsyncDisposable {
  readonly #options: EscapesOptions;
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<Found> | undefined;
  #next: Promise<Found> | undefined;
  #shared: Promise<Found> | undefined;
  readonly #closing = new AbortController();
  #closed = false;

  constructor(options: EscapesOptions) {
    this.#options = options;
  }

  /** From now on, as long as any run is open. Called again at every run's start. */
  watch(): void {
    if (this.#timer !== undefined || this.#closed) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (this.#options.open().length === 0) return;
      void this.look().finally(() => this.watch());
    }, escapeScanIntervalMs);
    this.#timer.unref();
  }

  /** The escapes of all open runs, by a scan that begins after this call. Never throws: the log says what failed. */
  async look(): Promise<Found> {
    if (this.#running === undefined) return (this.#running = this.#look().finally(() => this.#advance()));
    this.#next ??= this.#running.then(() => (this.#running = this.#look().finally(() => this.#advance())));
    return this.#next;
  }

  /** The same, for whoever has time: one scan serves all who ask within `escapeLookShareMs`. */
  lookShared(): Promise<Found> {
    this.#shared ??= wait(escapeLookShareMs, undefined, { signal: this.#closing.signal })
      .catch(() => {})
      .then(() => {
        this.#shared = undefined;
        return this.look();
      });
    return this.#shared;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#closing.abort();
    await this.#shared;
    clearTimeout(this.#timer);
    await (this.#next ?? this.#running);
  }

  #advance(): void {
    this.#running = undefined;
    this.#next = undefined;
  }

  async #look(): Promise<Found> {
    const { open, scan, record, log } = this.#options;
    try {
      const runs = open();
      const found = await scan(runs);
      for (const escape of found) {
        const run = runs.find(({ grantId }) => grantId === escape.grantId);
        const key = `${escape.pid}:${escape.startTicks}`;
        if (run === undefined || run.escapes.has(key) || run.escapes.size >= escapeRecordsMax) continue;
        run.escapes.add(key);
        log.warn({ ...escape }, 'an escape: a process holds a grant outside of its tree');
        record(run, escape);
      }
      return found;
    } catch (error) {
      log.error({ err: error }, 'escapes could not be looked for');
      return undefined;
    }
  }
}
