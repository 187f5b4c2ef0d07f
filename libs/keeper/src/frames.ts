// Owns the bytes between keeper and agent: encode, read and look up frames of docs/spec/keeper.md.
import { Buffer, isUtf8 } from 'node:buffer';
import { KeeperError, type KeeperErrorCode } from './error.ts';

export const payloadBytesMax = 1_048_576;
export const valueBytesMax = 131_072;
export const nameBytesMax = 32;
export const fieldsMax = 16_384;
const headBytes = 4;

export const verbs = [
  'request',
  'note',
  'granted',
  'refused',
  'started',
  'failed',
  'fresh',
  'end',
  'ended',
  'resume',
  'adopted',
  'status',
] as const;
export type Verb = (typeof verbs)[number];

export interface Frame {
  readonly verb: Verb;
  /** In the order of the wire. Values are bytes: argv and environment need not be UTF-8. */
  readonly fields: readonly (readonly [key: string, value: Buffer])[];
}

/** A string is sent as UTF-8; bytes go as they are; a number must be a non-negative safe integer. */
export interface FrameToSend {
  readonly verb: Verb;
  readonly fields: readonly (readonly [key: string, value: Uint8Array | string | number])[];
}

const namePattern = /^[a-z_]{1,32}$/;

function isVerb(word: string): word is Verb {
  return (verbs as readonly string[]).includes(word);
}

function bytesOf(key: string, value: Uint8Array | string | number): Uint8Array {
  if (typeof value === 'number') {
    if (Number.isSafeInteger(value) && value >= 0) return Buffer.from(String(value), 'latin1');
    throw new KeeperError('field_number', `cannot encode ${key}: not a whole number from 0 up`);
  }
  if (typeof value !== 'string') return value;
  if (!value.isWellFormed())
    throw new KeeperError('field_text', `cannot encode ${key}: not well-formed text`);
  return Buffer.from(value, 'utf8');
}

/**
 * The bytes of one frame.
 * @throws KeeperError `frame_*` when a bound of the protocol would be passed, `field_number` or `field_text`
 *   when a value has no encoding.
 */
export function encodeFrame(frame: FrameToSend): Buffer<ArrayBuffer> {
  if (!isVerb(frame.verb)) throw new KeeperError('frame_unknown_verb', 'cannot encode a verb of no version');
  if (frame.fields.length > fieldsMax) {
    throw new KeeperError('frame_fields', `cannot encode ${frame.verb}: more than ${fieldsMax} fields`);
  }
  let payloadBytes = frame.verb.length + 1;
  const values = frame.fields.map(([key, value]) => {
    if (!namePattern.test(key)) {
      throw new KeeperError('frame_key', `cannot encode ${frame.verb}: a key is 1 to 32 of a-z and _`);
    }
    const bytes = bytesOf(key, value);
    if (bytes.length > valueBytesMax) {
      throw new KeeperError('frame_value', `cannot encode ${key}: larger than ${valueBytesMax} bytes`);
    }
    if (bytes.includes(0))
      throw new KeeperError('frame_grammar', `cannot encode ${key}: it holds a NUL byte`);
    payloadBytes += key.length + 1 + bytes.length + 1;
    return bytes;
  });
  if (payloadBytes > payloadBytesMax) {
    throw new KeeperError(
      'frame_length',
      `cannot encode ${frame.verb}: larger than ${payloadBytesMax} bytes`,
    );
  }
  // Not from the pool: a caller that wipes this frame must not share its memory with anybody.
  const out = Buffer.alloc(headBytes + payloadBytes);
  let at = out.writeUInt32BE(payloadBytes);
  at += out.write(frame.verb, at, 'latin1') + 1;
  frame.fields.forEach(([key], index) => {
    at += out.write(`${key}=`, at, 'latin1');
    const bytes = values[index];
    if (bytes === undefined) return;
    out.set(bytes, at);
    at += bytes.length + 1;
  });
  return out;
}

function isName(bytes: Buffer): boolean {
  if (bytes.length < 1 || bytes.length > nameBytesMax) return false;
  return bytes.every((byte) => (byte >= 0x61 && byte <= 0x7a) || byte === 0x5f);
}

function violation(code: KeeperErrorCode, what: string): KeeperError {
  return new KeeperError(code, `frame breaks the keeper protocol: ${what}`);
}

function parsePayload(payload: Buffer): Frame {
  const verbEnd = payload.indexOf(0);
  if (verbEnd < 0) throw violation('frame_grammar', 'the verb does not end');
  if (!isName(payload.subarray(0, verbEnd))) throw violation('frame_verb', 'the verb is not a name');
  const verb = payload.toString('latin1', 0, verbEnd);
  if (!isVerb(verb)) throw violation('frame_unknown_verb', 'the verb is of no version');
  const fields: [string, Buffer][] = [];
  for (let at = verbEnd + 1; at < payload.length;) {
    if (fields.length === fieldsMax) throw violation('frame_fields', `more than ${fieldsMax} fields`);
    const end = payload.indexOf(0, at);
    if (end < 0) throw violation('frame_grammar', 'a field does not end');
    const entry = payload.subarray(at, end);
    const equals = entry.indexOf(0x3d);
    if (equals < 0) throw violation('frame_grammar', 'a field without "="');
    if (!isName(entry.subarray(0, equals))) throw violation('frame_key', 'a key is not a name');
    const value = entry.subarray(equals + 1);
    if (value.length > valueBytesMax)
      throw violation('frame_value', `a value of more than ${valueBytesMax} bytes`);
    fields.push([entry.toString('latin1', 0, equals), value]);
    at = end + 1;
  }
  return { verb, fields };
}

/**
 * Turns the bytes of one connection into frames. Holds at most one frame and one chunk.
 * After it has thrown, the connection MUST be closed: every later push throws the same error.
 */
export class FrameReader {
  #chunks: Buffer[] = [];
  #bytes = 0;
  #fault: KeeperError | undefined;

  /** Bytes of a frame that has begun and not ended; 0 between frames. */
  get pendingBytes(): number {
    return this.#bytes;
  }

  /**
   * The frames that this chunk completes. Their values are views of what was received.
   * @throws KeeperError `frame_*` on the first violation; frames completed before it in the same chunk are lost.
   */
  push(chunk: Uint8Array): Frame[] {
    if (this.#fault !== undefined) throw this.#fault;
    if (chunk.length > 0) {
      this.#chunks.push(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength));
      this.#bytes += chunk.length;
    }
    try {
      return this.#take();
    } catch (fault) {
      if (fault instanceof KeeperError) this.#fault = fault;
      this.#chunks = [];
      this.#bytes = 0;
      throw fault;
    }
  }

  #take(): Frame[] {
    const frames: Frame[] = [];
    while (this.#bytes >= headBytes) {
      let first = this.#chunks[0];
      if (first === undefined) break;
      if (first.length < headBytes) first = this.#join();
      const length = first.readUInt32BE(0);
      if (length < 1 || length > payloadBytesMax) {
        throw violation('frame_length', 'its length is out of range');
      }
      const frameBytes = headBytes + length;
      if (this.#bytes < frameBytes) break;
      if (first.length < frameBytes) first = this.#join();
      frames.push(parsePayload(first.subarray(headBytes, frameBytes)));
      this.#bytes -= frameBytes;
      if (first.length === frameBytes) this.#chunks.shift();
      else this.#chunks[0] = first.subarray(frameBytes);
    }
    return frames;
  }

  #join(): Buffer {
    const whole = Buffer.concat(this.#chunks);
    this.#chunks = [whole];
    return whole;
  }
}

/** The first value of that key, or undefined. */
export function field(frame: Frame, key: string): Buffer | undefined {
  return frame.fields.find(([name]) => name === key)?.[1];
}

/** Every value of that key, in order. */
export function fieldAll(frame: Frame, key: string): Buffer[] {
  return frame.fields.filter(([name]) => name === key).map(([, value]) => value);
}

/** A value as text. @throws KeeperError `field_text` where the bytes are not UTF-8: nothing is replaced. */
export function textOf(key: string, value: Uint8Array): string {
  if (!isUtf8(value)) throw new KeeperError('field_text', `${key} is not UTF-8`);
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('utf8');
}

/** A value as text for people: each broken byte sequence becomes U+FFFD. Two different values may look the same. */
export function lossyTextOf(value: Uint8Array): string {
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('utf8');
}

/** The first value as UTF-8 text. @throws KeeperError `field_missing`, `field_text`. */
export function text(frame: Frame, key: string): string {
  const value = field(frame, key);
  if (value === undefined) throw new KeeperError('field_missing', `${frame.verb} has no ${key}`);
  return textOf(key, value);
}

/** The first value as text, or undefined where the key is absent. @throws KeeperError `field_text`. */
export function textMaybe(frame: Frame, key: string): string | undefined {
  const value = field(frame, key);
  return value === undefined ? undefined : textOf(key, value);
}

const numberPattern = /^(?:0|[1-9][0-9]{0,15})$/;

function numberOf(key: string, value: Buffer): number {
  const digits = value.toString('latin1');
  const parsed = numberPattern.test(digits) ? Number(digits) : NaN;
  if (Number.isSafeInteger(parsed)) return parsed;
  throw new KeeperError('field_number', `${key} is not a number of the keeper protocol`);
}

/** The first value as a number. @throws KeeperError `field_missing`, `field_number`. */
export function number(frame: Frame, key: string): number {
  const value = field(frame, key);
  if (value === undefined) throw new KeeperError('field_missing', `${frame.verb} has no ${key}`);
  return numberOf(key, value);
}

/** The first value as a number, or undefined where the key is absent. @throws KeeperError `field_number`. */
export function numberMaybe(frame: Frame, key: string): number | undefined {
  const value = field(frame, key);
  return value === undefined ? undefined : numberOf(key, value);
}

const kinds = ['exit', 'signal', 'killed', 'gone'] as const;
/**
 * How a process ended: by itself, by somebody's signal, by a signal that the keeper or the sweep sent, or unseen
 * (`gone`, number 0): its own parent has its status.
 */
export interface ProcEnd {
  readonly kind: (typeof kinds)[number];
  readonly number: number;
}

/** A `proc` row: one process of a tree. */
export interface ProcRow {
  readonly pid: number;
  readonly ppid: number;
  /** Field 22 of /proc/PID/stat, as text: with the pid it names the process for ever. */
  readonly startTicks: string;
  readonly how: ProcEnd;
  /** When it was reaped, or else last met, on the boot-time clock; undefined from a keeper that did not say. */
  readonly endedBootUs: number | undefined;
  /** Alive when the root had exited. */
  readonly survivor: boolean;
  /** The kernel's name of the process; broken UTF-8 shows as U+FFFD. */
  readonly name: string;
}

// A keeper of 0.1.0 says neither when nor whether it survived; it may outlive that agent and tell this one.
const rowPattern =
  /^([1-9][0-9]{0,9}) (0|[1-9][0-9]{0,9}) (0|[1-9][0-9]{0,19}) (?:(0|[1-9][0-9]{0,15}) (survivor|-) )?([a-z]+):([0-9]{1,3}) (.*)$/s;
const unlistedPattern = /^([a-z]+) ([1-9][0-9]{0,9})$/;
const isKind = (word: string | undefined): word is ProcEnd['kind'] => kinds.some((kind) => kind === word);
const endPattern = /^(exit|signal):(0|[1-9][0-9]{0,2})$/;

/** @throws KeeperError `proc_row`. */
export function parseProcRow(value: Uint8Array): ProcRow {
  const parts = rowPattern.exec(lossyTextOf(value));
  const [, pid, ppid, startTicks, ended, mark, kind, ending, name] = parts ?? [];
  if (startTicks === undefined || name === undefined || !isKind(kind)) {
    throw new KeeperError(
      'proc_row',
      'a process row is not `pid ppid start_ticks ended_boot_us mark how name`',
    );
  }
  return {
    pid: Number(pid),
    ppid: Number(ppid),
    startTicks,
    how: { kind, number: Number(ending) },
    endedBootUs: ended === undefined ? undefined : Number(ended),
    survivor: mark === 'survivor',
    name,
  };
}

/** An `unlisted`: how many more ended in that way than have a row. @throws KeeperError `proc_row`. */
export function parseUnlisted(value: Uint8Array): { kind: ProcEnd['kind']; count: number } {
  const [, kind, count] = unlistedPattern.exec(lossyTextOf(value)) ?? [];
  if (!isKind(kind)) throw new KeeperError('proc_row', 'an unlisted is not `how count`');
  return { kind, count: Number(count) };
}

/** A `root_status`. @throws KeeperError `proc_row`. */
export function parseRootStatus(status: string): ProcEnd {
  const [, kind, ending] = endPattern.exec(status) ?? [];
  if (!isKind(kind)) throw new KeeperError('proc_row', 'a root status is not exit:N or signal:N');
  return { kind, number: Number(ending) };
}
