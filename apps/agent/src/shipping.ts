// Owns the way of ledger lines from the spool to the control plane: batches up, signed receipts down.
import type { Bus } from '@custody/bus/bus';
import { ledgerLingerMs, ledgerReceiptTimeoutMs } from '@custody/core/limits';
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
}

/**
 * Sends what the spool holds beyond what was sent. A receipt that stays behind what was sent for longer
 * than `ledgerReceiptTimeoutMs` rewinds to it: JetStream is transport, and may lose; the spool does not.
 */
export class Shipper implements AsyncDisposable {
  readonly #options: ShipperOptions;
  readonly #stopping = new AbortController();
  #sent: Place;
  #nudged = Promise.withResolvers<void>();
  #loop: Promise<void> | undefined;
  #subscription: AsyncDisposable | undefined;
  #rewind: NodeJS.Timeout | undefined;
  #linger: NodeJS.Timeout | undefined;

  constructor(options: ShipperOptions) {
    this.#options = options;
    this.#sent = options.spool.confirmed;
  }

  async start(): Promise<void> {
    const { bus, spool, hostId } = this.#options;
    this.#subscription = await bus.subscribe(
      hostDown(hostId, 'ledger'),
      ({ data }) => void this.#receipt(data),
    );
    spool.onAppended((kinds) =>
      kinds.includes('receipt') || kinds.includes('banned') ? this.nudge() : this.#nudgeSoon(),
    );
    this.#loop = this.#run();
  }

  /** There may be something to send: after an append, a reconnect, a rewind. */
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

  /** Starts again from what is confirmed. */
  resend(): void {
    this.#sent = this.#options.spool.confirmed;
    this.nudge();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort();
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
        const batch = bus.connected ? await spool.read(this.#sent) : undefined;
        if (batch === undefined) {
          await this.#nudged.promise;
          continue;
        }
        await bus.publishDurable(hostUp(hostId, 'ledger'), batch.bytes, {
          timeoutMs: ledgerReceiptTimeoutMs,
        });
        this.#sent = batch.through;
        this.#expectReceipt();
      } catch (error) {
        log.warn({ err: error }, 'shipping the ledger failed; it stays in the spool');
        this.#expectReceipt();
        await this.#nudged.promise;
      }
    }
  }

  #expectReceipt(): void {
    clearTimeout(this.#rewind);
    this.#rewind = setTimeout(() => this.resend(), ledgerReceiptTimeoutMs);
  }

  async #receipt(data: Uint8Array): Promise<void> {
    const { spool, log } = this.#options;
    try {
      const { receipt } = parseJson(ledgerReceiptMessage, data, 'ledger receipt');
      const before = spool.confirmed;
      const confirmed = await spool.confirm(receipt);
      const behind = isBehind(confirmed, this.#sent);
      if (!behind) clearTimeout(this.#rewind);
      // A receipt that says nothing new answers a batch that could not be added: what lies before it is missing.
      else if (confirmed.epoch === before.epoch && confirmed.seq === before.seq) this.resend();
    } catch (error) {
      log.error({ err: error }, 'a ledger receipt was refused');
    }
  }
}

function isBehind(confirmed: Place, sent: Place): boolean {
  return confirmed.epoch < sent.epoch || (confirmed.epoch === sent.epoch && confirmed.seq < sent.seq);
}
