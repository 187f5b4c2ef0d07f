// Owns the relay of the outbox: what a committed transaction left to say is said, in order. A reconciler: no input.
import type { Bus } from '@custody/bus/bus';
import { outboxBatchMax, reconcileIntervalMs } from '@custody/core/limits';
import type { Database } from '@custody/store/database';
import { removeSent, unsentMessages } from '@custody/store/outbox';
import type { Log } from './log.ts';

/** As much of the bus as the relay uses. */
type Outlet = Pick<Bus, 'connected' | 'publish' | 'flush'>;

export class OutboxRelay implements AsyncDisposable {
  readonly #db: Database;
  readonly #log: Log;
  readonly #bus: () => Outlet | undefined;
  readonly #timer: NodeJS.Timeout;
  #running: Promise<void> | undefined;
  #again = false;
  #stopped = false;

  constructor(db: Database, bus: () => Outlet | undefined, log: Log) {
    this.#db = db;
    this.#bus = bus;
    this.#log = log;
    this.#timer = setInterval(() => this.nudge(), reconcileIntervalMs);
  }

  /** Nudge and timer take the same path. */
  nudge(): void {
    this.#again = true;
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#again && !this.#stopped) {
      this.#again = false;
      try {
        await this.#relay();
      } catch (error) {
        this.#log.warn({ err: error }, 'the outbox could not be emptied; the timer tries again');
      }
    }
  }

  async #relay(): Promise<void> {
    const bus = this.#bus();
    if (bus?.connected !== true) return;
    const messages = await unsentMessages(this.#db);
    if (messages.length === 0) return;
    for (const { subject, payload, headers } of messages) bus.publish(subject, payload, headers);
    await bus.flush();
    await removeSent(
      this.#db,
      messages.map((message) => message.id),
    );
    if (messages.length === outboxBatchMax) this.#again = true;
  }
}
