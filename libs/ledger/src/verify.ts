// Owns the judgement on a chain: sound, or the first bad sequence number and what happened there. Spec: docs/spec/ledger.md.
import { setImmediate } from 'node:timers/promises';
import { requirePublicKey, verifySignature } from '@custody/crypto/keys';
import { emptyHead, requireHead, type Head } from './chain.ts';
import { isHostId, noHash, parseLine, signingInput, type LedgerLine } from './entry.ts';
import { LedgerError } from './errors.ts';

export type ChainProblem =
  | 'edited'
  | 'bad_signature'
  | 'deleted'
  | 'inserted'
  | 'swapped'
  | 'truncated'
  | 'rolled_back'
  | 'split_view'
  | 'wrong_host'
  | 'wrong_epoch'
  | 'malformed';

export interface VerifyOptions {
  readonly host: string;
  /** The host's Ed25519 key, 43 characters of base64url. */
  readonly publicKey: string;
  /** A head already trusted; the lines follow it. Left out: the ledger starts empty. */
  readonly from?: Head;
  /** A head that somebody else saw, at or after `from`: shows truncation, rollback and split view. */
  readonly expect?: Head;
}

export interface SoundChain {
  readonly ok: true;
  readonly entries: number;
  /** Epochs after the first that start within these lines; each was a loss on the host. */
  readonly newEpochs: number;
  readonly head: Head;
}

export interface BrokenChain {
  readonly ok: false;
  readonly epoch: number;
  /** The first bad sequence number. */
  readonly seq: number;
  readonly problem: ChainProblem;
  /** One line for a person: lower case, no full stop, nothing out of a body. */
  readonly detail: string;
  /** Lines before the bad number. They are sound, but for a split view, which may have begun earlier. */
  readonly entriesBefore: number;
}

export type LedgerLines = Iterable<string | Uint8Array> | AsyncIterable<string | Uint8Array>;

/** Entries whose hash is remembered, to tell a repeated line from a number written twice. */
export const rememberedEntriesMax = 1_024;
/** Between two of these the event loop gets its turn: about 4 ms of signatures. */
const entriesPerTurn = 32;

/**
 * Reads the lines once, in order, with bounded memory. What is wrong with them is the answer, not an error; `readLines`'s
 * own `line_too_long` and `torn_line` count as `malformed`. Throws `bad_argument` (host, heads, `expect` before `from`),
 * CryptoError `bad_public_key`, and what the source of the lines throws.
 */
export async function verifyChain(
  lines: LedgerLines,
  options: VerifyOptions,
): Promise<SoundChain | BrokenChain> {
  const { host, publicKey, from = emptyHead, expect } = options;
  if (!isHostId(host)) throw new LedgerError('bad_argument', 'verify ledger: the host id is none');
  requirePublicKey(publicKey);
  requireHead(from);
  if (expect && isBefore(requireHead(expect), from)) {
    throw new LedgerError(
      'bad_argument',
      'verify ledger: the expected head lies before the head to start from',
    );
  }
  const source = new LineSource(lines);
  try {
    return await new Verification(source, host, publicKey, from, expect).run();
  } finally {
    await source.close();
  }
}

type Read = { is: 'line'; line: LedgerLine } | { is: 'malformed'; detail: string } | { is: 'end' };

/** Owns the iterator: turns each item into a parsed line, or the reason why it is none. */
class LineSource {
  readonly #iterator: Iterator<string | Uint8Array> | AsyncIterator<string | Uint8Array>;

  constructor(lines: LedgerLines) {
    this.#iterator = Symbol.asyncIterator in lines ? lines[Symbol.asyncIterator]() : lines[Symbol.iterator]();
  }

  async read(): Promise<Read> {
    try {
      const item = await this.#iterator.next();
      return item.done ? { is: 'end' } : { is: 'line', line: parseLine(item.value) };
    } catch (error) {
      if (error instanceof LedgerError) return { is: 'malformed', detail: error.publicMessage };
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#iterator.return?.();
  }
}

/** The latest heads, `from` among them, in the order of the lines. */
class RecentHeads {
  readonly #heads: Head[] = [];
  #count = 0;

  add(head: Head): void {
    this.#heads[this.#count % rememberedEntriesMax] = head;
    this.#count += 1;
  }

  /** The head `back` entries before the last one (0: the last), or undefined when it is forgotten. */
  before(back: number): Head | undefined {
    const isKept = back >= 0 && back < Math.min(this.#count, rememberedEntriesMax);
    return isKept ? this.#heads[(this.#count - 1 - back) % rememberedEntriesMax] : undefined;
  }

  /** How far before the last one the head of this hash is, or undefined when none is remembered. */
  distanceTo(hash: string): number | undefined {
    for (let back = 0; back < this.#heads.length; back++) {
      if (this.before(back)?.hash === hash) return back;
    }
    return undefined;
  }
}

/** One walk along the lines. `#head` is the last good entry; the place after it is the expected one. */
class Verification {
  readonly #source: LineSource;
  readonly #host: string;
  readonly #publicKey: string;
  readonly #expect: Head | undefined;
  readonly #recent = new RecentHeads();
  #head: Head;
  #entries = 0;
  #newEpochs = 0;

  constructor(source: LineSource, host: string, publicKey: string, from: Head, expect: Head | undefined) {
    this.#source = source;
    this.#host = host;
    this.#publicKey = publicKey;
    this.#head = from;
    this.#expect = expect;
    this.#recent.add(from);
  }

  async run(): Promise<SoundChain | BrokenChain> {
    const wrongStart = this.#contradictsExpect(this.#head);
    if (wrongStart) return wrongStart;
    for (;;) {
      const read = await this.#source.read();
      if (read.is === 'end') return this.#atEnd();
      if (read.is === 'malformed') return this.#broken('malformed', this.#next, read.detail);
      const { line } = read;
      if (!this.#isSound(line)) return await this.#nameDamage(line);
      const broken = this.#accept(line);
      if (broken) return broken;
      if (this.#entries % entriesPerTurn === 0) await setImmediate();
    }
  }

  /** The number that the next entry of this epoch has. */
  get #next(): number {
    return this.#head.seq + 1;
  }

  #isSound(line: LedgerLine): boolean {
    return line.entry.host === this.#host && this.#isInPlace(line) && this.#isSigned(line);
  }

  #isInPlace({ entry }: LedgerLine): boolean {
    if (entry.prev !== this.#head.hash) return false;
    if (entry.epoch === this.#head.epoch) return entry.seq === this.#next;
    return entry.epoch === this.#head.epoch + 1 && entry.seq === 1;
  }

  #isSigned(line: LedgerLine): boolean {
    return verifySignature(this.#publicKey, signingInput(line.hash), line.signature);
  }

  #accept({ entry, hash }: LedgerLine): BrokenChain | undefined {
    if (entry.epoch !== this.#head.epoch) {
      const skipped =
        this.#skipsExpect() ?? this.#contradictsExpect({ ...this.#head, epoch: entry.epoch, seq: 0 });
      if (skipped) return skipped;
    }
    const head: Head = { epoch: entry.epoch, seq: entry.seq, hash };
    const split = this.#contradictsExpect(head);
    if (split) return split;
    this.#head = head;
    this.#recent.add(head);
    this.#entries += 1;
    if (head.seq === 1 && head.epoch > 1) this.#newEpochs += 1;
    return undefined;
  }

  #contradictsExpect(head: Head): BrokenChain | undefined {
    const expect = this.#expect;
    if (expect?.epoch !== head.epoch || expect.seq !== head.seq || expect.hash === head.hash)
      return undefined;
    const detail = `entry ${head.seq} is not the one that was seen: the histories part at or before it`;
    return this.#broken('split_view', Math.max(head.seq, 1), detail, head.epoch);
  }

  /** A new epoch starts here although the old one was seen to go further. */
  #skipsExpect(): BrokenChain | undefined {
    const expect = this.#expect;
    if (expect?.epoch !== this.#head.epoch || expect.seq <= this.#head.seq) return undefined;
    const detail = `a new epoch follows entry ${this.#head.seq}, but entry ${expect.seq} had been seen`;
    return this.#broken('rolled_back', this.#next, detail);
  }

  #atEnd(): SoundChain | BrokenChain {
    const expect = this.#expect;
    if (expect && isBefore(this.#head, expect)) {
      const seen = `entry ${expect.seq} of epoch ${expect.epoch} had been seen`;
      return this.#broken(
        'truncated',
        this.#next,
        `the lines end after entry ${this.#head.seq}, but ${seen}`,
      );
    }
    return { ok: true, entries: this.#entries, newEpochs: this.#newEpochs, head: this.#head };
  }

  // From here on the chain is broken; the rest of the lines is read only to find the right name for it.

  async #nameDamage(line: LedgerLine): Promise<BrokenChain> {
    if (!this.#isSigned(line)) return await this.#nameUnsigned(line);
    const { host, epoch, seq } = line.entry;
    if (host !== this.#host) return this.#broken('wrong_host', this.#next, 'the line is of another host');
    if (epoch !== this.#head.epoch) return await this.#nameOtherEpoch(line);
    if (seq === this.#next) return await this.#nameOtherPrev();
    return seq > this.#next ? await this.#nameLater(line) : await this.#nameEarlier(line);
  }

  async #nameUnsigned(line: LedgerLine): Promise<BrokenChain> {
    const n = this.#next;
    const after = await this.#source.read();
    if (after.is === 'line' && this.#isSound(after.line)) {
      return this.#broken('inserted', n, 'a line that the host did not sign stands before the right one');
    }
    const inPlace = this.#isInPlace(line);
    const successor = after.is === 'line' && isNumberedAfter(after.line, line) ? after.line : undefined;
    const named = successor ? successor.entry.prev === line.hash : this.#expectNames(line);
    if (line.entry.host !== this.#host) {
      const changedHere = inPlace && successor?.entry.host === this.#host && named === false;
      if (!changedHere)
        return this.#broken('wrong_host', n, 'the line is of another host, and not signed by this one');
    } else if (inPlace && named !== false) {
      const detail = named
        ? 'the entry is as it was, but its signature does not verify'
        : 'the signature does not verify; entry or signature was changed';
      return this.#broken('bad_signature', n, detail);
    }
    return this.#broken('edited', n, 'the entry is not the one that the host signed');
  }

  /** Whether `expect` names this line's hash; undefined when it speaks of another place. */
  #expectNames({ entry, hash }: LedgerLine): boolean | undefined {
    const expect = this.#expect;
    return expect?.epoch === entry.epoch && expect.seq === entry.seq ? expect.hash === hash : undefined;
  }

  /** Signed, the right number, and another entry before it than the one that is there. */
  async #nameOtherPrev(): Promise<BrokenChain> {
    const { seq } = this.#head;
    const after = await this.#source.read();
    if (after.is === 'line' && this.#isSound(after.line)) {
      return this.#broken('inserted', this.#next, 'an entry of another history stands before the right one');
    }
    if (this.#entries > 0) {
      return this.#broken(
        'edited',
        seq,
        `entry ${seq + 1} follows another entry ${seq}: one of them was written anew`,
      );
    }
    const detail = `entry ${seq + 1} follows another entry ${seq} than the trusted one`;
    return this.#broken('split_view', Math.max(seq, 1), detail);
  }

  async #nameLater(line: LedgerLine): Promise<BrokenChain> {
    const n = this.#next;
    const { seq } = line.entry;
    const { expected, again } = await this.#searchRest(line);
    if (expected && again)
      return this.#broken('inserted', n, `a copy of entry ${seq} stands before entry ${n}`);
    if (expected) return this.#broken('swapped', n, `entry ${seq} stands where entry ${n} belongs`);
    const gone = seq === n + 1 ? `entry ${n} is missing` : `entries ${n} to ${seq - 1} are missing`;
    return this.#broken('deleted', n, gone);
  }

  async #nameEarlier(line: LedgerLine): Promise<BrokenChain> {
    const n = this.#next;
    const { seq } = line.entry;
    const known = this.#recent.before(this.#head.seq - seq)?.hash; // Within an epoch the numbers have no gap.
    const isCopy = known === undefined ? (await this.#searchRest(line)).expected : known === line.hash;
    if (isCopy) return this.#broken('inserted', n, `entry ${seq} stands once more where entry ${n} belongs`);
    return this.#broken('rolled_back', seq, `after entry ${n - 1} the host wrote entry ${seq} again`);
  }

  async #nameOtherEpoch(line: LedgerLine): Promise<BrokenChain> {
    const n = this.#next;
    const { epoch, seq, prev } = line.entry;
    const older = epoch < this.#head.epoch;
    const { expected, again } = await this.#searchRest(line);
    const where = `entry ${seq} of epoch ${epoch} stands where entry ${n} of epoch ${this.#head.epoch} belongs`;
    if (expected) return this.#broken(again || older ? 'inserted' : 'swapped', n, where);
    if (epoch !== this.#head.epoch + 1) return this.#broken('wrong_epoch', n, where);
    if (seq > 1) return this.#broken('deleted', 1, `the start of epoch ${epoch} is missing`, epoch);
    if (prev === noHash)
      return this.#broken('wrong_epoch', 1, `epoch ${epoch} does not follow the one before`, epoch);
    const back = this.#recent.distanceTo(prev);
    const setAside = back === undefined ? undefined : this.#recent.before(back - 1);
    if (back !== undefined && setAside) {
      const detail = `epoch ${epoch} goes on from an earlier entry and sets ${back} aside`;
      return this.#broken('rolled_back', setAside.seq, detail, setAside.epoch, back);
    }
    return this.#broken('deleted', n, `epoch ${epoch} follows an entry that is missing here`);
  }

  /** Whether the sound entry of the expected place, and this very line once more, come anywhere later. */
  async #searchRest(line: LedgerLine): Promise<{ expected: boolean; again: boolean }> {
    let expected = false;
    let again = false;
    for (let turn = 1; !(expected && again); turn++) {
      const read = await this.#source.read();
      if (read.is === 'end') break;
      if (read.is === 'line') {
        again ||= read.line.hash === line.hash;
        expected ||= this.#isSound(read.line);
      }
      if (turn % 1_024 === 0) await setImmediate();
    }
    return { expected, again };
  }

  /** `inDoubt`: how many of the lines counted as good lie at or after the bad place. */
  #broken(
    problem: ChainProblem,
    seq: number,
    detail: string,
    epoch: number = this.#head.epoch,
    inDoubt: number = epoch === this.#head.epoch ? Math.max(this.#next - seq, 0) : 0,
  ): BrokenChain {
    return { ok: false, epoch, seq, problem, detail, entriesBefore: Math.max(this.#entries - inDoubt, 0) };
  }
}

function isNumberedAfter(after: LedgerLine, before: LedgerLine): boolean {
  const { epoch, seq } = before.entry;
  if (after.entry.epoch === epoch) return after.entry.seq === seq + 1;
  return after.entry.epoch === epoch + 1 && after.entry.seq === 1;
}

function isBefore(a: Head, b: Head): boolean {
  return a.epoch < b.epoch || (a.epoch === b.epoch && a.seq < b.seq);
}
