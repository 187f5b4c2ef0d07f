// Owns policy revisions: one numbered set at a time, never changed.
import { listRowsMax } from '@custody/core/limits';
import { transaction, type Database } from './database.ts';
import { appendOwn, type NextEntry } from './ledger.ts';
import { enqueue, type NewMessage } from './outbox.ts';

export interface PolicyRow {
  readonly revision: number;
  readonly text: string;
  readonly createdAt: Date;
  readonly createdBy: string;
}

export function applyPolicy(
  db: Database,
  author: string,
  policy: Omit<PolicyRow, 'revision'>,
  parts: {
    readonly entryFor: (revision: number) => NextEntry;
    readonly noticeFor: (revision: number) => NewMessage;
  },
): Promise<PolicyRow> {
  return transaction(
    db,
    async (tx) => {
      await tx.$executeRaw`LOCK TABLE policy_revisions IN SHARE ROW EXCLUSIVE MODE`;
      const newest = await tx.policyRevision.findFirst({
        orderBy: { revision: 'desc' },
        select: { revision: true },
      });
      const row = await tx.policyRevision.create({
        data: { ...policy, revision: (newest?.revision ?? 0) + 1 },
      });
      await appendOwn(tx, author, parts.entryFor(row.revision));
      await enqueue(tx, parts.noticeFor(row.revision), policy.createdAt);
      return row;
    },
    { operation: 'apply policy' },
  );
}

export async function policyRevision(
  db: Database,
  revision: number | 'current',
): Promise<PolicyRow | undefined> {
  const row = await db.prisma.policyRevision.findFirst({
    ...(revision === 'current' ? {} : { where: { revision } }),
    orderBy: { revision: 'desc' },
  });
  return row ?? undefined;
}

export async function currentRevision(db: Database): Promise<number> {
  const row = await db.prisma.policyRevision.findFirst({
    orderBy: { revision: 'desc' },
    select: { revision: true },
  });
  return row?.revision ?? 0;
}

export function policyHistory(db: Database): Promise<PolicyRow[]> {
  return db.prisma.policyRevision.findMany({ orderBy: { revision: 'desc' }, take: listRowsMax });
}
