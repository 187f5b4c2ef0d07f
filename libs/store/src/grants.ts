// Owns grants: issued in one transaction with their record, and read together with what the host said of them.
import { CustodyError } from '@custody/core/errors';
import { listRowsMax } from '@custody/core/limits';
import { describeTarget, type RevocationTarget } from '@custody/core/revocation';
import { sqlTransaction, transaction, type Database } from './database.ts';
import {
  appendOwn,
  headOf,
  moveHead,
  onClient,
  onPrisma,
  ownEntry,
  ownEntryValues,
  type HeadRecord,
  type NextEntry,
  type Statement,
} from './ledger.ts';
import { live, revokedAround } from './hits.ts';

/** Grants share it, revocations hold it alone: so each grant stands before or after each revocation. */
const revocationOrderLock = 7_221_001;

export interface GrantRow {
  readonly id: string;
  readonly runId: string;
  readonly hostId: string;
  readonly uid: number;
  readonly pid: number;
  readonly subject: string;
  readonly command: readonly string[];
  readonly cwd: string;
  readonly reason: string | undefined;
  readonly credentials: readonly { name: string; path: string; field: string; version: number }[];
  readonly policyRevision: number;
  readonly policyIds: readonly string[];
  readonly ceilingMs: number;
  readonly freshness: { kind: 'strict'; ms: number } | { kind: 'best_effort' };
  readonly containment: string;
  readonly parentGrant: string | undefined;
  readonly epoch: number;
  readonly grantedAt: Date;
  readonly jws: string;
}

export function revocationLock(how: 'shared' | 'alone'): string {
  const lock = how === 'shared' ? 'pg_advisory_xact_lock_shared' : 'pg_advisory_xact_lock';
  return `SELECT ${lock}(${revocationOrderLock})::text`;
}

/** What a standing revocation may refuse, before the grant is made. */
export interface GrantAsked {
  readonly hostId: string;
  readonly subject: string;
  readonly secrets: readonly { readonly path: string; readonly version: number }[];
  readonly parentGrant: string | undefined;
}

/** What a grant is made of that only the transaction knows. */
export interface GrantMade {
  readonly grant: GrantRow;
  readonly entry: NextEntry;
}

/**
 * Writes grant and ledger entry in one transaction. Throws `revoked` where a revocation stands against what is asked.
 * `make` gets the revocation epoch at the decision and must be pure but for signing: it may be called again.
 */
export function issueGrant(
  db: Database,
  author: string,
  asked: GrantAsked,
  make: (epoch: number) => Promise<GrantMade>,
): Promise<GrantRow> {
  return sqlTransaction(
    db,
    async (client) => {
      const statement = onClient(client);
      // After the lock: it sees every revocation that committed before, and none can commit until we have.
      const { hostId, subject, secrets, parentGrant } = asked;
      const keys = secrets.flatMap(({ path, version }) => [path, `${path}@${version}`]);
      const [row] = await statement<HeadRecord & { epoch: string; standing: Standing | null }>(
        readHeadAndEpoch,
        [author, hostId, subject, [...new Set(keys)]],
      );
      if (row === undefined) throw new Error(`issue grant: ${author} has no chain yet`);
      if (row.standing !== null) throw refusedBy(row.standing);
      if (parentGrant !== undefined) await requireUnrevoked(statement, parentGrant);
      const { grant, entry } = await make(Number(row.epoch));
      await statement(insertGrant, [
        grant.id,
        grant.runId,
        grant.hostId,
        grant.uid,
        grant.pid,
        grant.subject,
        [...grant.command],
        grant.cwd,
        grant.reason ?? null,
        JSON.stringify(grant.credentials),
        [...new Set(grant.credentials.map((each) => each.path))],
        grant.policyRevision,
        [...grant.policyIds],
        grant.ceilingMs,
        grant.grantedAt,
        grant.containment,
        JSON.stringify(grant.freshness),
        grant.parentGrant ?? null,
        grant.epoch,
        grant.jws,
        new Date(grant.grantedAt.getTime() + grant.ceilingMs),
        ...ownEntryValues(entry(headOf(row))),
      ]);
      return grant;
    },
    { operation: 'issue grant', opening: revocationLock('shared') },
  );
}

const readHeadAndEpoch = `
  SELECT head.chain_epoch, head.seq, head.hash, (SELECT coalesce(max(epoch), 0) FROM revocations) AS epoch,
         (SELECT to_jsonb(stands) FROM
           (SELECT epoch, claim, reason FROM revocations
             WHERE standing AND lifted_at IS NULL
               AND (target_kind = 'host' AND target = $2
                 OR target_kind = 'subject' AND target = $3
                 OR target_kind = 'secret' AND target = ANY($4))
             ORDER BY epoch LIMIT 1) AS stands) AS standing
    FROM ledger_heads AS head WHERE head.author = $1 FOR UPDATE OF head`;

const insertGrant = `
  WITH granted AS (INSERT INTO grants
    (id, run_id, host_id, uid, pid, subject, command, cwd, reason, credentials, paths, policy_revision, policy_ids,
     ceiling_ms, granted_at, containment, freshness, parent_grant, epoch, jws, ceiling_at)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11, $12, $13, $14, $15, $16, $17::jsonb, $18, $19, $20, $21)),
  ${ownEntry(22)} ${moveHead}`;

interface Standing {
  readonly epoch: number;
  readonly claim: RevocationTarget;
  readonly reason: string;
}

function refusedBy({ epoch, claim, reason }: Standing): CustodyError {
  const why = `${describeTarget(claim)} is revoked (revocation ${epoch}: ${reason})`;
  const banned = claim.kind === 'host' && claim.ban === true;
  return new CustodyError('revoked', `nothing new is granted: ${why}`, {
    next: banned
      ? 'this host has to be enrolled again, with a new join token and an empty data folder'
      : `ask who revoked it; an operator lifts it with custody lift --epoch ${epoch}`,
  });
}

async function requireUnrevoked(statement: Statement, grantId: string): Promise<void> {
  const [revoked] = await statement<{ epoch: string; reason: string }>(revokedAround, [grantId]);
  if (revoked !== undefined) {
    const { epoch, reason } = revoked;
    throw new CustodyError(
      'run_unacceptable',
      `the grant around this run, ${grantId}, was revoked (revocation ${epoch}: ${reason})`,
      { next: 'a run inside a revoked run cannot begin' },
    );
  }
}

/** Puts a denial on record. */
export function recordDenial(db: Database, author: string, entry: NextEntry): Promise<void> {
  return transaction(db, (tx) => appendOwn(onPrisma(tx), author, entry), { operation: 'record denial' });
}

/** A grant and what its host put on record about it. */
export interface GrantStory extends GrantRow {
  readonly host: string;
  readonly released: Date | undefined;
  readonly started: unknown;
  readonly ended: unknown;
  readonly endedAt: Date | undefined;
}

interface StoryRecord {
  id: string;
  run_id: string;
  host_id: string;
  host: string;
  uid: number;
  pid: number;
  subject: string;
  command: string[];
  cwd: string;
  reason: string | null;
  credentials: GrantRow['credentials'];
  policy_revision: number;
  policy_ids: string[];
  ceiling_ms: number;
  freshness: GrantRow['freshness'];
  containment: string;
  parent_grant: string | null;
  epoch: string;
  granted_at: Date;
  jws: string;
  released_at: Date | null;
  started: unknown;
  ended: unknown;
  ended_at: Date | null;
}

const storySql = `
  SELECT g.*, h.name AS host, r.at AS released_at, s.body AS started, e.body AS ended, e.at AS ended_at
    FROM grants g
    JOIN hosts h ON h.id = g.host_id
    LEFT JOIN ledger_entries r ON r.grant_id = g.id AND r.kind = 'released' AND r.author = g.host_id
    LEFT JOIN ledger_entries s ON s.grant_id = g.id AND s.kind = 'started' AND s.author = g.host_id
    LEFT JOIN ledger_entries e ON e.grant_id = g.id AND e.kind = 'ended' AND e.author = g.host_id`;

export async function grantStory(db: Database, id: string): Promise<GrantStory | undefined> {
  const { rows } = await db.pool.query<StoryRecord>(`${storySql} WHERE g.id = $1`, [id]);
  return rows.map(toStory)[0];
}

/** Newest first. `active`: not known to have ended, and not past ceiling plus `slackMs`. */
export async function listGrants(
  db: Database,
  active: { now: Date; slackMs: number } | undefined,
  canaries: boolean,
): Promise<GrantStory[]> {
  const { rows } = await db.pool.query<StoryRecord>(
    `${storySql}
      WHERE ($1::timestamptz IS NULL OR (${live('g', '$1', '$2')})) AND ($4 OR g.paths <> '{custody/canary}')
      ORDER BY g.granted_at DESC, g.id LIMIT $3`,
    [active?.now ?? null, active?.slackMs ?? 0, listRowsMax, canaries],
  );
  return rows.map(toStory);
}

export async function countActiveGrants(db: Database, now: Date, slackMs: number): Promise<number> {
  const { rows } = await db.pool.query<{ count: string }>(
    `SELECT count(*) FROM grants g WHERE ${live('g', '$1', '$2')}`,
    [now, slackMs],
  );
  return Number(rows[0]?.count ?? 0);
}

function toStory(row: StoryRecord): GrantStory {
  return {
    id: row.id,
    runId: row.run_id,
    hostId: row.host_id,
    host: row.host,
    uid: row.uid,
    pid: row.pid,
    subject: row.subject,
    command: row.command,
    cwd: row.cwd,
    reason: row.reason ?? undefined,
    credentials: row.credentials,
    policyRevision: row.policy_revision,
    policyIds: row.policy_ids,
    ceilingMs: row.ceiling_ms,
    freshness: row.freshness,
    containment: row.containment,
    parentGrant: row.parent_grant ?? undefined,
    epoch: Number(row.epoch),
    grantedAt: row.granted_at,
    jws: row.jws,
    released: row.released_at ?? undefined,
    started: row.started ?? undefined,
    ended: row.ended ?? undefined,
    endedAt: row.ended_at ?? undefined,
  };
}
