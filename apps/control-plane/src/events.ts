// Owns the stream of events: the central ledger as it grows, to readers who can go on where they were.
import { CustodyError } from '@custody/core/errors';
import {
  eventHeartbeatMs,
  eventPageMax,
  eventPollMs,
  eventsShownDefault,
  eventStallMs,
  eventStreamsMax,
} from '@custody/core/limits';
import type { Database } from '@custody/store/database';
import { beforeNewest, settledAfter, settledHead, type EventRow } from '@custody/store/events';
import { listHosts } from '@custody/store/hosts';
import { eventKinds, fleetEvent, type EventKind, type FleetEvent } from '@custody/wire/events';
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import type { Log } from './log.ts';
import type { News } from './news.ts';

export interface EventsOptions {
  readonly db: Database;
  readonly news: News;
  readonly log: Log;
  /** Defaults are those of libs/core/limits.ts. */
  readonly heartbeatMs?: number;
  readonly stallMs?: number;
}

export interface EventsAsked {
  /** Goes on after this id. Without it: from now on, or with `follow` false the newest ones. */
  readonly since: number | undefined;
  readonly follow: boolean;
  readonly last: number | undefined;
}

const told: ReadonlySet<string> = new Set(eventKinds);

export class Events {
  readonly #options: EventsOptions;
  #open = 0;

  constructor(options: EventsOptions) {
    this.#options = options;
  }

  /** Throws `unavailable` where too many read already. Call before anything is sent; `write` must follow. */
  admit(): Disposable {
    if (this.#open >= eventStreamsMax) {
      throw new CustodyError(
        'unavailable',
        `events: ${this.#open} readers are connected, the most there may be`,
        {
          next: 'close one, or ask with follow=false',
        },
      );
    }
    this.#open += 1;
    return { [Symbol.dispose]: () => void (this.#open -= 1) };
  }

  /**
   * Writes events until `signal` aborts, or the ledger ends where it does not follow. What a reader leaves unread is at most one
   * page; one that reads nothing for too long is told where to go on, and left.
   */
  async write(asked: EventsAsked, out: Writable, signal: AbortSignal): Promise<void> {
    try {
      await this.#write(asked, out, signal);
    } catch (error) {
      // The reader sees the stream end, and goes on after the last id when the database answers.
      this.#options.log.warn({ err: error }, 'a stream of events ended early');
    }
  }

  async #write(asked: EventsAsked, out: Writable, signal: AbortSignal): Promise<void> {
    const { db, news, heartbeatMs = eventHeartbeatMs } = this.#options;
    let at = await this.#start(asked, signal);
    const names = new Map<string, string>();
    let quietMs = 0;
    while (!signal.aborted) {
      using heard = news.listen();
      const rows = await settledAfter(db, at, eventPageMax, signal);
      const text = (await this.#eventsOf(rows, names)).map(rendered).join('');
      at = rows.at(-1)?.ordinal ?? at;
      if (text !== '') {
        quietMs = 0;
        if (!(await this.#send(out, text, signal))) return slow(out, at);
      }
      if (rows.length > 0) continue;
      if (!asked.follow) return;
      await heard.next(eventPollMs);
      quietMs += eventPollMs;
      if (quietMs < heartbeatMs) continue;
      quietMs = 0;
      if (!(await this.#send(out, ': the line is alive\n\n', signal))) return slow(out, at);
    }
  }

  async #start({ since, follow, last }: EventsAsked, signal: AbortSignal): Promise<number> {
    const { db } = this.#options;
    if (since !== undefined) return since;
    return follow
      ? settledHead(db, signal)
      : beforeNewest(db, eventKinds, Math.min(last ?? eventsShownDefault, eventPageMax));
  }

  async #eventsOf(rows: readonly EventRow[], names: Map<string, string>): Promise<FleetEvent[]> {
    const shown = rows.filter(({ kind }) => told.has(kind));
    if (shown.some(({ author }) => !names.has(author))) {
      for (const { id, name } of await listHosts(this.#options.db)) names.set(id, name);
    }
    return shown.map(({ ordinal, author, kind, at, body }) => ({
      ...{ id: ordinal, at: at.toISOString(), kind: kind as EventKind, author },
      name: names.get(author) ?? author,
      body: fleetEvent.shape.body.parse(body),
    }));
  }

  /** False where the reader has not read in time. */
  async #send(out: Writable, text: string, signal: AbortSignal): Promise<boolean> {
    if (out.write(text)) return true;
    const { stallMs = eventStallMs } = this.#options;
    const giveUp = new AbortController();
    const ended = AbortSignal.any([signal, giveUp.signal]);
    const read = once(out, 'drain', { signal: ended }).then(
      () => true,
      () => true,
    );
    const stalled = delay(stallMs, false, { signal: ended }).catch(() => true);
    try {
      return await Promise.race([read, stalled]);
    } finally {
      giveUp.abort();
    }
  }
}

function rendered(event: FleetEvent): string {
  return `id: ${event.id}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`;
}

function slow(out: Writable, since: number): void {
  const why = 'this reader did not read; go on after the id';
  out.write(`event: slow\ndata: ${JSON.stringify({ since, why })}\n\n`);
}
