// Owns the shape of the bus that every other room speaks to; the real one and the fake both keep it.

export type Headers = Readonly<Record<string, string>>;

export type Message = { readonly subject: string; readonly data: Uint8Array; readonly headers: Headers };

export type Reply = { readonly data: Uint8Array; readonly headers: Headers };

/** Ends when disposed: no handler call begins afterwards; for `serve` and `consume`, running handlers are awaited. */
export interface Subscription extends AsyncDisposable {
  readonly subject: string;
}

/**
 * - `connected`: the link is back and the server has every subscription again: now catch up.
 * - `disconnected`: the link went; it and the subscriptions come back by themselves.
 * - `refused`: a subject or the user itself was refused; `detail` says which.
 * - `closed`: the owner closed the bus; nothing follows.
 */
export type BusStatus = 'connected' | 'disconnected' | 'refused' | 'closed';

export type StatusListener = (status: BusStatus, detail: string) => void;

export type ServeHandler = (message: Message) => Promise<Uint8Array | Reply> | Uint8Array | Reply;

export type StreamConfig = {
  readonly name: string;
  readonly subjects: readonly string[];
  /** `workqueue`: an acknowledged message is gone. `limits`: it stays until a bound drops it. */
  readonly retention: 'workqueue' | 'limits';
  /** At either bound the stream refuses new messages; it never drops old ones. */
  readonly maxBytes: number;
  readonly maxMessages: number;
  /** At this many messages of one subject it refuses more of that subject: no host fills it for the others. */
  readonly maxMessagesPerSubject?: number;
};

/** Where JetStream stored a message. */
export type Stored = { readonly stream: string; readonly seq: number };

export type DurableMessage = Message & {
  /** How often it was delivered, this time included. */
  readonly deliveries: number;
  /** Neither waits for the server: an acknowledgement that is lost brings the message again. */
  ack(): void;
  nak(delayMs: number): void;
};

/** Every method throws or rejects with `BusError` alone. */
export interface Bus extends AsyncDisposable {
  readonly connected: boolean;

  /**
   * At most once. Throws `unreachable`, `too_large`, `backlog`, `closed`, `bad_subject`; a refused subject goes
   * to `onStatus`.
   */
  publish(subject: string, data: Uint8Array, headers?: Headers): void;

  /** Rejects with `no_responder`, `timeout`, `refused`, `busy`, `failed`, `too_large`, `unreachable`, `closed`. */
  request(
    subject: string,
    data: Uint8Array,
    options: { readonly timeoutMs: number; readonly headers?: Headers },
  ): Promise<Reply>;

  /** Resolves once the server has the subscription. Rejects with `refused`, `unreachable`, `closed`. */
  subscribe(subject: string, handler: (message: Message) => void): Promise<Subscription>;

  /**
   * Answers requests. Several servers of one subject share its requests. At `concurrencyMax` running
   * handlers a further request is answered `busy`. A handler that throws answers `failed`, without detail.
   * Where the subject names a host, the answer goes to that host's inbox or nowhere.
   */
  serve(
    subject: string,
    handler: ServeHandler,
    options: { readonly concurrencyMax: number },
  ): Promise<Subscription>;

  /** Returns the function that removes the listener. Listeners are called for what happens after the call. */
  onStatus(listener: StatusListener): () => void;

  /** Resolves when the server has read everything published before. Rejects with `unreachable`, `closed`. */
  flush(): Promise<void>;

  /** Makes the stream or brings it to this configuration. Rejects with `stream`, `refused`, `unreachable`. */
  ensureStream(config: StreamConfig): Promise<void>;

  /**
   * Publishes to a stream's subject and awaits the stream's word. Rejects as `request` does, and with `stream`.
   * There is no message id: JetStream keeps one set of ids for all subjects of a stream, and a host that
   * uses another's id first would have the other's message dropped.
   */
  publishDurable(
    subject: string,
    data: Uint8Array,
    options: { readonly timeoutMs: number; readonly headers?: Headers },
  ): Promise<Stored>;

  /**
   * Hands the stream's messages to `handler`, at most `maxAckPending` unacknowledged at once; after
   * `ackWaitMs` without an acknowledgement one comes again. A handler that throws is a `nak`.
   */
  consume(
    stream: string,
    durable: string,
    handler: (message: DurableMessage) => Promise<void>,
    options: { readonly maxAckPending: number; readonly ackWaitMs?: number },
  ): Promise<Subscription>;

  /** Sends what is pending, waits for running handlers for a bounded time, and ends the connection. */
  close(): Promise<void>;
}
