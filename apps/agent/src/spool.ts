// Owns the host's ledger on disk: appends that are durable before they resolve, and what the control plane has yet to confirm.
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CustodyError } from '@custody/core/errors';
import {
  ledgerBatchBytesMax,
  ledgerBatchEntriesMax,
  ledgerReceiptKeepMs,
  ledgerSegmentBytesMax,
  spoolBytesMax,
} from '@custody/core/limits';
import { writeFileAtomic } from '@custody/crypto/keyfiles';
import type { SigningKey } from '@custody/crypto/keys';
import type { JsonObject } from '@custody/ledger/canonical';
import { appendEntry, emptyHead, nextEpoch, type Head } from '@custody/ledger/chain';
import { parseLine, type LedgerEntry, type LedgerLine } from '@custody/ledger/entry';
import { LedgerError } from '@custody/ledger/errors';
import { verifyLedgerReceipt, type LedgerReceipt } from '@custody/ledger/receipts';
import type { HostBody, HostKind } from '@custody/wire/ledger';
import { Segment } from './segment.ts';

const receiptFile = 'receipt';

interface Waiting {
  readonly kind: HostKind;
  readonly epoch: number;
  readonly seq: number;
  readonly line: Uint8Array;
  readonly done: PromiseWithResolvers<void>;
}

export interface SpoolOptions {
  /** The folder, 0700. One agent at a time. */
  readonly dir: string;
  readonly hostId: string;
  readonly signingKey: SigningKey;
  /** Whose receipts free the spool. */
  readonly controlPlaneKey: string;
  readonly wallClock: () => Date;
  readonly bootMs: () => number;
  /** Default `ledgerReceiptKeepMs`; 0: a receipt is on disk when `confirm` resolves. */
  readonly receiptKeepMs?: number;
  /** Default `ledgerSegmentBytesMax`. */
  readonly segmentBytesMax?: number;
}

/** A place in the chain. */
export type Place = Pick<Head, 'epoch' | 'seq'>;

/** What the control plane has confirmed to hold: the head of its receipt. */
export type Confirmed = Head;

/**
 * The append side orders entries when `append` is called and writes them in groups: one write and one
 * fdatasync for all that wait. When a write fails the spool stays failed: nothing can be put on record,
 * so nothing may be released (invariant 2).
 *
 * `#head` and `#waiting` belong to append; `#segments` to the writer; `#confirmed` to receipts.
 */
export class Spool implements AsyncDisposable {
  readonly #options: SpoolOptions;
  readonly #segments: Segment[];
  #head: Head | undefined;
  #confirmed: Confirmed;
  #waiting: Waiting[] = [];
  #writing: Promise<void> | undefined;
  /** The newest receipt that is not on disk yet. */
  #unkept: string | undefined;
  #keeping: NodeJS.Timeout | undefined;
  #failed: unknown;
  #pinnedSeq: () => number = () => Number.POSITIVE_INFINITY;
  #appended: (kinds: readonly HostKind[]) => void = () => {};

  private constructor(
    options: SpoolOptions,
    segments: Segment[],
    head: Head | undefined,
    confirmed: Confirmed,
  ) {
    this.#options = options;
    this.#segments = segments;
    this.#head = head;
    this.#confirmed = confirmed;
  }

  /**
   * Opens the folder, cuts a torn last line (a crash in mid-write: it was never acknowledged), and gives
   * every entry still on disk to `replay`, in order.
   */
  static async open(options: SpoolOptions, replay: (entry: LedgerEntry) => void): Promise<Spool> {
    await mkdir(options.dir, { recursive: true, mode: 0o700 });
    const segments = await Segment.list(options.dir);
    const confirmed = await readConfirmed(options);
    let head: Head | undefined;
    for (const segment of segments) {
      const { lines, torn } = await segment.load();
      if (torn && segment !== segments.at(-1))
        throw damaged(segment.path, 'its last line is torn but later segments exist');
      if (torn) await segment.cut();
      for (const line of lines) {
        const { entry, hash } = readEntry(segment.path, line);
        if (head !== undefined && !follows(head, entry))
          throw damaged(segment.path, `entry ${entry.seq} does not follow`);
        head = { epoch: entry.epoch, seq: entry.seq, hash };
        replay(entry);
      }
    }
    // Entries were confirmed that are not here: this host lost some of its ledger, and says so by a new chain epoch.
    if (confirmed.seq > 0 && isBefore(head ?? emptyHead, confirmed)) head = nextEpoch(confirmed);
    return new Spool(options, segments, head, confirmed);
  }

  get head(): Head | undefined {
    return this.#head;
  }

  get confirmed(): Confirmed {
    return this.#confirmed;
  }

  get unconfirmed(): number {
    if (this.#head === undefined) return 0;
    return this.#head.epoch === this.#confirmed.epoch ? this.#head.seq - this.#confirmed.seq : this.#head.seq;
  }

  /** Called after each group is durable, with the kinds in it. One listener: the shipper. */
  onAppended(listener: (kinds: readonly HostKind[]) => void): void {
    this.#appended = listener;
  }

  /** Segments that hold entries from this sequence number on are kept, confirmed or not: open runs stand there. */
  pinFrom(lowestSeq: () => number): void {
    this.#pinnedSeq = lowestSeq;
  }

  /** Resolves with the entry's sequence number once it is on disk. Rejects with `unavailable` when it cannot be. */
  append<Kind extends HostKind>(kind: Kind, body: HostBody<Kind>): Promise<number> {
    const blocked = this.#blocked();
    if (blocked !== undefined) return Promise.reject(blocked);
    const { line, entry, head } = appendEntry(
      this.#head,
      {
        host: this.#options.hostId,
        at: this.#options.wallClock().toISOString(),
        boot_ms: Math.floor(this.#options.bootMs()),
        kind,
        body: body as unknown as JsonObject,
      },
      this.#options.signingKey,
    );
    this.#head = head;
    const done = Promise.withResolvers<void>();
    this.#waiting.push({ kind, epoch: entry.epoch, seq: entry.seq, line, done });
    this.#writing ??= this.#write();
    return done.promise.then(() => entry.seq);
  }

  /** The next lines after `after`, as stored, up to one batch; undefined where there are none. */
  async read(after: Place): Promise<{ bytes: Uint8Array; through: Place } | undefined> {
    const head = this.#head;
    if (head === undefined || (head.epoch === after.epoch && head.seq <= after.seq)) return undefined;
    const next = head.epoch === after.epoch ? after.seq + 1 : 1;
    const segment = this.#segments.findLast((each) => each.epoch === head.epoch && each.firstSeq <= next);
    if (segment === undefined) return undefined;
    const bounds = { entriesMax: ledgerBatchEntriesMax, bytesMax: ledgerBatchBytesMax };
    const batch = await segment.read(next, bounds);
    if (batch === undefined) return undefined;
    return { bytes: batch.bytes, through: { epoch: head.epoch, seq: next + batch.entries - 1 } };
  }

  /**
   * Takes a signed receipt. Returns what it says is held, and what is confirmed by all so far; frees whole segments
   * that it covers. Throws when the signature is not the control plane's or the chain it names is not ours.
   */
  async confirm(receipt: string): Promise<{ held: LedgerReceipt; confirmed: Confirmed }> {
    const held = await verifyLedgerReceipt(this.#options.controlPlaneKey, receipt);
    if (held.host !== this.#options.hostId)
      throw new CustodyError('ledger_rejected', 'a receipt for another host');
    const ahead = isBefore(this.#confirmed, held);
    const hash = await this.#hashOf(held);
    // What was freed says nothing about a receipt of before.
    if (hash !== held.hash && (ahead || hash !== undefined)) {
      throw new CustodyError(
        'ledger_rejected',
        `the control plane holds an entry ${held.seq} that is not this chain's`,
        {
          next: 'this host or its ledger was copied; enrol it again under a new name',
        },
      );
    }
    // Another receipt may have been taken while the disk was read.
    if (!isBefore(this.#confirmed, held)) return { held, confirmed: this.#confirmed };
    this.#confirmed = { epoch: held.epoch, seq: held.seq, hash: held.hash };
    this.#unkept = receipt;
    const keepMs = this.#options.receiptKeepMs ?? ledgerReceiptKeepMs;
    if (keepMs === 0) await this.#keep();
    else this.#keepSoon(keepMs);
    return { held, confirmed: this.#confirmed };
  }

  /** Whether everything after that place is still here. */
  holdsAfter(place: Place): boolean {
    const { epoch = place.epoch } = this.#head ?? {};
    const next = epoch === place.epoch ? place.seq + 1 : 1;
    return this.#segments.some((each) => each.epoch === epoch && each.firstSeq <= next);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing;
    clearTimeout(this.#keeping);
    await this.#keep();
    for (const segment of this.#segments) await segment.close();
  }

  #blocked(): CustodyError | undefined {
    if (this.#failed !== undefined) {
      return new CustodyError('unavailable', 'the ledger of this host cannot be written', {
        next: `look at the disk under ${this.#options.dir}, then start the agent again`,
        cause: this.#failed,
      });
    }
    const bytes = this.#segments.reduce((sum, segment) => sum + segment.bytes, 0);
    if (bytes < spoolBytesMax) return undefined;
    return new CustodyError('unavailable', `the ledger spool of this host is full (${bytes} bytes)`, {
      next: 'it empties when the control plane can be reached',
    });
  }

  async #write(): Promise<void> {
    // Lets every append of this turn join the group.
    await Promise.resolve();
    while (this.#waiting.length > 0) {
      const group = this.#waiting.splice(0);
      try {
        await this.#writeGroup(group);
        for (const { done } of group) done.resolve();
        this.#appended(group.map(({ kind }) => kind));
      } catch (cause) {
        this.#failed = cause;
        const error = this.#blocked();
        for (const { done } of [...group, ...this.#waiting.splice(0)]) done.reject(error);
      }
    }
    this.#writing = undefined;
  }

  async #writeGroup(group: readonly Waiting[]): Promise<void> {
    const [first] = group;
    if (first === undefined) return;
    let segment = this.#segments.at(-1);
    if (
      segment === undefined ||
      segment.epoch !== first.epoch ||
      segment.bytes > (this.#options.segmentBytesMax ?? ledgerSegmentBytesMax)
    ) {
      segment = await Segment.create(this.#options.dir, first.epoch, first.seq);
      this.#segments.push(segment);
    }
    await segment.append(group.map(({ line }) => line));
  }

  /** The hash of the entry at a place of this chain; undefined where there is none. */
  async #hashOf({ epoch, seq }: Place): Promise<string | undefined> {
    const head = this.#head;
    if (head === undefined || isBefore(head, { epoch, seq })) return undefined;
    if (head.epoch === epoch && head.seq === seq) return head.hash;
    const segment = this.#segments.findLast((each) => each.epoch === epoch && each.firstSeq <= seq);
    if (segment === undefined) return undefined;
    const found = await segment.read(seq, { entriesMax: 1, bytesMax: 0 });
    return found === undefined ? undefined : parseLine(found.bytes.subarray(0, -1)).hash;
  }

  /** A receipt that is lost costs a batch sent again, so it need not be on disk at once; freeing waits until it is. */
  #keepSoon(afterMs: number): void {
    this.#keeping ??= setTimeout(() => {
      this.#keeping = undefined;
      this.#keep().catch((error: unknown) => (this.#failed ??= error));
    }, afterMs);
  }

  async #keep(): Promise<void> {
    const receipt = this.#unkept;
    if (receipt === undefined) return;
    this.#unkept = undefined;
    await writeFileAtomic(join(this.#options.dir, receiptFile), new TextEncoder().encode(receipt), 0o600);
    await this.#free();
  }

  async #free(): Promise<void> {
    const pinned = this.#pinnedSeq();
    while (this.#segments.length > 1) {
      const [oldest, next] = this.#segments;
      if (oldest === undefined || next === undefined) return;
      // Nothing is owed of an epoch that was left behind, but an open run may still stand there.
      const owedFrom = oldest.epoch < this.#confirmed.epoch ? pinned : this.#confirmed.seq + 1;
      const covered = oldest.epoch === next.epoch && next.firstSeq <= Math.min(owedFrom, pinned);
      const left = oldest.epoch < next.epoch && pinned === Number.POSITIVE_INFINITY;
      if (!covered && !left) return;
      this.#segments.shift();
      await oldest.remove();
    }
  }
}

function isBefore(a: Place, b: Place): boolean {
  return a.epoch < b.epoch || (a.epoch === b.epoch && a.seq < b.seq);
}

/** A new epoch follows what the control plane held when it began: that need not be here. */
function follows(head: Head, entry: LedgerEntry): boolean {
  if (entry.epoch === head.epoch) return entry.seq === head.seq + 1 && entry.prev === head.hash;
  return entry.epoch > head.epoch && entry.seq === 1;
}

function readEntry(path: string, line: Uint8Array): LedgerLine {
  try {
    return parseLine(line);
  } catch (error) {
    throw error instanceof LedgerError ? damaged(path, error.publicMessage) : error;
  }
}

async function readConfirmed(options: SpoolOptions): Promise<Confirmed> {
  let receipt: string;
  try {
    receipt = await readFile(join(options.dir, receiptFile), 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return emptyHead;
    throw error;
  }
  const { epoch, seq, hash } = await verifyLedgerReceipt(options.controlPlaneKey, receipt);
  return { epoch, seq, hash };
}

function damaged(path: string, why: string): CustodyError {
  return new CustodyError('ledger_rejected', `the ledger ${path} is damaged: ${why}`, {
    next: `custody ledger verify --file ${path} names the first bad entry; keep the file as evidence`,
  });
}
