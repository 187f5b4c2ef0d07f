// Owns an in-memory stand-in for the NATS server and its clients, with the same permissions and the same errors.
import { busMessageBytesMax } from '@custody/core/limits';
import { ackWaitMsDefault, handlerNakMs } from './bounds.ts';
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

/** Absent lists allow everything, as for the control plane. */
export type FakeUser = {
  readonly allowPublish?: readonly string[];
  readonly allowSubscribe?: readonly string[];
  readonly inboxPrefix?: string;
};

export type FakeBroker = {
  connect(user?: FakeUser): Bus;
  /** `false`: every bus is `disconnected` and refuses to send; `true`: they are `connected` again. */
  setReachable(reachable: boolean): void;
};

type Wire = { subject: string; data: Uint8Array; headers: Headers; reply: string | undefined };

type Interest = {
  readonly pattern: string;
  readonly queue: string | undefined;
  readonly bus: FakeBus;
  readonly deliver: (wire: Wire) => void;
};

type Kept = { readonly seq: number; readonly wire: Wire; deliveries: number; out: boolean; done: boolean };

type Stream = { config: StreamConfig; lastSeq: number; kept: Kept[] };

type Taker = {
  readonly stream: string;
  readonly take: (kept: Kept) => void;
  readonly maxAckPending: number;
  readonly bus: FakeBus;
};

export function createFakeBroker(): FakeBroker {
  const broker = new Broker();
  return {
    connect: (user = {}) => broker.add(new FakeBus(broker, user)),
    setReachable: (reachable) => broker.setReachable(reachable),
  };
}

/** Whether `pattern` (`*` one token, a last `>` one or more) covers `subject`, which may be a pattern itself. */
function covers(pattern: string, subject: string): boolean {
  const wanted = pattern.split('.');
  const given = subject.split('.');
  for (const [index, token] of wanted.entries()) {
    const other = given[index];
    if (other === undefined) return false;
    if (token === '>') return true;
    if (other === '>' || (token !== '*' && token !== other)) return false;
  }
  return wanted.length === given.length;
}

class Broker {
  reachable = true;
  readonly #buses = new Set<FakeBus>();
  readonly interests = new Set<Interest>();
  readonly #streams = new Map<string, Stream>();
  readonly #takers = new Set<Taker>();
  #turn = 0;
  #inboxes = 0;

  add(bus: FakeBus): FakeBus {
    this.#buses.add(bus);
    return bus;
  }

  remove(bus: FakeBus): void {
    this.#buses.delete(bus);
    for (const interest of this.interests) if (interest.bus === bus) this.interests.delete(interest);
    for (const taker of this.#takers) if (taker.bus === bus) this.#takers.delete(taker);
  }

  setReachable(reachable: boolean): void {
    if (this.reachable === reachable) return;
    this.reachable = reachable;
    for (const bus of this.#buses) bus.linkChanged(reachable);
    if (reachable) for (const name of this.#streams.keys()) this.#pump(name);
  }

  inbox(prefix: string): string {
    this.#inboxes += 1;
    return `${prefix}.${this.#inboxes}`;
  }

  /** Whether anybody heard or stored it. Each subscription gets it; of one queue, one of its members. */
  route(wire: Wire): boolean {
    const queues = new Map<string, Interest[]>();
    const heard: Interest[] = [];
    for (const interest of this.interests) {
      if (!covers(interest.pattern, wire.subject)) continue;
      if (interest.queue === undefined) heard.push(interest);
      else queues.set(interest.queue, [...(queues.get(interest.queue) ?? []), interest]);
    }
    for (const members of queues.values()) {
      this.#turn += 1;
      const member = members[this.#turn % members.length];
      if (member !== undefined) heard.push(member);
    }
    for (const interest of heard) {
      queueMicrotask(() => {
        if (this.interests.has(interest) && this.reachable) interest.deliver(wire);
      });
    }
    return this.#store(wire) || heard.length > 0;
  }

  ensureStream(config: StreamConfig): void {
    const stream = this.#streams.get(config.name);
    if (stream === undefined) {
      this.#streams.set(config.name, { config, lastSeq: 0, kept: [] });
    } else {
      stream.config = config;
    }
  }

  hasStream(name: string): boolean {
    return this.#streams.has(name);
  }

  addTaker(taker: Taker): void {
    this.#takers.add(taker);
    this.#pump(taker.stream);
  }

  removeTaker(taker: Taker): void {
    this.#takers.delete(taker);
  }

  /** Ends one delivery: for good, or to be made again after `delayMs`. */
  settle(streamName: string, kept: Kept, delayMs: number | undefined): void {
    const stream = this.#streams.get(streamName);
    if (stream === undefined || kept.done || !kept.out) return;
    if (delayMs === undefined) {
      kept.out = false;
      kept.done = true;
      if (stream.config.retention === 'workqueue')
        stream.kept = stream.kept.filter((other) => other !== kept);
      this.#pump(streamName);
      return;
    }
    setTimeout(() => {
      kept.out = false;
      this.#pump(streamName);
    }, delayMs);
  }

  #store(wire: Wire): boolean {
    let stored = false;
    for (const stream of this.#streams.values()) {
      if (!stream.config.subjects.some((pattern) => covers(pattern, wire.subject))) continue;
      stored = true;
      const answer = this.#keep(stream, wire);
      if (wire.reply !== undefined) this.#acknowledge(wire.reply, answer);
      this.#pump(stream.config.name);
    }
    return stored;
  }

  #keep(stream: Stream, wire: Wire): object {
    const { name, maxBytes, maxMessages, maxMessagesPerSubject = Infinity } = stream.config;
    const bytes = stream.kept.reduce((sum, kept) => sum + kept.wire.data.byteLength, wire.data.byteLength);
    if (stream.kept.length >= maxMessages)
      return { error: { code: 503, description: 'maximum messages exceeded' } };
    if (bytes > maxBytes) return { error: { code: 503, description: 'maximum bytes exceeded' } };
    const same = stream.kept.filter((kept) => kept.wire.subject === wire.subject);
    if (same.length >= maxMessagesPerSubject) {
      return { error: { code: 503, description: 'maximum messages per subject exceeded' } };
    }
    stream.lastSeq += 1;
    stream.kept.push({ seq: stream.lastSeq, wire, deliveries: 0, out: false, done: false });
    return { stream: name, seq: stream.lastSeq };
  }

  // Like JetStream: to whatever subject the publisher named, without headers.
  #acknowledge(reply: string, answer: object): void {
    const data = new TextEncoder().encode(JSON.stringify(answer));
    this.route({ subject: reply, data, headers: {}, reply: undefined });
  }

  #pump(streamName: string): void {
    const stream = this.#streams.get(streamName);
    if (stream === undefined || !this.reachable) return;
    for (const taker of this.#takers) {
      if (taker.stream !== streamName) continue;
      for (const kept of stream.kept) {
        if (stream.kept.filter((other) => other.out).length >= taker.maxAckPending) break;
        if (kept.out || kept.done) continue;
        kept.out = true;
        kept.deliveries += 1;
        queueMicrotask(() => taker.take(kept));
      }
    }
  }
}

class FakeBus implements Bus {
  readonly #broker: Broker;
  readonly #user: FakeUser;
  readonly #listeners = new Set<StatusListener>();
  readonly #waiting = new Set<(error: BusError) => void>();
  #closed = false;

  constructor(broker: Broker, user: FakeUser) {
    this.#broker = broker;
    this.#user = user;
  }

  get connected(): boolean {
    return this.#broker.reachable && !this.#closed;
  }

  linkChanged(reachable: boolean): void {
    if (!reachable) this.#abandon('unreachable', 'the connection was lost');
    this.#tell(reachable ? 'connected' : 'disconnected', 'fake');
  }

  publish(subject: string, data: Uint8Array, headers?: Headers): void {
    checkSubject(subject);
    this.#send(subject, data, sealHeaders(subject, headers), undefined);
  }

  async request(
    subject: string,
    data: Uint8Array,
    options: { readonly timeoutMs: number; readonly headers?: Headers },
  ): Promise<Reply> {
    checkSubject(subject);
    const wire = await this.#ask(subject, data, sealHeaders(subject, options.headers), options.timeoutMs);
    return openReply(subject, wire.data, wire.headers);
  }

  async subscribe(subject: string, handler: (message: Message) => void): Promise<Subscription> {
    const end = this.#listen(subject, undefined, (wire) => {
      try {
        handler({ subject: wire.subject, data: wire.data, headers: openHeaders(wire.headers) });
      } catch {
        return; // the real one logs it
      }
    });
    return { subject, [Symbol.asyncDispose]: async () => end() };
  }

  async serve(
    subject: string,
    handler: ServeHandler,
    options: { readonly concurrencyMax: number },
  ): Promise<Subscription> {
    const running = new Set<Promise<void>>();
    const end = this.#listen(subject, 'custody', (wire) => {
      const { reply } = wire;
      if (reply === undefined) return;
      if (!mayAnswer(wire.subject, reply)) {
        this.#tell('refused', `answer ${wire.subject}: the reply subject is not that host's inbox`);
      } else if (running.size >= options.concurrencyMax) {
        this.#answerError(reply, 'busy');
      } else {
        const one = this.#run(wire, reply, handler).finally(() => running.delete(one));
        running.add(one);
      }
    });
    const dispose = async (): Promise<void> => {
      end();
      await Promise.all(running);
    };
    return { subject, [Symbol.asyncDispose]: dispose };
  }

  onStatus(listener: StatusListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async flush(): Promise<void> {
    this.#assertUp('flush the bus');
  }

  async ensureStream(config: StreamConfig): Promise<void> {
    this.#assertUp(`ensure stream ${config.name}`);
    this.#assertJetStream(`$JS.API.STREAM.CREATE.${config.name}`);
    this.#broker.ensureStream(config);
  }

  async publishDurable(
    subject: string,
    data: Uint8Array,
    options: { readonly timeoutMs: number; readonly headers?: Headers },
  ): Promise<Stored> {
    checkSubject(subject);
    const wire = await this.#ask(subject, data, sealHeaders(subject, options.headers), options.timeoutMs);
    return readStored(subject, wire.data);
  }

  async consume(
    stream: string,
    durable: string,
    handler: (message: DurableMessage) => Promise<void>,
    options: { readonly maxAckPending: number; readonly ackWaitMs?: number },
  ): Promise<Subscription> {
    this.#assertUp(`consume ${stream}`);
    this.#assertJetStream(`$JS.API.CONSUMER.CREATE.${stream}.${durable}`);
    if (!this.#broker.hasStream(stream)) throw new BusError('stream', `consume ${stream}: stream not found`);
    const running = new Set<Promise<void>>();
    const ackWaitMs = options.ackWaitMs ?? ackWaitMsDefault;
    const take = (kept: Kept): void => {
      const one = this.#handle(stream, kept, handler, ackWaitMs).finally(() => running.delete(one));
      running.add(one);
    };
    const taker: Taker = { stream, take, maxAckPending: options.maxAckPending, bus: this };
    this.#broker.addTaker(taker);
    const dispose = async (): Promise<void> => {
      this.#broker.removeTaker(taker);
      await Promise.all(running);
    };
    return { subject: stream, [Symbol.asyncDispose]: dispose };
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#abandon('closed', 'the bus was closed by its owner');
    this.#broker.remove(this);
    this.#tell('closed', 'closed by its owner');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #send(subject: string, data: Uint8Array, headers: Headers, reply: string | undefined): boolean {
    this.#assertUp(`publish to ${subject}`);
    checkSize(subject, data, headers, busMessageBytesMax);
    if (!this.#mayPublish(subject)) {
      queueMicrotask(() => this.#tell('refused', `publish ${subject}`));
      return false;
    }
    return this.#broker.route({ subject, data: data.slice(), headers, reply });
  }

  #ask(subject: string, data: Uint8Array, headers: Headers, timeoutMs: number): Promise<Wire> {
    const { promise, resolve, reject } = Promise.withResolvers<Wire>();
    const inbox = this.#broker.inbox(this.#user.inboxPrefix ?? '_INBOX');
    const end = this.#listen(inbox, undefined, resolve, true);
    const timer = setTimeout(() => {
      reject(new BusError('timeout', `request ${subject}: no answer in time`));
    }, timeoutMs);
    this.#waiting.add(reject);
    try {
      const heard = this.#send(subject, data, headers, inbox);
      if (!this.#mayPublish(subject)) {
        reject(new BusError('refused', `request ${subject}: the server does not allow it`));
      } else if (!heard) {
        reject(new BusError('no_responder', `request ${subject}: nobody answers there`));
      }
    } catch (error) {
      reject(error);
    }
    return promise.finally(() => {
      clearTimeout(timer);
      this.#waiting.delete(reject);
      end();
    });
  }

  #listen(
    pattern: string,
    queue: string | undefined,
    deliver: (wire: Wire) => void,
    own = false,
  ): () => void {
    checkPattern(pattern);
    this.#assertUp(`subscribe to ${pattern}`);
    if (!this.#maySubscribe(pattern)) {
      this.#tell('refused', `subscription ${pattern}`);
      throw new BusError('refused', `subscribe to ${pattern}: the server does not allow it`);
    }
    const marked = (wire: Wire): void => {
      if (own || isMarked(wire.headers) || pattern.startsWith('$')) deliver(wire);
      else this.#tell('refused', `hear ${wire.subject}: dropped a message that no program sent`);
    };
    const interest: Interest = { pattern, queue, bus: this, deliver: marked };
    this.#broker.interests.add(interest);
    return () => this.#broker.interests.delete(interest);
  }

  async #run(wire: Wire, reply: string, handler: ServeHandler): Promise<void> {
    const { subject, data } = wire;
    try {
      const answer = asReply(await handler({ subject, data, headers: openHeaders(wire.headers) }));
      this.#send(reply, answer.data, sealHeaders(reply, answer.headers), undefined);
    } catch (error) {
      this.#answerError(
        reply,
        error instanceof BusError && error.code === 'too_large' ? 'too_large' : 'failed',
      );
    }
  }

  #answerError(reply: string, error: string): void {
    if (this.connected) {
      this.#send(reply, new Uint8Array(), sealHeaders(reply, {}, { [errorHeader]: error }), undefined);
    }
  }

  async #handle(
    stream: string,
    kept: Kept,
    handler: (message: DurableMessage) => Promise<void>,
    ackWaitMs: number,
  ): Promise<void> {
    let settled = false;
    const settle = (delayMs: number | undefined): void => {
      if (settled) return;
      settled = true;
      clearTimeout(late);
      this.#broker.settle(stream, kept, delayMs);
    };
    const late = setTimeout(() => settle(0), ackWaitMs);
    const { subject, data, headers } = kept.wire;
    if (!isMarked(headers)) return settle(undefined);
    try {
      await handler({
        subject,
        data,
        headers: openHeaders(headers),
        deliveries: kept.deliveries,
        ack: () => settle(undefined),
        nak: (delayMs) => settle(delayMs),
      });
    } catch {
      settle(handlerNakMs);
    }
  }

  #mayPublish(subject: string): boolean {
    return this.#user.allowPublish?.some((pattern) => covers(pattern, subject)) ?? true;
  }

  #maySubscribe(pattern: string): boolean {
    return this.#user.allowSubscribe?.some((allowed) => covers(allowed, pattern)) ?? true;
  }

  #assertJetStream(subject: string): void {
    if (!this.#mayPublish(subject))
      throw new BusError('refused', `request ${subject}: the server does not allow it`);
  }

  #assertUp(operation: string): void {
    if (this.#closed) throw new BusError('closed', `${operation}: the bus is closed`);
    if (!this.#broker.reachable) throw new BusError('unreachable', `${operation}: no server is connected`);
  }

  #abandon(code: 'unreachable' | 'closed', message: string): void {
    for (const reject of this.#waiting) reject(new BusError(code, message));
  }

  #tell(status: BusStatus, detail: string): void {
    for (const listener of this.#listeners) listener(status, detail);
  }
}
