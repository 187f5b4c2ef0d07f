// Owns the central ledger at the control plane: what hosts ship is checked, kept and confirmed; questions are answered.
import type { Bus, DurableMessage } from '@custody/bus/bus';
import { CustodyError } from '@custody/core/errors';
import {
  eventPollMs,
  eventsShownDefault,
  ledgerBatchBytesMax,
  ledgerBatchEntriesMax,
  ledgerGapDeliveriesMax,
  ledgerGapPauseMs,
  listRowsMax,
  waitForReceiptMsDefault,
} from '@custody/core/limits';
import { toBase64url } from '@custody/crypto/base64url';
import { parseLine } from '@custody/ledger/entry';
import { verifyChain } from '@custody/ledger/verify';
import type { Database } from '@custody/store/database';
import { settledAfter, settledHead } from '@custody/store/events';
import { hostById, listHosts } from '@custody/store/hosts';
import * as store from '@custody/store/ledger';
import { transaction } from '@custody/store/database';
import { counter, histogram, traced } from '@custody/telemetry/telemetry';
import type { LedgerAuthorView, LedgerLine, PossessionRow } from '@custody/wire/http';
import { hostKinds } from '@custody/wire/ledger';
import { encodeJson } from '@custody/wire/schema';
import { anyHostUp, hostDown, hostOf, ledgerStream } from '@custody/wire/subjects';
import { toRow, type Authority } from './authority.ts';
import type { Log } from './log.ts';
import type { News } from './news.ts';

export interface LedgersOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly news: News;
  readonly now: () => Date;
  readonly log: Log;
}

const redeliveryMs = 1_000;
const entriesIngested = counter('custody.ledger.entries', 'ledger entries ingested');
const ingestLag = histogram(
  'custody.ledger.ingest_lag',
  'from writing on the host to commit, by the two wall clocks',
  'ms',
);

export class Ledgers {
  readonly #options: LedgersOptions;
  /** The batch of each host that is being taken: the next waits for it, so that order on the wire stays order. */
  readonly #taking = new Map<string, Promise<void>>();
  /** Hosts whose fork this control plane has put on record. */
  readonly #forked = new Set<string>();

  constructor(options: LedgersOptions) {
    this.#options = options;
  }

  /** Takes what hosts ship, one batch of a host at a time. */
  async consume(bus: Bus): Promise<AsyncDisposable> {
    await bus.ensureStream({
      name: ledgerStream,
      subjects: [anyHostUp('ledger')],
      retention: 'workqueue',
      maxBytes: 1_073_741_824,
      maxMessages: 1_000_000,
      // One host cannot fill the stream for all.
      maxMessagesPerSubject: 1_024,
    });
    return bus.consume(ledgerStream, 'control-plane', (message) => this.#inOrder(bus, message), {
      maxAckPending: 64,
    });
  }

  async #inOrder(bus: Bus, message: DurableMessage): Promise<void> {
    const before = this.#taking.get(message.subject) ?? Promise.resolve();
    const mine = before.then(() => this.#take(bus, message));
    this.#taking.set(message.subject, mine);
    await mine;
    if (this.#taking.get(message.subject) === mine) this.#taking.delete(message.subject);
  }

  async #take(bus: Bus, message: DurableMessage): Promise<void> {
    const { log } = this.#options;
    const hostId = hostOf(message.subject);
    try {
      const { head, gap } = await traced('ledger.ingest', { parent: message.headers }, () =>
        this.#ingest(hostId, message.data),
      );
      // What lies before may be in the hands of another control plane: asked for only when it does not turn up.
      if (gap && message.deliveries < ledgerGapDeliveriesMax) {
        message.nak(ledgerGapPauseMs * message.deliveries);
        return;
      }
      // The receipt follows the commit; should it be lost, the host sends again and gets it again.
      if (hostId !== undefined && head !== undefined) {
        const receipt = await this.#options.authority.signReceipt({
          host: hostId,
          ...head,
          at: this.#options.now().toISOString(),
        });
        bus.publish(hostDown(hostId, 'ledger'), encodeJson({ receipt }));
      }
      message.ack();
    } catch (error) {
      if (error instanceof CustodyError && error.code === 'ledger_rejected') {
        log.error({ err: error, hostId }, 'a ledger batch was refused');
        message.ack();
        return;
      }
      log.warn({ err: error, hostId }, 'a ledger batch could not be kept; it comes again');
      message.nak(redeliveryMs);
    }
  }

  /** Returns the head now held, for the receipt: undefined where nothing of that host is held. */
  async #ingest(
    hostId: string | undefined,
    data: Uint8Array,
  ): Promise<{ head: store.ChainHead | undefined; gap: boolean }> {
    const { db, now, news, log } = this.#options;
    const host = hostId === undefined ? undefined : await hostById(db, hostId);
    if (host === undefined) throw new CustodyError('ledger_rejected', `no host ${hostId} is enrolled`);
    const rows = await checkBatch(host.id, host.signingKey, data);
    const result = await store.ingestLedger(db, rows, now());
    switch (result.outcome) {
      case 'held':
        entriesIngested.add(result.added);
        for (const row of rows) ingestLag.record(Math.max(0, now().getTime() - row.at.getTime()));
        if (result.added > 0) news.announce();
        return { head: result.head, gap: false };
      case 'gap':
        log.warn(
          { host: host.name, held: result.head?.seq ?? 0, offered: rows[0]?.seq },
          'a ledger has a gap; waiting for what lies before',
        );
        return { head: result.head, gap: true };
      case 'fork':
        // The host sends it again and again; once is evidence enough.
        if (!this.#forked.has(host.id)) await this.#recordFork(host.id, result);
        this.#forked.add(host.id);
        log.error({ host: host.name, seq: result.seq }, 'a host signed two different entries for one place');
        return { head: result.head, gap: false };
    }
  }

  async #recordFork(hostId: string, fork: Extract<store.Ingested, { outcome: 'fork' }>): Promise<void> {
    const { db, authority, now } = this.#options;
    const { seq, held, offered, head } = fork;
    const entry = authority.entry('ledger_forked', now(), {
      hostId,
      chainEpoch: head.epoch,
      seq,
      held,
      offered,
    });
    await transaction(db, (tx) => store.appendOwn(store.onPrisma(tx), authority.author, entry), {
      operation: 'record fork',
    });
  }

  /** Puts a fact about the control plane itself on record. */
  async recordStart(version: string): Promise<void> {
    const { db, authority, now } = this.#options;
    const entry = authority.entry('control_plane_started', now(), { version });
    await transaction(db, (tx) => store.appendOwn(store.onPrisma(tx), authority.author, entry), {
      operation: 'record start',
    });
  }

  async authors(): Promise<LedgerAuthorView[]> {
    const { db, authority } = this.#options;
    const [rows, hosts] = await Promise.all([store.ledgerAuthors(db), listHosts(db)]);
    const known = new Map(hosts.map((host) => [host.id, host]));
    return rows.flatMap((row) => {
      const host = known.get(row.author);
      if (row.author === authority.author)
        return [{ ...row, name: row.author, publicKey: authority.publicKey }];
      return host === undefined ? [] : [{ ...row, name: host.name, publicKey: host.signingKey }];
    });
  }

  /** One chain, in its order. */
  async chain(author: string, epoch: number, afterSeq: number): Promise<LedgerLine[]> {
    return this.#named(await store.chainLines(this.#options.db, author, epoch, afterSeq, listRowsMax));
  }

  /**
   * All chains, or one author's, in order of ingestion, and where to go on: nothing at or before `next` can still come. After
   * `after`; without it, the newest. With `waitMs`: where there is nothing new, waits for news, at most that long.
   */
  async tail(asked: {
    readonly author: string | undefined;
    readonly after: number | undefined;
    readonly waitMs: number;
  }): Promise<{ lines: LedgerLine[]; next: number }> {
    const { db, news } = this.#options;
    const { author, after, waitMs } = asked;
    const signal = AbortSignal.timeout(waitForReceiptMsDefault);
    if (after === undefined) {
      const next = await settledHead(db, signal);
      const newest = await store.newestLines(db, { author, after: 0, upTo: next }, eventsShownDefault);
      return { lines: await this.#named(newest), next };
    }
    const waited = AbortSignal.timeout(waitMs);
    let next = after;
    for (;;) {
      using heard = news.listen();
      next = (await settledAfter(db, after, listRowsMax, signal)).at(-1)?.ordinal ?? after;
      if (next !== after || waitMs === 0 || waited.aborted) break;
      // What another control plane takes in is no news here.
      await heard.next(Math.min(waitMs, eventPollMs));
    }
    const found = await store.newestLines(db, { author, after, upTo: next }, listRowsMax);
    return { lines: await this.#named(found), next };
  }

  async #named(rows: readonly store.LineRow[]): Promise<LedgerLine[]> {
    if (rows.length === 0) return [];
    const names = new Map((await this.authors()).map((each) => [each.author, each.name]));
    return rows.map((row) => ({
      ordinal: row.ordinal,
      author: row.author,
      name: names.get(row.author) ?? row.author,
      ingestedAt: row.ingestedAt.toISOString(),
      line: `${Buffer.from(row.bytes).toString('utf8')} ${toBase64url(row.signature)}`,
    }));
  }

  /** One row a credential a run held: who, where, in which tree, from when to when. */
  async possession(path: string, from: Date | undefined, to: Date | undefined): Promise<PossessionRow[]> {
    const facts = await store.possession(this.#options.db, path, from, to);
    return facts.flatMap((fact) => {
      const released = hostKinds.released.parse(fact.released);
      const ended = hostKinds.ended.safeParse(fact.ended).data;
      const started = hostKinds.started.safeParse(fact.started).data;
      return released.credentials
        .filter((held) => held.path === path)
        .map((held) => ({
          ...held,
          host: fact.host,
          subject: released.subject,
          uid: released.uid,
          grantId: released.grantId,
          runId: released.runId,
          command: released.command,
          from: fact.from.toISOString(),
          ...(fact.to === undefined ? {} : { to: fact.to.toISOString() }),
          ...(ended === undefined ? {} : { cause: ended.cause }),
          ...(started === undefined ? {} : { rootPid: started.pid }),
          processes: (ended?.rows ?? []).filter((row) => row.pid !== started?.pid),
          entry: { epoch: fact.epoch, seq: fact.seq },
        }));
    });
  }
}

/** Lines as a host sent them: consecutive, linked, signed by that host's key. Throws `ledger_rejected`. */
async function checkBatch(hostId: string, publicKey: string, data: Uint8Array): Promise<store.LedgerRow[]> {
  const refuse = (why: string): CustodyError =>
    new CustodyError('ledger_rejected', `a ledger batch of ${hostId}: ${why}`);
  if (data.byteLength > ledgerBatchBytesMax * 2) throw refuse('too large');
  const text = Buffer.from(data);
  if (text.at(-1) !== 0x0a) throw refuse('it does not end with a line feed');
  const lines = text.subarray(0, -1).toString('utf8').split('\n');
  if (lines.length > ledgerBatchEntriesMax) throw refuse(`${lines.length} entries`);
  let parsed;
  try {
    parsed = lines.map((line) => parseLine(line));
  } catch (cause) {
    throw new CustodyError('ledger_rejected', `a ledger batch of ${hostId} does not parse`, { cause });
  }
  const [first] = parsed;
  if (first === undefined) throw refuse('empty');
  const { epoch, seq, prev } = first.entry;
  const from = { epoch, seq: seq - 1, hash: prev };
  const verdict = await verifyChain(lines, { host: hostId, publicKey, from });
  if (!verdict.ok) throw refuse(`entry ${verdict.seq}: ${verdict.problem}: ${verdict.detail}`);
  if (parsed.some((line) => line.entry.epoch !== epoch)) throw refuse('two chain epochs in one batch');
  return parsed.map(toRow);
}
