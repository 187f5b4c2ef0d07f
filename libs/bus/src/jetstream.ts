// Owns the durable side's administration over a real server: streams and consumers as they must be.
import { busMessageBytesMax } from '@custody/core/limits';
import {
  AckPolicy,
  DeliverPolicy,
  DiscardPolicy,
  jetstreamManager,
  JetStreamApiError,
  RetentionPolicy,
  StorageType,
} from '@nats-io/jetstream';
import { nanos, type MsgHdrs, type NatsConnection } from '@nats-io/transport-node';
import { ackWaitMsDefault, duplicateWindowMs } from './bounds.ts';
import type { DurableMessage, StreamConfig } from './bus.ts';

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
    max_msgs_per_subject: config.maxMessagesPerSubject ?? -1,
    discard_new_per_subject: config.maxMessagesPerSubject !== undefined,
    duplicate_window: nanos(duplicateWindowMs),
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

/** Makes the durable pull consumer or brings it to these bounds. Rejects as `ensureStream` does. */
export async function ensureConsumer(nc: NatsConnection, options: ConsumeOptions): Promise<void> {
  const manager = await jetstreamManager(nc);
  await manager.consumers.add(options.stream, {
    durable_name: options.durable,
    ack_policy: AckPolicy.Explicit,
    deliver_policy: DeliverPolicy.All,
    ack_wait: nanos(options.ackWaitMs ?? ackWaitMsDefault),
    max_ack_pending: options.maxAckPending,
    max_deliver: -1,
  });
}

export function readHeaders(headers: MsgHdrs | undefined): Record<string, string> {
  if (headers === undefined) return {};
  return Object.fromEntries(headers.keys().map((name) => [name, headers.last(name)]));
}
