// Owns the growing of a chain: from a head and a fact to the next line and the next head. Pure. Spec: docs/spec/ledger.md.
import { toBase64url } from '@custody/crypto/base64url';
import type { SigningKey } from '@custody/crypto/keys';
import {
  encodeEntry,
  hashEntry,
  isHash,
  isOrdinal,
  noHash,
  signingInput,
  type LedgerEntry,
} from './entry.ts';
import { LedgerError } from './errors.ts';

/** The place of an entry and its hash. Seq 0: an epoch without entries, and the `prev` its first will have. */
export interface Head {
  readonly epoch: number;
  readonly seq: number;
  readonly hash: string;
}

/** What the writer knows; the chain adds the rest. */
export type EntryFields = Pick<LedgerEntry, 'host' | 'at' | 'boot_ms' | 'kind' | 'body'>;

export interface AppendedEntry {
  /** The line with its line feed. */
  readonly line: Uint8Array;
  readonly entry: LedgerEntry;
  /** Give it to the next `appendEntry`. */
  readonly head: Head;
}

/** The head of a ledger that has no entry yet. */
export const emptyHead: Head = { epoch: 1, seq: 0, hash: noHash };

/**
 * The head from which a host that lost its spool goes on: the epoch after the last one known. `last` is the head
 * that the control plane holds; where it knows the epoch but holds no entry, give `{ epoch, seq: 0, hash: noHash }`.
 */
export function nextEpoch(last: Head): Head {
  requireHead(last);
  return { epoch: last.epoch + 1, seq: 0, hash: last.hash };
}

/**
 * The line that follows `head` (undefined: an empty ledger). Make it durable before acting on it. Throws `bad_entry`
 * naming the member that is out of range, or `entry_too_large`; the head is then still the old one.
 */
export function appendEntry(head: Head | undefined, fields: EntryFields, key: SigningKey): AppendedEntry {
  const before = requireHead(head ?? emptyHead);
  const { host, at, boot_ms, kind, body } = fields;
  const { epoch } = before;
  const seq = before.seq + 1;
  const entry: LedgerEntry = { v: 1, host, epoch, seq, at, boot_ms, kind, prev: before.hash, body };
  const bytes = encodeEntry(entry);
  const hash = hashEntry(bytes);
  const signature = key.sign(signingInput(hash));
  const line = Buffer.concat([bytes, Buffer.from(` ${toBase64url(signature)}\n`, 'latin1')]);
  return { line, entry, head: { epoch, seq, hash } };
}

/** Gives the head back. Throws `bad_argument` when it is none. */
export function requireHead(head: Head): Head {
  if (isOrdinal(head.epoch) && (head.seq === 0 || isOrdinal(head.seq)) && isHash(head.hash)) return head;
  throw new LedgerError('bad_argument', 'read ledger head: its epoch, seq or hash is out of range');
}
