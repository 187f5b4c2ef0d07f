// Owns the central ledger: entries of every author, exactly once and in order, and the questions asked of them.
import type { PoolClient } from 'pg';
import { listRowsMax, possessionRowsMax } from '@custody/core/limits';
import { sqlTransaction, type Database, type Transaction } from './database.ts';

/** One entry as its author wrote it, with what the columns need. */
export interface LedgerRow {
  readonly author: string;
  readonly chainEpoch: number;
  readonly seq: number;
  readonly kind: string;
  readonly grantId: string | undefined;
  readonly at: Date;
  readonly bootMs: number;
  /** Lower-case hex. */
  readonly prev: string;
  readonly hash: string;
  readonly bytes: Uint8Array;
  readonly signature: Uint8Array;
  readonly body: unknown;
}

export interface ChainHead {
  readonly epoch: number;
  readonly seq: number;
  readonly hash: string;
}

/** Makes the next entry of a chain whose head is given. Must be pure: a transaction may run it again. */
export type NextEntry = (head: ChainHead | undefined) => LedgerRow;

/** One statement inside a transaction, whichever client holds it. */
export type Statement = <Row>(sql: string, values: readonly unknown[]) => Promise<Row[]>;

export const onPrisma =
  (tx: Transaction): Statement =>
  (sql, values) =>
    tx.$queryRawUnsafe(sql, ...values);

export const onClient =
  (client: PoolClient): Statement =>
  async <Row>(sql: string, values: readonly unknown[]) =>
    (await client.query({ name: preparedName(sql), text: sql, values: [...values] })).rows as Row[];

const preparedNames = new Map<string, string>();

/** Parsed and planned once a connection. Only for the fixed statements of this room: each is remembered for ever. */
function preparedName(sql: string): string {
  const known = preparedNames.get(sql);
  if (known !== undefined) return known;
  const name = `custody-${preparedNames.size}`;
  preparedNames.set(sql, name);
  return name;
}

/** Writes the control plane's own entry inside the transaction of what it records. Its head serialises them. */
export async function appendOwn(statement: Statement, author: string, next: NextEntry): Promise<void> {
  const read = 'SELECT chain_epoch, seq, hash FROM ledger_heads WHERE author = $1 FOR UPDATE';
  let [row] = await statement<HeadRecord>(read, [author]);
  if (row === undefined) {
    await statement(insertHead, [author]);
    [row] = await statement<HeadRecord>(read, [author]);
  }
  await statement(`WITH ${ownEntry(1)} ${moveHead}`, ownEntryValues(next(headOf(row))));
}

/** The head a row says, undefined for a chain without entries. */
export function headOf(row: HeadRecord | undefined): ChainHead | undefined {
  return row === undefined || row.seq === 0 ? undefined : toHead(row);
}

/** A WITH member `entry` that inserts an own entry, with its values from `$first` on; `moveHead` must follow. */
export function ownEntry(first: number): string {
  const $ = (nth: number): string => `$${first + nth}`;
  return `entry AS (
    INSERT INTO ledger_entries
      (author, chain_epoch, seq, kind, grant_id, at, boot_ms, hash, bytes, signature, body, ingested_at)
    VALUES (${$(0)}, ${$(1)}::int, ${$(2)}::int, ${$(3)}, ${$(4)}, ${$(5)}::timestamptz, ${$(6)}::bigint,
            ${$(7)}::bytea, ${$(8)}::bytea, ${$(9)}::bytea, ${$(10)}::jsonb, ${$(5)}::timestamptz)
    RETURNING author, chain_epoch, seq, hash)`;
}

export const moveHead = `
  UPDATE ledger_heads AS head SET chain_epoch = entry.chain_epoch, seq = entry.seq, hash = entry.hash
    FROM entry WHERE head.author = entry.author`;

export function ownEntryValues(entry: LedgerRow): unknown[] {
  return [
    entry.author,
    entry.chainEpoch,
    entry.seq,
    entry.kind,
    entry.grantId ?? null,
    entry.at,
    entry.bootMs,
    Buffer.from(entry.hash, 'hex'),
    Buffer.from(entry.bytes),
    Buffer.from(entry.signature),
    queryable(entry.body),
  ];
}

const insertHead = `INSERT INTO ledger_heads (author, chain_epoch, seq, hash) VALUES ($1, 1, 0, '') ON CONFLICT (author) DO NOTHING`;

export interface HeadRecord {
  readonly chain_epoch: number;
  readonly seq: number;
  readonly hash: Uint8Array;
}

export type Ingested =
  /** Everything offered is now held; `head` is what the receipt may say. */
  | { readonly outcome: 'held'; readonly head: ChainHead; readonly added: number }
  /** Entries before the offered ones are missing: nothing was added. */
  | { readonly outcome: 'gap'; readonly head: ChainHead | undefined }
  /** The author signed two different entries for one place in its chain: nothing was added. */
  | {
      readonly outcome: 'fork';
      readonly head: ChainHead;
      readonly seq: number;
      readonly held: string;
      readonly offered: string;
    };

/**
 * Takes consecutive entries of one author and one chain epoch whose signatures and links were checked.
 * What is held already is compared, not added again: the primary key is the only dedupe.
 */
export function ingestLedger(db: Database, rows: readonly LedgerRow[], now: Date): Promise<Ingested> {
  const [first] = rows;
  if (first === undefined) throw new RangeError('ingest ledger: no entries');
  return sqlTransaction(
    db,
    async (client) => {
      const head = await lockHead(client, first.author);
      const fork = await findFork(client, rows, head);
      if (fork !== undefined) {
        await client.query(
          'UPDATE ledger_heads SET forked_at = coalesce(forked_at, $2), fork_detail = coalesce(fork_detail, $3) WHERE author = $1',
          [first.author, now, JSON.stringify(fork)],
        );
        return { outcome: 'fork', ...fork };
      }
      const fresh = rows.filter((row) => isAfter(row, head));
      const [next] = fresh;
      if (next === undefined)
        return head === undefined ? { outcome: 'gap', head } : { outcome: 'held', head, added: 0 };
      const expected = head === undefined || next.chainEpoch > head.epoch ? 1 : head.seq + 1;
      if (next.seq !== expected) return { outcome: 'gap', head };
      await insert(client, fresh, now);
      await closeGrants(client, fresh, now);
      const last = fresh.at(-1) ?? next;
      await client.query('UPDATE ledger_heads SET chain_epoch = $2, seq = $3, hash = $4 WHERE author = $1', [
        last.author,
        last.chainEpoch,
        last.seq,
        Buffer.from(last.hash, 'hex'),
      ]);
      return {
        outcome: 'held',
        head: { epoch: last.chainEpoch, seq: last.seq, hash: last.hash },
        added: fresh.length,
      };
    },
    { operation: `ingest the ledger of ${first.author}` },
  );
}

async function lockHead(client: PoolClient, author: string): Promise<ChainHead | undefined> {
  await client.query(insertHead, [author]);
  const { rows } = await client.query<HeadRecord>(
    'SELECT chain_epoch, seq, hash FROM ledger_heads WHERE author = $1 FOR UPDATE',
    [author],
  );
  const [row] = rows;
  return row === undefined || row.seq === 0 ? undefined : toHead(row);
}

async function findFork(
  client: PoolClient,
  rows: readonly LedgerRow[],
  head: ChainHead | undefined,
): Promise<{ head: ChainHead; seq: number; held: string; offered: string } | undefined> {
  if (head === undefined) return undefined;
  const known = rows.filter((row) => !isAfter(row, head));
  if (known.length > 0) {
    const { rows: held } = await client.query<{ seq: number; hash: Uint8Array }>(
      'SELECT seq, hash FROM ledger_entries WHERE author = $1 AND chain_epoch = $2 AND seq = ANY($3) ORDER BY seq',
      [known[0]?.author, known[0]?.chainEpoch, known.map((row) => row.seq)],
    );
    const hashes = new Map(held.map((row) => [row.seq, hex(row.hash)]));
    for (const row of known) {
      const hash = hashes.get(row.seq);
      if (hash !== undefined && hash !== row.hash)
        return { head, seq: row.seq, held: hash, offered: row.hash };
    }
  }
  const next = rows.find((row) => isAfter(row, head));
  const follows = next !== undefined && next.chainEpoch === head.epoch && next.seq === head.seq + 1;
  if (follows && next.prev !== head.hash) return { head, seq: next.seq, held: head.hash, offered: next.prev };
  return undefined;
}

function isAfter(row: LedgerRow, head: ChainHead | undefined): boolean {
  return (
    head === undefined || row.chainEpoch > head.epoch || (row.chainEpoch === head.epoch && row.seq > head.seq)
  );
}

async function insert(client: PoolClient, rows: readonly LedgerRow[], now: Date): Promise<void> {
  await client.query(
    `INSERT INTO ledger_entries
       (author, chain_epoch, seq, kind, grant_id, at, boot_ms, hash, bytes, signature, body, ingested_at)
     SELECT author, chain_epoch, seq, kind, grant_id, at, boot_ms, hash, bytes, signature, body::jsonb, $12
       FROM unnest($1::text[], $2::int[], $3::int[], $4::text[], $5::text[], $6::timestamptz[], $7::bigint[],
                   $8::bytea[], $9::bytea[], $10::bytea[], $11::text[])
         AS t(author, chain_epoch, seq, kind, grant_id, at, boot_ms, hash, bytes, signature, body)`,
    [
      rows.map((row) => row.author),
      rows.map((row) => row.chainEpoch),
      rows.map((row) => row.seq),
      rows.map((row) => row.kind),
      rows.map((row) => row.grantId ?? null),
      rows.map((row) => row.at),
      rows.map((row) => row.bootMs),
      rows.map((row) => Buffer.from(row.hash, 'hex')),
      rows.map((row) => Buffer.from(row.bytes)),
      rows.map((row) => Buffer.from(row.signature)),
      rows.map((row) => queryable(row.body)),
      now,
    ],
  );
}

/** A grant counts as ended once its own host has said so, and here. */
async function closeGrants(client: PoolClient, rows: readonly LedgerRow[], now: Date): Promise<void> {
  const ended = rows.filter(({ kind, grantId }) => kind === 'ended' && grantId !== undefined);
  if (ended.length === 0) return;
  await client.query(
    'UPDATE grants SET ended_at = $3 WHERE id = ANY($1) AND host_id = $2 AND ended_at IS NULL',
    [ended.map(({ grantId }) => grantId), ended[0]?.author, now],
  );
}

/** jsonb cannot hold U+0000. The copy for queries does without; the evidence is in `bytes`. */
function queryable(body: unknown): string {
  return JSON.stringify(body).replaceAll('\\u0000', '\\ufffd');
}

export interface AuthorRow {
  readonly author: string;
  readonly head: ChainHead;
  readonly forked: boolean;
}

export async function ledgerAuthors(db: Database): Promise<AuthorRow[]> {
  const rows = await db.prisma.ledgerHead.findMany({
    where: { seq: { gt: 0 } },
    orderBy: { author: 'asc' },
    take: listRowsMax,
  });
  return rows.map((row) => ({
    author: row.author,
    head: { epoch: row.chainEpoch, seq: row.seq, hash: hex(row.hash) },
    forked: row.forkedAt !== null,
  }));
}

export interface LineRow {
  readonly ordinal: number;
  readonly author: string;
  readonly ingestedAt: Date;
  readonly bytes: Uint8Array;
  readonly signature: Uint8Array;
}

/** Lines of one chain, in its order, after `afterSeq`. */
export async function chainLines(
  db: Database,
  author: string,
  epoch: number,
  afterSeq: number,
  limit: number,
): Promise<LineRow[]> {
  const rows = await db.prisma.ledgerEntry.findMany({
    where: { author, chainEpoch: epoch, seq: { gt: afterSeq } },
    orderBy: { seq: 'asc' },
    take: limit,
    select: { ordinal: true, author: true, ingestedAt: true, bytes: true, signature: true },
  });
  return rows.map(toLine);
}

/** In order of ingestion, of all chains or of one. */
export interface Stretch {
  readonly author: string | undefined;
  readonly after: number;
  readonly upTo: number;
}

/** The newest `limit` lines of a stretch, oldest first. */
export async function newestLines(db: Database, stretch: Stretch, limit: number): Promise<LineRow[]> {
  const { author, after, upTo } = stretch;
  const rows = await db.prisma.ledgerEntry.findMany({
    where: {
      ordinal: { gt: BigInt(after), lte: BigInt(upTo) },
      ...(author === undefined ? {} : { author }),
    },
    orderBy: { ordinal: 'desc' },
    take: limit,
    select: { ordinal: true, author: true, ingestedAt: true, bytes: true, signature: true },
  });
  return rows.toReversed().map(toLine);
}

export interface PossessionFact {
  readonly host: string;
  readonly epoch: number;
  readonly seq: number;
  readonly from: Date;
  readonly to: Date | undefined;
  /** Bodies as the host wrote them: kinds `released`, `started`, `ended`. */
  readonly released: unknown;
  readonly started: unknown;
  readonly ended: unknown;
}

/**
 * Who held `path` at any time in [from, to], over all hosts: an index scan over the entries by which
 * hosts recorded a release, each with the entry that closed it. A host's wall clock is believed where it cannot be
 * wrong by more than the control plane's own clock shows: a release lies between grant and ingestion. How long
 * it was held, the host's boot-time clock says, which nobody sets; after a reboot, until the end was ingested.
 */
export async function possession(
  db: Database,
  path: string,
  from: Date | undefined,
  to: Date | undefined,
): Promise<PossessionFact[]> {
  const { rows } = await db.pool.query<{
    host: string;
    chain_epoch: number;
    seq: number;
    at: Date;
    ended_at: Date | null;
    released: unknown;
    started: unknown;
    ended: unknown;
  }>(
    `SELECT h.name AS host, r.chain_epoch, r.seq, began.at, closed.at AS ended_at,
            r.body AS released, s.body AS started, e.body AS ended
       FROM ledger_entries r
       JOIN hosts h ON h.id = r.author
       LEFT JOIN grants g ON g.id = r.grant_id AND g.host_id = r.author
       LEFT JOIN ledger_entries s ON s.grant_id = r.grant_id AND s.kind = 'started' AND s.author = r.author
       LEFT JOIN ledger_entries e ON e.grant_id = r.grant_id AND e.kind = 'ended' AND e.author = r.author
      CROSS JOIN LATERAL (SELECT least(greatest(r.at, g.granted_at), r.ingested_at) AS at) began
      CROSS JOIN LATERAL (SELECT CASE WHEN e.boot_ms >= r.boot_ms
          THEN least(began.at + (e.boot_ms - r.boot_ms) * interval '1 millisecond', e.ingested_at)
          ELSE e.ingested_at END AS at) closed
      WHERE r.kind = 'released'
        AND r.body @> $1::jsonb
        AND ($3::timestamptz IS NULL OR began.at <= $3)
        AND ($2::timestamptz IS NULL OR closed.at IS NULL OR closed.at >= $2)
      ORDER BY began.at, r.author, r.seq
      LIMIT $4`,
    [JSON.stringify({ credentials: [{ path }] }), from ?? null, to ?? null, possessionRowsMax],
  );
  return rows.map((row) => ({
    host: row.host,
    epoch: row.chain_epoch,
    seq: row.seq,
    from: row.at,
    to: row.ended_at ?? undefined,
    released: row.released,
    started: row.started ?? undefined,
    ended: row.ended ?? undefined,
  }));
}

function toLine(row: {
  ordinal: bigint;
  author: string;
  ingestedAt: Date;
  bytes: Uint8Array;
  signature: Uint8Array;
}): LineRow {
  return { ...row, ordinal: Number(row.ordinal) };
}

function toHead(row: HeadRecord): ChainHead {
  return { epoch: row.chain_epoch, seq: row.seq, hash: hex(row.hash) };
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}
