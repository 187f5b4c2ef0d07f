// Owns the outbox: messages that leave only after the transaction that caused them has committed.
import { outboxBatchMax } from '@custody/core/limits';
import type { Database, Transaction } from './database.ts';

export interface OutboxMessage {
  readonly id: bigint;
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly headers: Readonly<Record<string, string>>;
}

export interface NewMessage {
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly headers?: Readonly<Record<string, string>>;
}

export async function enqueue(tx: Transaction, message: NewMessage, now: Date): Promise<void> {
  await tx.outbox.create({
    data: {
      subject: message.subject,
      payload: Uint8Array.from(message.payload),
      headers: { ...message.headers },
      createdAt: now,
    },
  });
}

/** The oldest unsent messages, in order. */
export async function unsentMessages(db: Database): Promise<OutboxMessage[]> {
  const rows = await db.prisma.outbox.findMany({
    where: { sentAt: null },
    orderBy: { id: 'asc' },
    take: outboxBatchMax,
  });
  return rows.map(({ id, subject, payload, headers }) => ({
    id,
    subject,
    payload,
    headers: headers as Record<string, string>,
  }));
}

/** Sent messages are not kept: the state they told of is. */
export async function removeSent(db: Database, ids: readonly bigint[]): Promise<void> {
  await db.prisma.outbox.deleteMany({ where: { id: { in: [...ids] } } });
}

export function countUnsent(db: Database): Promise<number> {
  return db.prisma.outbox.count({ where: { sentAt: null } });
}
