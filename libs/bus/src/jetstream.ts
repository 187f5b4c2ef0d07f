// Owns the durable side over a real server: making streams and consumers, and one consumer's loop of fetches.
import { busMessageBytesMax, reconnectWaitMs } from '@custody/core/limits';
import {
  AckPolicy,
  DeliverPolicy,
  DiscardPolicy,
  jetstream,
  jetstreamManager,
  JetStreamApiError,
  RetentionPolicy,
  StorageType,
  type ConsumerMessages,
  type JsMsg,
} from '@nats-io/jetstream';
import { nanos, type MsgHdrs, type NatsConnection } from '@nats-io/transport-node';
import {
  ackWaitMsDefault,
  duplicateWindowMsDefault,
  fetchExpiresMs,
  fetchMessagesMax,
  handlerNakMs,
} from './bounds.ts';
import type { DurableMessage, Headers, StreamConfig } from './bus.ts';
import { isMarked, openHeaders } from './envelope.ts';

const streamNotFound = 10_059;

export type ConsumeOptions = {
  readonly stream: string;
  readonly durable: string;
  readonly handler: (message: DurableMessage) => Promise<void>;
  readonly maxAckPending: number;
  readonly ackWaitMs?: number | undefined;
};

/** Rejects with JetStreamApiError or what the connection rejects with. */
export async function ensureStream(nc: NatsConnection, config: StreamConfig): Promise<void> {
  const manager = await jetstreamManager(nc);
  const changeable = {
    subjects: [...config.subjects],
    max_bytes: config.maxBytes,
    max_msgs: config.maxMessages,
    max_msg_size: busMessageBytesMax,
    discard: DiscardPolicy.New,
    duplicate_window: nanos(config.duplicateWindowMs ?? duplicateWindowMsDefault),
    // A publisher chooses where JetStream's acknowledgement goes, `$JS.API` included, and could so delete or
    // purge by it. Neither is ever done here.
    deny_delete: true,
    deny_purge: true,
  };
  try {
    await manager.streams.update(config.name, changeable);
  } catch (error) {
    if (!(error instanceof JetStreamApiError) || error.code !== streamNotFound) throw error;
    await manager.streams.add({
      ...changeable,
      name: config.name,
      storage: StorageType.File,
      retention: config.retention === 'workqueue' ? RetentionPolicy.Workqueue : RetentionPolicy.Limits,
      num_replicas: 1,
    });
  }
}

/** One durable pull consumer: fetches, hands out, fetches again; over reconnects until it is stopped. */
export class Consumer {
  readonly #nc: NatsConnection;
  readonly #options: ConsumeOptions;
  readonly #log: (line: string) => void;
  readonly #running = new Set<Promise<void>>();
  readonly #stopping = new AbortController();
  #batch: ConsumerMessages | undefined;
  #link = Promise.withResolvers<void>();
  #loop: Promise<void> | undefined;

  constructor(nc: NatsConnection, options: ConsumeOptions, log: (line: string) => void) {
    this.#nc = nc;
    this.#options = options;
    this.#log = log;
    this.#link.resolve();
  }

  /** Resolves when the server has the consumer; from then on it runs by itself. */
  async start(): Promise<void> {
    await this.#ensure();
    this.#loop = this.#run();
  }

  disconnected(): void {
    this.#link.resolve();
    this.#link = Promise.withResolvers();
    void this.#batch?.close();
  }

  connected(): void {
    this.#link.resolve();
  }

  /** Resolves when the last running handler has returned. What was fetched and not handled comes again. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#link.resolve();
    void this.#batch?.close();
    await this.#loop;
    await Promise.all(this.#running);
  }

  async #ensure(): Promise<void> {
    const { stream, durable, maxAckPending, ackWaitMs } = this.#options;
    const manager = await jetstreamManager(this.#nc);
    await manager.consumers.add(stream, {
      durable_name: durable,
      ack_policy: AckPolicy.Explicit,
      deliver_policy: DeliverPolicy.All,
      ack_wait: nanos(ackWaitMs ?? ackWaitMsDefault),
      max_ack_pending: maxAckPending,
      max_deliver: -1,
    });
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      await this.#link.promise;
      try {
        await this.#fetch();
      } catch (error) {
        if (signal.aborted) return;
        this.#log(`consume ${this.#options.stream}: ${error instanceof Error ? error.message : 'failed'}`);
        await pause(reconnectWaitMs, signal);
        await this.#ensure().catch(() => undefined);
      }
    }
  }

  async #fetch(): Promise<void> {
    const { stream, durable, maxAckPending } = this.#options;
    const consumer = await jetstream(this.#nc).consumers.get(stream, durable);
    const max_messages = Math.min(maxAckPending, fetchMessagesMax);
    // Fetching again costs one round trip; asking the server what the consumer looks like, another.
    while (!this.#stopping.signal.aborted) {
      this.#batch = await consumer.fetch({ max_messages, expires: fetchExpiresMs });
      if (this.#stopping.signal.aborted) await this.#batch.close();
      for await (const message of this.#batch) this.#handOut(message);
    }
  }

  #handOut(message: JsMsg): void {
    const headers = readHeaders(message.headers);
    if (!isMarked(headers)) {
      this.#log(
        `consume ${this.#options.stream}: dropped a message of ${message.subject} that no program sent`,
      );
      message.ack();
      return;
    }
    const running = this.#handle(message, headers).finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  async #handle(message: JsMsg, headers: Headers): Promise<void> {
    try {
      await this.#options.handler({
        subject: message.subject,
        data: message.data,
        headers: openHeaders(headers),
        deliveries: message.info.deliveryCount,
        ack: () => quietly(() => message.ack()),
        nak: (delayMs) => quietly(() => message.nak(delayMs)),
      });
    } catch (error) {
      this.#log(
        `consume ${this.#options.stream}: handler: ${error instanceof Error ? error.message : 'failed'}`,
      );
      quietly(() => message.nak(handlerNakMs));
    }
  }
}

export function readHeaders(headers: MsgHdrs | undefined): Record<string, string> {
  if (headers === undefined) return {};
  return Object.fromEntries(headers.keys().map((name) => [name, headers.last(name)]));
}

// On a closed connection the acknowledgement cannot leave: the message comes again.
function quietly(send: () => void): void {
  try {
    send();
  } catch {
    return;
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  signal.addEventListener('abort', () => resolve(), { once: true });
  return promise.finally(() => clearTimeout(timer));
}
