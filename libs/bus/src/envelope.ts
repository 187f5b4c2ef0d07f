// Owns the headers the bus itself sets and reads, and the checks made before anything is sent.
import { busMessageBytesMax } from '@custody/core/limits';
import { anyHostUp, hostOf, inboxPrefix } from '@custody/wire/subjects';
import type { Headers, Reply, Stored } from './bus.ts';
import { BusError } from './errors.ts';

/**
 * On every message of a Custody program. JetStream sends its own acknowledgements to whatever reply subject
 * a publisher names, another host's subjects included; they carry no such header, and are dropped by it.
 */
const markHeader = 'Custody-Bus';
const markValue = '1';
/** On a reply that is an error: `busy`, `failed` or `too_large`. */
export const errorHeader = 'Custody-Error';

const hostRoot = anyHostUp('grant').split('*', 1)[0] ?? '';
const ownHeaders = new Set([markHeader, errorHeader]);
const headerNamePattern = /^[A-Za-z0-9-]{1,64}$/;
const headerValuePattern = /^[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?$/;
const tokenPattern = /^[^\s.*>\p{Cc}]+$/u;
const wildTokenPattern = /^(?:\*|[^\s.*>\p{Cc}]+)$/u;

/** Throws `bad_subject` unless each token is one that may be published to. */
export function checkSubject(subject: string): void {
  if (!subject.split('.').every((token) => tokenPattern.test(token))) {
    throw new BusError('bad_subject', `publish to ${JSON.stringify(subject)}: not a subject`);
  }
}

/** Throws `bad_subject` unless it is a subject in which `*` and a last `>` stand as whole tokens. */
export function checkPattern(pattern: string): void {
  const tokens = pattern.split('.');
  const last = tokens.pop();
  const good = tokens.every((token) => wildTokenPattern.test(token));
  if (!good || last === undefined || !(last === '>' || wildTokenPattern.test(last))) {
    throw new BusError('bad_subject', `subscribe to ${JSON.stringify(pattern)}: not a subject`);
  }
}

/** The caller's headers and the mark. Subjects of the server itself (`$SYS`, `$JS`) take no headers. */
export function sealHeaders(
  subject: string,
  headers: Headers | undefined,
  own: Headers = {},
): Record<string, string> {
  const all: Record<string, string> = subject.startsWith('$') ? {} : { [markHeader]: markValue };
  for (const [name, value] of Object.entries(headers ?? {})) {
    if (
      name.startsWith('Nats-') ||
      ownHeaders.has(name) ||
      !headerNamePattern.test(name) ||
      !headerValuePattern.test(value)
    ) {
      throw new BusError('bad_subject', `send to ${subject}: header ${JSON.stringify(name)} cannot be sent`);
    }
    all[name] = value;
  }
  return { ...all, ...own };
}

/** What the handler sees: everything but the bus's own headers. */
export function openHeaders(headers: Headers): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !ownHeaders.has(name)));
}

export function isMarked(headers: Headers): boolean {
  return headers[markHeader] === markValue;
}

/** Throws `too_large` when data and encoded headers together exceed `bytesMax`. */
export function checkSize(
  subject: string,
  data: Uint8Array,
  headers: Headers,
  bytesMax: number = busMessageBytesMax,
): number {
  const size = data.byteLength + headerBytes(headers);
  if (size > bytesMax) {
    throw new BusError(
      'too_large',
      `send to ${subject}: ${size} bytes, at most ${bytesMax}; send less at once`,
    );
  }
  return size;
}

// `NATS/1.0 CRLF`, then `name: value CRLF` each, then CRLF; ASCII by the patterns above.
function headerBytes(headers: Headers): number {
  const entries = Object.entries(headers);
  if (entries.length === 0) return 0;
  return entries.reduce((sum, [name, value]) => sum + name.length + value.length + 4, 12);
}

/**
 * Whether a request that came on `subject` may be answered at `reply`. The server checks what a host
 * publishes to, not the reply subject it names: answering blindly would lend it the responder's pen.
 */
export function mayAnswer(subject: string, reply: string): boolean {
  const host = hostOf(subject);
  if (host === undefined) return !subject.startsWith(hostRoot);
  return reply.startsWith(`${inboxPrefix(host)}.`);
}

/** The reply, or the error that its header stands for. */
export function openReply(subject: string, data: Uint8Array, headers: Headers): Reply {
  const error = headers[errorHeader];
  if (error === undefined) return { data, headers: openHeaders(headers) };
  if (error === 'busy') {
    throw new BusError('busy', `request ${subject}: the responder is at its bound; try again later`);
  }
  if (error === 'too_large') {
    throw new BusError(
      'too_large',
      `request ${subject}: the answer is larger than the bus carries; ask for less`,
    );
  }
  throw new BusError('failed', `request ${subject}: the responder failed; its own log says why`);
}

export function asReply(answer: Uint8Array | Reply): Reply {
  return answer instanceof Uint8Array ? { data: answer, headers: {} } : answer;
}

/** What JetStream answered to a publish. Throws `stream` when it would not store, `failed` when it is no answer. */
export function readStored(subject: string, data: Uint8Array): Stored {
  const answer = parse(data);
  const { error, stream, seq } = answer;
  if (typeof error === 'object' && error !== null && 'description' in error) {
    throw new BusError('stream', `publish to ${subject}: the stream said: ${String(error.description)}`);
  }
  if (typeof stream !== 'string' || typeof seq !== 'number') {
    throw new BusError(
      'failed',
      `publish to ${subject}: the answer is no stream's; check that a stream stores it`,
    );
  }
  return { stream, seq };
}

function parse(data: Uint8Array): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(data));
    return typeof value === 'object' && value !== null ? { ...value } : {};
  } catch {
    return {};
  }
}
