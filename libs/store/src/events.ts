// Owns reading the central ledger in its one order without ever skipping an entry that commits late.
import { eventPollMs } from '@custody/core/limits';
import { setTimeout as delay } from 'node:timers/promises';
import type { Database } from './database.ts';

/** How far back a reader that begins now looks for places that are not filled yet. */
const lookBackMax = 1_024;
const horizonPollMs = 5;

export interface EventRow {
  readonly ordinal: number;
  readonly author: string;
  readonly kind: string;
  readonly at: Date;
  readonly body: unknown;
}

/**
 * The next entries after `after`, in order of their ordinals; empty where nothing is settled yet. A number is taken before
 * its transaction commits, so a lower one may appear later. A row is given only once every lower number is there, or
 * can never be: every transaction that was open when the gap was seen has ended. Numbers that were taken and rolled
 * back stay gaps.
 */
export async function settledAfter(
  db: Database,
  after: number,
  limit: number,
  signal: AbortSignal,
): Promise<EventRow[]> {
  const rows = await readAfter(db, after, limit);
  const last = rows.at(-1);
  if (last === undefined) return [];
  const unbroken = rows.findIndex((row, index) => row.ordinal !== after + 1 + index);
  if (unbroken === -1) return rows;
  if (unbroken > 0) return rows.slice(0, unbroken);
  if (!(await allEnded(db, signal))) return [];
  const again = await readAfter(db, after, limit);
  return again.filter(({ ordinal }) => ordinal <= last.ordinal);
}

/** Where a reader begins who wants what comes from now on: after everything that is settled. */
export async function settledHead(db: Database, signal: AbortSignal): Promise<number> {
  const { rows } = await db.pool.query<{ head: string; missing: string[] }>(
    `WITH newest AS (SELECT coalesce(max(ordinal), 0) AS head FROM ledger_entries)
     SELECT head,
            ARRAY(SELECT n FROM generate_series(greatest(head - $1, 1), head) AS n
                   WHERE NOT EXISTS (SELECT FROM ledger_entries WHERE ordinal = n) ORDER BY n) AS missing
       FROM newest`,
    [lookBackMax],
  );
  const [row] = rows;
  if (row === undefined || row.missing.length === 0) return Number(row?.head ?? 0);
  await allEnded(db, signal);
  const arrived = await db.pool.query<{ first: string | null }>(
    'SELECT min(ordinal) AS first FROM ledger_entries WHERE ordinal = ANY($1)',
    [row.missing],
  );
  const first = arrived.rows[0]?.first ?? null;
  return first === null ? Number(row.head) : Number(first) - 1;
}

/** Where the newest `count` entries of these kinds begin. */
export async function beforeNewest(db: Database, kinds: readonly string[], count: number): Promise<number> {
  const { rows } = await db.pool.query<{ ordinal: string }>(
    'SELECT ordinal FROM ledger_entries WHERE kind = ANY($1) ORDER BY ordinal DESC LIMIT $2',
    [kinds, count],
  );
  return Number(rows.at(-1)?.ordinal ?? 1) - 1;
}

async function readAfter(db: Database, after: number, limit: number): Promise<EventRow[]> {
  const { rows } = await db.pool.query<Omit<EventRow, 'ordinal'> & { ordinal: string }>(
    'SELECT ordinal, author, kind, at, body FROM ledger_entries WHERE ordinal > $1 ORDER BY ordinal LIMIT $2',
    [after, limit],
  );
  return rows.map((row) => ({ ...row, ordinal: Number(row.ordinal) }));
}

/**
 * Resolves with true when every transaction that had a number of its own at the call has ended; false when aborted. A
 * snapshot's own xmax will not do for the bound: it stands after the last that ended, and one that is open may be newer.
 */
async function allEnded(db: Database, signal: AbortSignal): Promise<boolean> {
  const { rows: own } = await db.pool.query<{ xid: string }>('SELECT pg_current_xact_id()::text AS xid');
  for (let waitMs = horizonPollMs; !signal.aborted; waitMs = Math.min(waitMs * 2, eventPollMs)) {
    const { rows } = await db.pool.query<{ passed: boolean }>(
      'SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::xid8 AS passed',
      [own[0]?.xid],
    );
    if (rows[0]?.passed === true) return true;
    await delay(waitMs, undefined, { signal }).catch(() => undefined);
  }
  return false;
}
