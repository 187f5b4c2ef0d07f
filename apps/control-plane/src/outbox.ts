// Owns the relay of the outbox: what a committed transaction left to say is said, in order. A reconciler: no input.
import type { Bus } from '@custody/bus/bus';
import { outboxBatchMax, reconcileIntervalMs } from '@custody/core/limits';
import type { Database } from '@custody/store/database';
import { removeSent, unsentMessages } from '@custody/store/outbox';
import type { Log } from './log.ts';
import { Reconciler } from './reconciler.ts';

/** As much of the bus as the relay uses. */
type Outlet = Pick<Bus, 'connected' | 'publish' | 'flush'>;

export class OutboxRelay implements AsyncDisposable {
  readonly #db: Database;
  readonly #bus: () => Outlet | undefined;
  readonly #reconciler: Reconciler;

  constructor(db: Database, bus: () => Outlet | undefined, log: Log) {
    this.#db = db;
    this.#bus = bus;
    this.#reconciler = new Reconciler(
      () => this.#relay(),
      reconcileIntervalMs,
      (error) => log.warn({ err: error }, 'the outbox could not be emptied; the timer tries again'),
    );
  }

  nudge(): void {
    this.#reconciler.nudge();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reconciler[Symbol.asyncDispose]();
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
    if (messages.length === outboxBatchMax) this.nudge();
  }
}
