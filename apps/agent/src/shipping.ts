// Owns the way of ledger lines from the spool to the control plane: batches up, signed receipts down.
import type { Bus } from '@custody/bus/bus';
import { ledgerLingerMs, ledgerReceiptTimeoutMs, ledgerResendMsMax } from '@custody/core/limits';
import type { LedgerReceipt } from '@custody/ledger/receipts';
import { ledgerReceiptMessage } from '@custody/wire/messages';
import { parseJson } from '@custody/wire/schema';
import { hostDown, hostUp } from '@custody/wire/subjects';
import type { Log } from './log.ts';
import type { Place, Spool } from './spool.ts';

export interface ShipperOptions {
  readonly bus: Bus;
  readonly spool: Spool;
  readonly hostId: string;
  readonly log: Log;
  /** Default `ledgerReceiptTimeoutMs`. */
  readonly receiptTimeoutMs?: number;
}

/**
 * Sends what the spool holds beyond what was sent, and sends again what stays unconfirmed: JetStream is transport,
 * and may lose; the spool does not. Again means: when the bus is back; once when the control plane says that
 * something before is missing, since each batch behind the gap brings that answer; and after
 * `ledgerReceiptTimeoutMs` without progress, doubling to `ledgerResendMsMax`, since a control plane that is
 * behind is not helped by taking everything twice. A control plane that lost what it had confirmed, as a database does that
 * fails over to a replica which is behind, gets it again as far as it is still here.
 */
export class Shipper implements AsyncDisposable {
  readonly #options: ShipperOptions;
  readonly #stopping = new AbortController();
  #sent: Place;
  /** What was sent when sending began again: until it is confirmed, a gap is no news. */
  #resentThrough: Place | undefined;
  /** Where the control plane stands, while that is before what it has confirmed. */
  #setBack: Place | undefined;
  /** Its newest receipt said so. One may have overtaken another: the second in a row is believed. */
  #seemsSetBack = false;
  #newestReceiptAt = '';
  #patienceMs: number;
  #nudged = Promise.withResolvers<void>();
  #loop: Promise<void> | undefined;
  #subscription: AsyncDisposable | undefined;
  #unlisten: (() => void) | undefined;
  #rewind: NodeJS.Timeout | undefined;
  #linger: NodeJS.Timeout | undefined;

  constructor(options: ShipperOptions) {
    this.#options = options;
    this.#sent = options.spool.confirmed;
    this.#patienceMs = this.#receiptTimeoutMs;
  }

  get #receiptTimeoutMs(): number {
    return this.#options.receiptTimeoutMs ?? ledgerReceiptTimeoutMs;
  }

  async start(): Promise<void> {
    const { bus, spool, hostId } = this.#options;
    this.#subscription = await bus.subscribe(
      hostDown(hostId, 'ledger'),
      ({ data }) => void this.#receipt(data),
    );
    this.#unlisten = bus.onStatus((status) => {
      if (status === 'connected') this.resend();
    });
    spool.onAppended((kinds) =>
      kinds.includes('receipt') || kinds.includes('banned') ? this.nudge() : this.#nudgeSoon(),
    );
    this.#loop = this.#run();
  }

  /** There may be something to send. */
  nudge(): void {
    this.#nudged.resolve();
  }

  /** Entries of one run come in quick succession: they travel together. */
  #nudgeSoon(): void {
    this.#linger ??= setTimeout(() => {
      this.#linger = undefined;
      this.nudge();
    }, ledgerLingerMs);
  }

  /** Starts again from where the control plane stands. */
  resend(): void {
    this.#resentThrough = this.#sent;
    this.#sent = this.#stands;
    this.nudge();
  }

  get #stands(): Place {
    return this.#setBack ?? this.#options.spool.confirmed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort();
    this.#unlisten?.();
    clearTimeout(this.#rewind);
    clearTimeout(this.#linger);
    this.nudge();
    await this.#loop;
    await this.#subscription?.[Symbol.asyncDispose]();
  }

  async #run(): Promise<void> {
    const { bus, spool, hostId, log } = this.#options;
    while (!this.#stopping.signal.aborted) {
      this.#nudged = Promise.withResolvers<void>();
      try {
        const from = this.#sent;
        const batch = bus.connected ? await spool.read(from) : undefined;
        if (batch === undefined) {
          await this.#nudged.promise;
          continue;
        }
        await bus.publishDurable(hostUp(hostId, 'ledger'), batch.bytes, {
          timeoutMs: ledgerReceiptTimeoutMs,
        });
        // Unless sending began again meanwhile.
        if (this.#sent === from) this.#sent = batch.through;
        this.#expectReceipt();
      } catch (error) {
        log.warn({ err: error }, 'shipping the ledger failed; it stays in the spool');
        this.#expectReceipt();
        await this.#nudged.promise;
      }
    }
  }

  /** From the first batch that is not confirmed: what is sent meanwhile buys no more patience. */
  #expectReceipt(): void {
    this.#rewind ??= setTimeout(() => {
      this.#rewind = undefined;
      this.#patienceMs = Math.min(this.#patienceMs * 2, ledgerResendMsMax);
      this.resend();
    }, this.#patienceMs);
  }

  #progress(): void {
    clearTimeout(this.#rewind);
    this.#rewind = undefined;
    this.#patienceMs = this.#receiptTimeoutMs;
  }

  /** True when this receipt shows for the first time that the control plane was set back to where sending can begin again. */
  #isSetBack(held: LedgerReceipt, confirmed: Place): boolean {
    const newer = held.at > this.#newestReceiptAt;
    if (newer) this.#newestReceiptAt = held.at;
    // Whichever came first: it holds all of it again. The clock that wrote `at` may have been set back.
    if (!isBehind(held, confirmed)) {
      this.#seemsSetBack = false;
      this.#setBack = undefined;
      return false;
    }
    if (!newer) return false;
    const [seemed, known] = [this.#seemsSetBack, this.#setBack !== undefined];
    this.#seemsSetBack = this.#options.spool.holdsAfter(held);
    this.#setBack = this.#seemsSetBack && (seemed || known) ? held : undefined;
    return this.#setBack !== undefined && !known;
  }

  async #receipt(data: Uint8Array): Promise<void> {
    const { spool, log } = this.#options;
    try {
      const { receipt } = parseJson(ledgerReceiptMessage, data, 'ledger receipt');
      const before = this.#stands;
      const { held, confirmed } = await spool.confirm(receipt);
      if (this.#isSetBack(held, confirmed)) {
        log.warn(
          { held: held.seq, confirmed: confirmed.seq },
          'the control plane lost entries: sending them again',
        );
        this.resend();
        return this.#expectReceipt();
      }
      const more = isBehind(before, this.#stands);
      if (more) this.#progress();
      if (this.#resentThrough !== undefined && !isBehind(this.#stands, this.#resentThrough))
        this.#resentThrough = undefined;
      if (!isBehind(this.#stands, this.#sent)) return this.#progress();
      // A receipt that says nothing new answers a batch that could not be added: what lies before it is missing.
      if (!more && this.#resentThrough === undefined) this.resend();
      this.#expectReceipt();
    } catch (error) {
      log.error({ err: error }, 'a ledger receipt was refused');
    }
  }
}

function isBehind(confirmed: Place, sent: Place): boolean {
  return confirmed.epoch < sent.epoch || (confirmed.epoch === sent.epoch && confirmed.seq < sent.seq);
}
