// Owns policy revisions: one numbered set at a time, never changed.
import { listRowsMax } from '@custody/core/limits';
import { transaction, type Database } from './database.ts';
import { appendOwn, onPrisma, type NextEntry } from './ledger.ts';
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
      await appendOwn(onPrisma(tx), author, parts.entryFor(row.revision));
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

/** On the way of every grant: one prepared statement. */
export async function currentRevision(db: Database): Promise<number> {
  const { rows } = await db.pool.query<{ revision: number }>({
    name: 'current-revision',
    text: 'SELECT coalesce(max(revision), 0) AS revision FROM policy_revisions',
  });
  return rows[0]?.revision ?? 0;
}

export function policyHistory(db: Database): Promise<PolicyRow[]> {
  return db.prisma.policyRevision.findMany({ orderBy: { revision: 'desc' }, take: listRowsMax });
}
