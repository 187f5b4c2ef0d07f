// Owns one entry and its line: the bytes, their hash, and what the signature is made over. Spec: docs/spec/ledger.md.
import { hash } from 'node:crypto';
import { fromBase64url } from '@custody/crypto/base64url';
import { ledgerEntryBytesMax } from '@custody/core/limits';
import { canonicalObject, isPlainObject, type JsonObject } from './canonical.ts';
import { LedgerError } from './errors.ts';

export interface LedgerEntry {
  readonly v: 1;
  readonly host: string;
  /** The generation of the chain, from 1. */
  readonly epoch: number;
  /** Within the epoch, from 1. */
  readonly seq: number;
  /** RFC 3339, UTC, milliseconds. For people. */
  readonly at: string;
  /** Milliseconds on the host's boot-time clock. */
  readonly boot_ms: number;
  readonly kind: string;
  /** The hash of the entry before. */
  readonly prev: string;
  readonly body: JsonObject;
}

export interface LedgerLine {
  readonly entry: LedgerEntry;
  /** The entry's own bytes, as they stand in the line. */
  readonly bytes: Uint8Array;
  /** 64 lower-case hexadecimal digits. */
  readonly hash: string;
  /** 64 bytes. Not verified by parsing. */
  readonly signature: Uint8Array;
}

/** What stands for "no entry before". */
export const noHash = '0'.repeat(64);
export const signatureChars = 86;
/** Entry, space, signature, line feed. */
export const ledgerLineBytesMax = ledgerEntryBytesMax + 1 + signatureChars + 1;

const entryDomain = Buffer.from('custody-ledger-entry-v1\n');
const signDomain = Buffer.from('custody-ledger-sign-v1\n');
const hostShape = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/;
const kindShape = /^[a-z][a-z_.]{0,63}$/;
const hashShape = /^[0-9a-f]{64}$/;
const timeShape = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const memberCount = 9;

/** The canonical bytes. Throws `bad_entry` naming the member, or `entry_too_large`. */
export function encodeEntry(entry: LedgerEntry): Uint8Array {
  const wrong = wrongMember(entry);
  if (wrong !== undefined)
    throw new LedgerError('bad_entry', `encode ledger entry: ${wrong} is out of range`);
  const bytes = Buffer.from(entryText(entry), 'utf8');
  if (bytes.byteLength <= ledgerEntryBytesMax) return bytes;
  throw new LedgerError(
    'entry_too_large',
    `encode ledger entry: it has ${bytes.byteLength} bytes, more than ${ledgerEntryBytesMax}; shorten its body`,
  );
}

/** SHA-256 under the entry's domain, as 64 hexadecimal digits. */
export function hashEntry(bytes: Uint8Array): string {
  return hash('sha256', Buffer.concat([entryDomain, bytes]), 'hex');
}

/** The bytes that the host signs for an entry of this hash. */
export function signingInput(entryHash: string): Uint8Array {
  return Buffer.concat([signDomain, Buffer.from(entryHash, 'hex')]);
}

/**
 * Reads one line, with or without its line feed. The signature is decoded, not verified. Throws `malformed_line`
 * for anything that a writer of this spec does not write, byte for byte.
 */
export function parseLine(line: Uint8Array | string): LedgerLine {
  const raw = typeof line === 'string' ? Buffer.from(line, 'utf8') : asBuffer(line);
  const all = raw.at(-1) === 0x0a ? raw.subarray(0, -1) : raw;
  const cut = all.byteLength - signatureChars - 1;
  if (cut > ledgerEntryBytesMax) throw malformed('it is too long');
  if (cut < 2 || all[cut] !== 0x20) throw malformed('it is not an entry, a space and a signature');
  const signature = fromBase64url(all.toString('latin1', cut + 1), 64);
  if (!signature) throw malformed('its signature is not 86 characters of base64url');
  const bytes = all.subarray(0, cut);
  return { entry: parseEntry(bytes), bytes, hash: hashEntry(bytes), signature };
}

export function isHash(text: unknown): text is string {
  return typeof text === 'string' && hashShape.test(text);
}

export function isHostId(text: unknown): text is string {
  return typeof text === 'string' && hostShape.test(text);
}

/** An integer from 1 to 2^53-1: an epoch or a seq. */
export function isOrdinal(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 1;
}

/** UTC with milliseconds, and a date that exists. */
export function isInstant(text: unknown): text is string {
  if (typeof text !== 'string' || !timeShape.test(text)) return false;
  const ms = Date.parse(text);
  return Number.isFinite(ms) && new Date(ms).toISOString() === text;
}

function parseEntry(bytes: Buffer): LedgerEntry {
  const text = bytes.toString('utf8');
  const value = parseJson(text);
  if (!isPlainObject(value) || Object.keys(value).length !== memberCount)
    throw malformed('it is not an entry object');
  const wrong = wrongMember(value);
  if (wrong !== undefined) throw malformed(`its ${wrong} is missing or out of range`);
  const entry = value as unknown as LedgerEntry; // Every member was checked just now.
  if (!spelledBy(entry, text)) throw malformed('it is not in canonical form');
  // Bytes that are not UTF-8 became U+FFFD in the text: the comparison of bytes refuses them.
  if (text.includes('\uFFFD') && !Buffer.from(text, 'utf8').equals(bytes)) throw malformed('it is not UTF-8');
  return entry;
}

function spelledBy(entry: LedgerEntry, text: string): boolean {
  try {
    return entryText(entry) === text;
  } catch (cause) {
    if (cause instanceof LedgerError) throw malformed('its body has no canonical form', cause);
    throw cause;
  }
}

function entryText(entry: LedgerEntry): string {
  // host, at, kind and prev hold no character that JSON escapes: their shapes say so.
  return (
    `{"v":1,"host":"${entry.host}","epoch":${entry.epoch},"seq":${entry.seq},"at":"${entry.at}",` +
    `"boot_ms":${entry.boot_ms},"kind":"${entry.kind}","prev":"${entry.prev}","body":${canonicalObject(entry.body)}}`
  );
}

/** The first member that is out of range, or undefined. Looks into everything but the body's inside. */
function wrongMember(entry: Partial<Record<keyof LedgerEntry, unknown>>): keyof LedgerEntry | undefined {
  if (entry.v !== 1) return 'v';
  if (!isHostId(entry.host)) return 'host';
  if (!isOrdinal(entry.epoch)) return 'epoch';
  if (!isOrdinal(entry.seq)) return 'seq';
  if (!isInstant(entry.at)) return 'at';
  if (!Number.isSafeInteger(entry.boot_ms) || (entry.boot_ms as number) < 0) return 'boot_ms';
  if (Object.is(entry.boot_ms, -0)) return 'boot_ms';
  if (typeof entry.kind !== 'string' || !kindShape.test(entry.kind)) return 'kind';
  if (!isHash(entry.prev)) return 'prev';
  // Only the very first entry of a ledger has nothing before it; a later epoch may know no head.
  if (entry.epoch === 1 && (entry.prev === noHash) !== (entry.seq === 1)) return 'prev';
  if (!isPlainObject(entry.body)) return 'body';
  return undefined;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw malformed('it is not JSON'); // No cause: V8's message quotes the text.
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function malformed(why: string, cause?: unknown): LedgerError {
  return new LedgerError('malformed_line', `read ledger line: ${why}`, { cause });
}
