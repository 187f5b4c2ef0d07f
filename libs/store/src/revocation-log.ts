// Owns where the revocation log stands: its identity, and its newest epoch as of an instant of the database's clock.
import { sqlTransaction, transaction, type Database } from './database.ts';
import { revocationLock } from './grants.ts';
import { appendOwn, onClient, onPrisma, type NextEntry, type Statement } from './ledger.ts';

/** One life of the log. `since`: the epoch at which it was begun anew; absent in the one the database began with. */
export interface LogIdentity {
  readonly id: string;
  readonly since?: number;
}

export interface LogHead extends LogIdentity {
  readonly epoch: number;
  /** Every revocation that was made before it has at most that epoch. */
  readonly at: Date;
}

const metaKey = 'revocation_log';

const readHead = `
  SELECT now() AS at, (SELECT value FROM meta WHERE key = '${metaKey}') AS log,
         (SELECT coalesce(max(epoch), 0) FROM revocations) AS epoch`;

/** In one statement, so that who holds the lock holds it for no longer. `at` is when the transaction began. */
export async function readLog(statement: Statement): Promise<LogHead> {
  const [row] = await statement<{ at: Date; log: LogIdentity | null; epoch: string | bigint }>(readHead, []);
  if (row === undefined || row.log === null) throw new Error('this database has no revocation log');
  return { ...row.log, epoch: Number(row.epoch), at: row.at };
}

/**
 * The clock is read when the transaction begins, then the lock is waited for, then the log is read: a revocation
 * that held the lock before that instant is in the epoch.
 */
export function logHead(db: Database): Promise<LogHead> {
  return sqlTransaction(db, (client) => readLog(onClient(client)), {
    operation: 'read the head of the revocation log',
    opening: revocationLock('shared'),
  });
}

/** Begins a new life of the log under that id: hosts that followed the one before will notice. */
export function renewLog(
  db: Database,
  author: string,
  id: string,
  entryFor: (from: string, epoch: number) => NextEntry,
): Promise<{ readonly from: string; readonly epoch: number }> {
  return transaction(
    db,
    async (tx) => {
      await onPrisma(tx)(revocationLock('alone'), []);
      const { id: from, epoch } = await readLog(onPrisma(tx));
      await tx.meta.update({ where: { key: metaKey }, data: { value: { id, since: epoch } } });
      await appendOwn(onPrisma(tx), author, entryFor(from, epoch));
      return { from, epoch };
    },
    { operation: 'renew the revocation log' },
  );
}
