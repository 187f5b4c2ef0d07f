// Owns the bus over a real NATS server: connecting and reconnecting, and one translation of its errors.
import { Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { busMessageBytesMax, reconnectWaitMs } from '@custody/core/limits';
import type { Secret } from '@custody/core/secret';
import { JetStreamApiError, JetStreamError } from '@nats-io/jetstream';
import {
  connect,
  errors,
  headers as natsHeaders,
  jwtAuthenticator,
  NatsConnectionImpl,
  type ConnectionOptions,
  type Msg,
  type MsgHdrs,
  type NatsConnection,
  type Status,
} from '@nats-io/transport-node';
import {
  closeWaitMs,
  connectTimeoutMs,
  pendingBytesMax,
  pingIntervalMs,
  pingsUnansweredMax,
  reconnectWaitMsMax,
  refusedWaitMsMax,
} from './bounds.ts';
import type {
  Bus,
  BusStatus,
  DurableMessage,
  Headers,
  Message,
  Reply,
  ServeHandler,
  StatusListener,
  Stored,
  StreamConfig,
  Subscription,
} from './bus.ts';
import { Consumer } from './consumer.ts';
import {
  asReply,
  checkPattern,
  checkSize,
  checkSubject,
  errorHeader,
  isMarked,
  mayAnswer,
  openHeaders,
  openReply,
  readStored,
  sealHeaders,
} from './envelope.ts';
import { BusError } from './errors.ts';
import { ensureStream, readHeaders } from './jetstream.ts';
import { rejectable } from './rejectable.ts';

export type BusOptions = {
  /** `host:port` or `nats://host:port`, one or more. */
  readonly servers: readonly string[];
  readonly jwt: string;
  /** The user's nkey seed, as text bytes (`SU…`). A `Secret` must not be wiped while the bus is open. */
  readonly seed: Secret | Uint8Array;
  /** Where replies come in; a host's is `inboxPrefix(host)`. */
  readonly inboxPrefix?: string;
  /** Shown in the server's log; also spreads reconnects of many programs over time. */
  readonly name: string;
  readonly log?: (line: string) => void;
  /** Keeps trying while no server is there. A refused user is never tried again here. */
  readonly waitOnFirstConnect?: boolean;
  /** Ends the waiting for the first connection. */
  readonly signal?: AbortSignal;
  readonly pingIntervalMs?: number;
};

/**
 * Resolves with a bus that is connected, and from then on reconnects for ever: at once, then after
 * `reconnectWaitMs` doubling to `reconnectWaitMsMax`, each wait stretched by a share that `name` decides.
 * Rejects with `unreachable`, `refused`, or `closed` when `signal` is aborted.
 */
export async function connectBus(options: BusOptions): Promise<Bus> {
  const backoff = new Backoff(options.name);
  for (;;) {
    try {
      return new NatsBus(await dial(options, backoff), backoff, options);
    } catch (cause) {
      const error = translate(cause, 'connect to', options.servers.join(' '));
      if (options.signal?.aborted === true) throw givenUp(options, cause);
      if (options.waitOnFirstConnect !== true || error.code !== 'unreachable') throw error;
    }
    backoff.attempted();
    try {
      await wait(backoff.waitMs() + reconnectWaitMs, undefined, { signal: options.signal });
    } catch (cause) {
      throw givenUp(options, cause);
    }
  }
}

function givenUp(options: BusOptions, cause: unknown): BusError {
  return new BusError('closed', `connect to ${options.servers.join(' ')}: given up by its owner`, { cause });
}

/** How long to wait before the next dial, on top of the client's own `reconnectWaitMs`. */
class Backoff {
  #attempts = 0;
  #waitMsMax = reconnectWaitMsMax;
  readonly #share: number;

  constructor(name: string) {
    // FNV-1a: a share of the wait that differs from host to host and needs no randomness.
    let hash = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
    this.#share = hash / 0x1_0000_0000;
  }

  attempted(): void {
    this.#attempts += 1;
  }

  connected(): void {
    this.#attempts = 0;
    this.#waitMsMax = reconnectWaitMsMax;
  }

  refused(): void {
    this.#waitMsMax = refusedWaitMsMax;
  }

  waitMs(): number {
    if (this.#attempts === 0) return 0;
    const grown = Math.min(this.#waitMsMax, reconnectWaitMs * 2 ** Math.min(this.#attempts - 1, 16));
    return Math.round(grown * (0.5 + this.#share / 2));
  }
}

async function dial(options: BusOptions, backoff: Backoff): Promise<NatsConnection> {
  options.signal?.throwIfAborted();
  const { seed } = options;
  let reconnecting = false;
  const opening = connect({
    servers: [...options.servers],
    authenticator: jwtAuthenticator(options.jwt, seed instanceof Uint8Array ? seed : () => seed.reveal()),
    name: options.name,
    ...(options.inboxPrefix === undefined ? {} : { inboxPrefix: options.inboxPrefix }),
    timeout: connectTimeoutMs,
    maxReconnectAttempts: -1,
    reconnectTimeWait: reconnectWaitMs,
    reconnectJitter: reconnectWaitMs,
    reconnectToServer: (pool) => {
      if (!reconnecting) return null;
      const delay = backoff.waitMs();
      backoff.attempted();
      return pool[0] === undefined ? null : { server: pool[0], delay };
    },
    // A user may be let in again, and a server may come back wrong for a while: only the owner gives up.
    ignoreAuthErrorAbort: true,
    pingInterval: options.pingIntervalMs ?? pingIntervalMs,
    maxPingOut: pingsUnansweredMax,
    ignoreClusterUpdates: true,
    noAsyncTraces: true,
  } satisfies ConnectionOptions);
  const connection = await unlessAborted(opening, options.signal);
  reconnecting = true;
  return connection;
}

class NatsBus implements Bus {
  readonly #nc: NatsConnection;
  readonly #backoff: Backoff;
  readonly #log: (line: string) => void;
  readonly #inboxPrefix: string | undefined;
  readonly #listeners = new Set<StatusListener>();
  readonly #consumers = new Set<Consumer>();
  readonly #serving = new Set<Promise<void>>();
  /** Rejected and replaced when the link goes: what waits for an answer learns it at once. */
  #lost = rejectable();
  #connected = true;
  #closing: Promise<void> | undefined;
  #refusedTold = false;
  /** Bytes published, and how many of them the server is known to have read. */
  #sentBytes = 0;
  #readBytes = 0;
  #confirming = false;

  constructor(nc: NatsConnection, backoff: Backoff, options: BusOptions) {
    this.#nc = nc;
    this.#backoff = backoff;
    this.#log = options.log ?? ((): void => undefined);
    this.#inboxPrefix = options.inboxPrefix;
    backoff.connected();
    void this.#watch();
  }

  get connected(): boolean {
    return this.#connected;
  }

  publish(subject: string, data: Uint8Array, headers?: Headers): void {
    checkSubject(subject);
    this.#send(subject, data, sealHeaders(subject, headers));
  }

  async request(
    subject: string,
    data: Uint8Array,
    options: { readonly timeoutMs: number; readonly headers?: Headers },
  ): Promise<Reply> {
    checkSubject(subject);
    const reply = await this.#ask(subject, data, sealHeaders(subject, options.headers), options.timeoutMs);
    return openReply(subject, reply.data, readHeaders(reply.headers));
  }

  async subscribe(subject: string, handler: (message: Message) => void): Promise<Subscription> {
    const end = await this.#listen(subject, undefined, (message) => {
      const { data, headers } = { data: message.data, headers: openHeaders(readHeaders(message.headers)) };
      try {
        handler({ subject: message.subject, data, headers });
      } catch (error) {
        this.#log(`subscribe ${subject}: handler: ${reason(error)}`);
      }
    });
    return { subject, [Symbol.asyncDispose]: end };
  }

  async serve(
    subject: string,
    handler: ServeHandler,
    options: { readonly concurrencyMax: number },
  ): Promise<Subscription> {
    const running = new Set<Promise<void>>();
    const end = await this.#listen(subject, queueGroup, (message) => {
      const { reply } = message;
      if (reply === undefined || reply === '') return;
      if (!mayAnswer(message.subject, reply)) {
        this.#tell('refused', `answer ${message.subject}: the reply subject is not that host's inbox`);
        return;
      }
      if (running.size >= options.concurrencyMax) {
        this.#answer(reply, new Uint8Array(), { [errorHeader]: 'busy' });
        return;
      }
      const one = this.#run(message, reply, handler).finally(() => {
        running.delete(one);
        this.#serving.delete(one);
      });
      running.add(one);
      this.#serving.add(one);
    });
    const dispose = async (): Promise<void> => {
      await end();
      await Promise.all(running);
    };
    return { subject, [Symbol.asyncDispose]: dispose };
  }

  onStatus(listener: StatusListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async flush(): Promise<void> {
    this.#assertUp('flush', 'the bus');
    const upTo = this.#sentBytes;
    try {
      await this.#nc.flush();
      this.#readBytes = Math.max(this.#readBytes, upTo);
    } catch (cause) {
      throw this.#translate(cause, 'flush', 'the bus');
    }
  }

  async ensureStream(config: StreamConfig): Promise<void> {
    this.#assertUp('ensure stream', config.name);
    try {
      await ensureStream(this.#nc, config);
    } catch (cause) {
      throw this.#translate(cause, 'ensure stream', config.name);
    }
  }

  async publishDurable(
    subject: string,
    data: Uint8Array,
    options: { readonly timeoutMs: number; readonly headers?: Headers },
  ): Promise<Stored> {
    checkSubject(subject);
    const reply = await this.#ask(subject, data, sealHeaders(subject, options.headers), options.timeoutMs);
    return readStored(subject, reply.data);
  }

  async consume(
    stream: string,
    durable: string,
    handler: (message: DurableMessage) => Promise<void>,
    options: { readonly maxAckPending: number; readonly ackWaitMs?: number },
  ): Promise<Subscription> {
    this.#assertUp('consume', stream);
    const consumer = new Consumer(
      this.#nc,
      { stream, durable, handler, ...options },
      this.#log,
      this.#inboxPrefix,
    );
    try {
      await consumer.start();
    } catch (cause) {
      throw this.#translate(cause, 'consume', stream);
    }
    this.#consumers.add(consumer);
    const dispose = async (): Promise<void> => {
      this.#consumers.delete(consumer);
      await consumer.stop();
    };
    return { subject: stream, [Symbol.asyncDispose]: dispose };
  }

  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #end(): Promise<void> {
    const orderly = async (): Promise<void> => {
      await Promise.all([...this.#consumers].map((consumer) => consumer.stop()));
      await Promise.all(this.#serving);
      if (this.#connected) await this.#nc.flush();
    };
    const giveUp = new AbortController();
    const bound = wait(closeWaitMs, undefined, { signal: giveUp.signal }).catch(() => undefined);
    await Promise.race([orderly().catch(() => undefined), bound]);
    giveUp.abort();
    await this.#nc.close();
  }

  #send(subject: string, data: Uint8Array, headers: Headers, reply?: string): void {
    this.#assertUp('publish to', subject);
    const size = checkSize(subject, data, headers, this.#sizeMax()) + subject.length;
    this.#admit(subject, size);
    try {
      this.#nc.publish(subject, data, {
        headers: writeHeaders(headers),
        ...(reply === undefined ? {} : { reply }),
      });
    } catch (cause) {
      throw this.#translate(cause, 'publish to', subject);
    }
  }

  async #ask(subject: string, data: Uint8Array, headers: Headers, timeoutMs: number): Promise<Msg> {
    this.#assertUp('request', subject);
    this.#admit(subject, checkSize(subject, data, headers, this.#sizeMax()) + subject.length);
    const asked = this.#nc.request(subject, data, { timeout: timeoutMs, headers: writeHeaders(headers) });
    try {
      return await Promise.race([asked, this.#lost.promise]);
    } catch (cause) {
      asked.catch(() => undefined);
      throw this.#translate(cause, 'request', subject);
    }
  }

  /** Counts what is sent; past half of the window it asks the server how far it has read. */
  #admit(subject: string, size: number): void {
    if (this.#sentBytes - this.#readBytes + size > pendingBytesMax) {
      throw new BusError(
        'backlog',
        `publish to ${subject}: the server has not read what was sent; await flush`,
      );
    }
    this.#sentBytes += size;
    if (this.#confirming || this.#sentBytes - this.#readBytes < pendingBytesMax / 2) return;
    this.#confirming = true;
    const upTo = this.#sentBytes;
    // Published after this call, the ping stands behind what was counted.
    queueMicrotask(() => {
      this.#nc.flush().then(
        () => this.#confirmed(upTo),
        () => this.#confirmed(this.#readBytes),
      );
    });
  }

  #confirmed(upTo: number): void {
    this.#confirming = false;
    this.#readBytes = Math.max(this.#readBytes, upTo);
  }

  async #listen(
    subject: string,
    queue: string | undefined,
    deliver: (message: Msg) => void,
  ): Promise<() => Promise<void>> {
    checkPattern(subject);
    this.#assertUp('subscribe to', subject);
    let refusal: Error | undefined;
    const subscription = this.#nc.subscribe(subject, {
      ...(queue === undefined ? {} : { queue }),
      callback: (error, message) => {
        if (error !== null) refusal = error;
        else if (isMarked(readHeaders(message.headers)) || subject.startsWith('$')) deliver(message);
        else this.#tell('refused', `hear ${message.subject}: dropped a message that no program sent`);
      },
    });
    try {
      await this.#nc.flush();
      if (refusal !== undefined) throw refusal;
    } catch (cause) {
      if (!this.#nc.isClosed()) subscription.unsubscribe();
      throw this.#translate(cause, 'subscribe to', subject);
    }
    return async () => {
      if (this.#nc.isClosed() || subscription.isClosed()) return;
      if (this.#connected) await subscription.drain().catch(() => undefined);
      else subscription.unsubscribe();
    };
  }

  async #run(message: Msg, reply: string, handler: ServeHandler): Promise<void> {
    const { subject, data } = message;
    try {
      const answer = asReply(
        await handler({ subject, data, headers: openHeaders(readHeaders(message.headers)) }),
      );
      this.#answer(reply, answer.data, answer.headers);
    } catch (error) {
      const tooLarge = error instanceof BusError && error.code === 'too_large';
      this.#log(`serve ${subject}: ${reason(error)}`);
      this.#answer(reply, new Uint8Array(), { [errorHeader]: tooLarge ? 'too_large' : 'failed' });
    }
  }

  #answer(reply: string, data: Uint8Array, headers: Headers): void {
    const { [errorHeader]: error, ...others } = headers;
    const own: Headers = error === undefined ? {} : { [errorHeader]: error };
    try {
      this.#send(reply, data, sealHeaders(reply, others, own));
    } catch (cause) {
      if (error === undefined && cause instanceof BusError && cause.code === 'too_large') throw cause;
      this.#log(`answer: ${reason(cause)}`);
    }
  }

  async #watch(): Promise<void> {
    for await (const status of this.#nc.status()) this.#noticed(status);
  }

  #noticed(status: Status): void {
    if (status.type === 'disconnect') this.#down(status.server);
    if (status.type === 'reconnect') void this.#up(status.server);
    if (status.type === 'staleConnection') dropSocket(this.#nc);
    if (status.type === 'error') this.#failed(status.error);
    if (status.type === 'close') {
      this.#connected = false;
      const why = this.#closing === undefined ? 'the client gave up' : 'closed by its owner';
      this.#lost.reject(new BusError('closed', `the bus was closed: ${why}`));
      this.#tell('closed', why);
    }
  }

  #down(server: string): void {
    if (!this.#connected) return;
    this.#connected = false;
    this.#lost.reject(new BusError('unreachable', `the connection to ${server} was lost`));
    this.#lost = rejectable();
    for (const consumer of this.#consumers) consumer.disconnected();
    this.#tell('disconnected', server);
  }

  /** Connected means that the server has the subscriptions again, so that catching up misses nothing. */
  async #up(server: string): Promise<void> {
    try {
      await this.#nc.flush();
    } catch {
      return; // lost again; the next reconnect says so
    }
    this.#connected = true;
    this.#refusedTold = false;
    this.#readBytes = this.#sentBytes;
    this.#backoff.connected();
    for (const consumer of this.#consumers) consumer.connected();
    this.#tell('connected', server);
  }

  #failed(error: Error): void {
    if (error instanceof errors.PermissionViolationError) {
      this.#tell('refused', `${error.operation} ${error.subject}`);
      return;
    }
    if (!isUserRefusal(error)) {
      this.#log(`server: ${error.message}`);
      return;
    }
    this.#backoff.refused();
    if (!this.#refusedTold) this.#tell('refused', `user: ${error.message}`);
    this.#refusedTold = true;
  }

  #tell(status: BusStatus, detail: string): void {
    for (const listener of this.#listeners) {
      try {
        listener(status, detail);
      } catch (error) {
        this.#log(`status listener: ${reason(error)}`);
      }
    }
  }

  #assertUp(operation: string, subject: string): void {
    if (this.#nc.isClosed()) {
      throw new BusError('closed', `${operation} ${subject}: the bus is closed`);
    }
    if (!this.#connected) {
      throw new BusError('unreachable', `${operation} ${subject}: no server is connected; await 'connected'`);
    }
  }

  #sizeMax(): number {
    return Math.min(this.#nc.info?.max_payload ?? busMessageBytesMax, busMessageBytesMax);
  }

  #translate(cause: unknown, operation: string, subject: string): BusError {
    if (this.#nc.isClosed())
      return new BusError('closed', `${operation} ${subject}: the bus is closed`, { cause });
    return translate(cause, operation, subject);
  }
}

/** Servers of one subject share its requests. */
const queueGroup = 'custody';

function translate(error: unknown, operation: string, subject: string): BusError {
  const at = `${operation} ${subject}`;
  const options = { cause: error };
  for (const link of chain(error)) {
    if (link instanceof BusError)
      return link.message.startsWith(operation)
        ? link
        : new BusError(link.code, `${at}: ${link.message}`, options);
    if (link instanceof errors.NoRespondersError)
      return new BusError('no_responder', `${at}: nobody answers there`, options);
    if (link instanceof errors.TimeoutError)
      return new BusError('timeout', `${at}: no answer in time`, options);
    if (link instanceof errors.PermissionViolationError || isUserRefusal(link)) {
      return new BusError('refused', `${at}: the server does not allow it: ${reason(link)}`, options);
    }
    if (link instanceof JetStreamApiError || link instanceof JetStreamError) {
      return new BusError('stream', `${at}: ${link.message}`, options);
    }
  }
  return new BusError('unreachable', `${at}: no server is connected: ${reason(error)}`, options);
}

function chain(error: unknown): unknown[] {
  const links: unknown[] = [];
  for (let link = error; link instanceof Error && links.length < 8; link = link.cause) links.push(link);
  return links;
}

// The client knows some of the server's words for it; `User Authentication Revoked` it does not.
function isUserRefusal(error: unknown): boolean {
  if (error instanceof Error && /timeout/i.test(error.message)) return false; // a server that is slow to start
  if (error instanceof errors.AuthorizationError || error instanceof errors.UserAuthenticationExpiredError)
    return true;
  return error instanceof errors.ProtocolError && /authenti|authoriz/i.test(error.message);
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : 'unknown';
}

function writeHeaders(headers: Headers): MsgHdrs {
  const written = natsHeaders();
  for (const [name, value] of Object.entries(headers)) written.set(name, value);
  return written;
}

/** The connection, unless the owner gave up first; then it is closed as soon as it is there. */
async function unlessAborted(
  opening: Promise<NatsConnection>,
  signal: AbortSignal | undefined,
): Promise<NatsConnection> {
  if (signal === undefined) return opening;
  const given = rejectable();
  const abort = (): void => given.reject(new BusError('closed', 'connect: given up by its owner'));
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([opening, given.promise]);
  } catch (error) {
    if (signal.aborted) opening.then((nc) => nc.close()).catch(() => undefined);
    throw error;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/**
 * The client's own disconnect waits until what it wrote has left, which on a half-open connection with a full
 * send buffer is when the kernel gives up, many minutes later. Destroying the socket ends that wait.
 */
function dropSocket(nc: NatsConnection): void {
  if (nc instanceof NatsConnectionImpl) {
    const { transport } = nc.protocol;
    if ('socket' in transport && transport.socket instanceof Socket) transport.socket.destroy();
  }
}
