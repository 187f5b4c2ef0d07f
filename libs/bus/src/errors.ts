// Owns the one error of the bus and what each of its codes tells the caller to do.

/**
 * - `unreachable`: there is no connection to a server now; the bus reconnects by itself, try again on `connected`.
 * - `timeout`: the request was sent and nobody answered in time; it may have been carried out.
 * - `refused`: the server does not allow this user that subject, or does not know the user any more.
 * - `closed`: the bus was closed by its owner.
 * - `no_responder`: nobody serves the subject, or no stream stores it; nothing was carried out.
 * - `too_large`: data and headers together are beyond `busMessageBytesMax`.
 * - `backlog`: more bytes were published than the server has read yet; await `flush` and go on.
 * - `busy`: the responder is at its bound; nothing was carried out.
 * - `failed`: the responder's handler threw, or its reply was no reply.
 * - `stream`: the stream would not store the message, or the server would not make the stream or consumer.
 * - `bad_subject`: the subject, host name or header cannot be sent.
 */
export type BusErrorCode =
  | 'unreachable'
  | 'timeout'
  | 'refused'
  | 'closed'
  | 'no_responder'
  | 'too_large'
  | 'backlog'
  | 'busy'
  | 'failed'
  | 'stream'
  | 'bad_subject';

/** `message` names operation and subject and holds no payload. */
export class BusError extends Error {
  override readonly name = 'BusError';
  readonly code: BusErrorCode;

  constructor(code: BusErrorCode, message: string, options: { cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
  }
}
