// Owns what rounds of canaries leave in the database: the last round, what was judged of it, each host's last proof.
import { listRowsMax } from '@custody/core/limits';
import { transaction, type Database } from './database.ts';
import { appendOwn, onPrisma, type NextEntry } from './ledger.ts';

/** As the partial index has it, word for word. */
const isCanary = `g.paths = '{custody/canary}'`;
const ofRounds = `r.target_kind = 'prefix' AND r.target = 'custody/canary'`;

export interface Round {
  readonly epoch: number;
  readonly createdAt: Date;
  readonly judged: boolean;
}

/** The newest revocation of all canaries, whoever made it. */
export async function lastRound(db: Database): Promise<Round | undefined> {
  const { rows } = await db.pool.query<{ epoch: string; createdAt: Date; judged: boolean }>(
    `SELECT r.epoch, r.created_at AS "createdAt",
            EXISTS (SELECT FROM ledger_entries l
                     WHERE l.kind = 'canary_judged' AND l.body->>'epoch' = r.epoch::text) AS judged
       FROM revocations r WHERE ${ofRounds} ORDER BY r.epoch DESC LIMIT 1`,
  );
  return rows.map((row) => ({ ...row, epoch: Number(row.epoch) }))[0];
}

/** Whether any canary has started and has not ended: whether a round would meet one. */
export async function canaryStands(db: Database): Promise<boolean> {
  const { rowCount } = await db.pool.query(
    `SELECT FROM grants g
      WHERE ${isCanary} AND g.ended_at IS NULL
        AND EXISTS (SELECT FROM ledger_entries l
                     WHERE l.grant_id = g.id AND l.kind = 'started' AND l.author = g.host_id)
      LIMIT 1`,
  );
  return rowCount === 1;
}

/** Hosts of which a round met no canary, but for those that enrolled or lost their last one after `since`. */
export async function hostsWithout(db: Database, epoch: number, since: Date): Promise<string[]> {
  const { rows } = await db.pool.query<{ name: string }>(
    `SELECT o.name FROM hosts o
      WHERE o.banned_at IS NULL AND o.enrolled_at < $2
        AND NOT EXISTS (SELECT FROM revocation_hits h JOIN grants g ON g.id = h.grant_id
                         WHERE h.epoch = $1 AND g.host_id = o.id)
        AND NOT EXISTS (SELECT FROM grants g WHERE ${isCanary} AND g.host_id = o.id AND g.ended_at >= $2)
      ORDER BY o.name`,
    [epoch, since],
  );
  return rows.map(({ name }) => name);
}

/** Puts the verdict on record, once for each round: of two control planes one does. */
export function recordVerdict(
  db: Database,
  author: string,
  epoch: number,
  entry: NextEntry,
): Promise<boolean> {
  return transaction(
    db,
    async (tx) => {
      // The head of the own chain is the lock: whoever comes second finds the entry.
      await tx.$queryRaw`SELECT seq FROM ledger_heads WHERE author = ${author} FOR UPDATE`;
      const judged = await tx.$queryRaw<unknown[]>`
        SELECT 1 FROM ledger_entries WHERE kind = 'canary_judged' AND body->>'epoch' = ${String(epoch)}`;
      if (judged.length > 0) return false;
      await appendOwn(onPrisma(tx), author, entry);
      return true;
    },
    { operation: 'record what canaries proved' },
  );
}

export interface LastProof {
  readonly hostId: string;
  /** By the host's clock. */
  readonly at: Date;
  /** From hearing of the revocation to an empty tree. */
  readonly emptyMicros: number;
}

/** When each host last killed its canary, and how fast. */
export async function lastProofs(db: Database): Promise<LastProof[]> {
  const { rows } = await db.pool.query<{ hostId: string; at: Date; emptyMicros: string }>(
    `SELECT o.id AS "hostId", proof.at, proof.micros AS "emptyMicros"
       FROM hosts o
      CROSS JOIN LATERAL (
        SELECT l.at, l.body->>'emptyMicros' AS micros
          FROM grants g
          JOIN ledger_entries l ON l.grant_id = g.id AND l.kind = 'receipt' AND l.author = g.host_id
                               AND l.body->>'outcome' = 'killed'
         WHERE g.host_id = o.id AND ${isCanary}
         ORDER BY g.granted_at DESC LIMIT 1) AS proof
      ORDER BY o.name LIMIT ${listRowsMax}`,
  );
  return rows.map((row) => ({ ...row, emptyMicros: Number(row.emptyMicros) }));
}

/** The body of the newest verdict. */
export async function lastVerdict(db: Database): Promise<unknown> {
  const { rows } = await db.pool.query<{ body: unknown }>(
    `SELECT body FROM ledger_entries WHERE kind = 'canary_judged' ORDER BY ordinal DESC LIMIT 1`,
  );
  return rows[0]?.body;
}
