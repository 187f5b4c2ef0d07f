// Owns the revocation log: numbered without gaps, in one order with every grant.
import { CustodyError } from '@custody/core/errors';
import { transaction, type Database } from './database.ts';
import { revocationLock } from './grants.ts';
import { appendOwn, onPrisma, type NextEntry } from './ledger.ts';
import { enqueue, type NewMessage } from './outbox.ts';
import { readLog, type LogIdentity } from './revocation-log.ts';

export interface RevocationRow {
  readonly epoch: number;
  readonly targetKind: string;
  readonly target: string;
  readonly reason: string;
  readonly createdAt: Date;
  readonly createdBy: string;
  readonly signed: string;
}

/**
 * One transaction: revocation, epoch + 1, ledger entry, broadcast. Throws `not_found` for a grant that does
 * not exist. `sign` gets the epoch and may be called again. The clock is read under the lock: who reads the log
 * as of a later instant reads this revocation.
 */
export function revoke(
  db: Database,
  author: string,
  asked: Omit<RevocationRow, 'epoch' | 'signed' | 'createdAt'>,
  parts: {
    readonly now: () => Date;
    readonly sign: (epoch: number, createdAt: Date, log: LogIdentity) => Promise<string>;
    readonly entryFor: (epoch: number, createdAt: Date) => NextEntry;
    readonly broadcastOf: (signed: string) => NewMessage;
  },
): Promise<RevocationRow> {
  return transaction(
    db,
    async (tx) => {
      await onPrisma(tx)(revocationLock('alone'), []);
      const revocation = { ...asked, createdAt: parts.now() };
      const { createdAt } = revocation;
      const grant = await tx.grant.findUnique({ where: { id: revocation.target }, select: { id: true } });
      if (grant === null) {
        throw new CustodyError('not_found', `there is no grant ${revocation.target}`, {
          next: 'custody grant list shows them',
        });
      }
      const log = await readLog(onPrisma(tx));
      const epoch = log.epoch + 1;
      const signed = await parts.sign(epoch, createdAt, log);
      await tx.revocation.create({ data: { ...revocation, epoch: BigInt(epoch), signed } });
      await appendOwn(onPrisma(tx), author, parts.entryFor(epoch, createdAt));
      await enqueue(tx, parts.broadcastOf(signed), createdAt);
      return { ...revocation, epoch, signed };
    },
    { operation: 'revoke' },
  );
}

export async function revocationByEpoch(db: Database, epoch: number): Promise<RevocationRow | undefined> {
  const row = await db.prisma.revocation.findUnique({ where: { epoch: BigInt(epoch) } });
  return row === null ? undefined : { ...row, epoch: Number(row.epoch) };
}

/** Signed entries after `after`, in order. */
export async function revocationsAfter(db: Database, after: number, limit: number): Promise<string[]> {
  const rows = await db.prisma.revocation.findMany({
    where: { epoch: { gt: BigInt(after) } },
    orderBy: { epoch: 'asc' },
    take: limit,
    select: { signed: true },
  });
  return rows.map((row) => row.signed);
}

export async function revocationHead(db: Database): Promise<number> {
  const row = await db.prisma.revocation.findFirst({ orderBy: { epoch: 'desc' }, select: { epoch: true } });
  return Number(row?.epoch ?? 0n);
}

/** What the grant's host put on record about one revocation. */
export async function receiptBody(
  db: Database,
  grantId: string,
  hostId: string,
  epoch: number,
): Promise<unknown> {
  const { rows } = await db.pool.query<{ body: unknown }>(
    `SELECT body FROM ledger_entries
      WHERE grant_id = $1 AND kind = 'receipt' AND author = $2 AND body->>'epoch' = $3`,
    [grantId, hostId, String(epoch)],
  );
  return rows[0]?.body;
}
