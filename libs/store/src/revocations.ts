// Owns the revocation log: numbered without gaps, in one order with every grant; lifts; and which receipts are expected.
import { CustodyError } from '@custody/core/errors';
import { listRowsMax, receiptRowsMax } from '@custody/core/limits';
import { describeTarget, keyOf, stands, type RevocationTarget } from '@custody/core/revocation';
import { transaction, type Database, type Transaction } from './database.ts';
import { revocationLock } from './grants.ts';
import { hitMember, type LiveAt } from './hits.ts';
import { appendOwn, onPrisma, type NextEntry } from './ledger.ts';
import { enqueue, type NewMessage } from './outbox.ts';
import { readLog, type LogIdentity } from './revocation-log.ts';

export interface NewRevocation {
  readonly target: RevocationTarget;
  readonly reason: string;
  readonly createdBy: string;
  /** How long after its ceiling a grant still counts as one that may be alive. */
  readonly slackMs: number;
  /** Nothing is done, and `conflict` thrown, where this target was revoked after that. */
  readonly unlessSince?: Date | undefined;
}

export interface RevocationRow extends Omit<NewRevocation, 'slackMs' | 'unlessSince'> {
  readonly epoch: number;
  readonly createdAt: Date;
  readonly standing: boolean;
  readonly lifted: { readonly at: Date; readonly by: string; readonly reason: string } | undefined;
}

/**
 * One transaction: revocation, epoch + 1, which receipts are expected, ledger entry, broadcast; for a ban the host's row
 * and its join tokens too. Throws `not_found` for what does not exist. `sign` gets the epoch and may be called again. The
 * clock is read under the lock: who reads the log as of a later instant reads this revocation.
 */
export function revoke(
  db: Database,
  author: string,
  revocation: NewRevocation,
  parts: {
    readonly now: () => Date;
    readonly sign: (epoch: number, createdAt: Date, log: LogIdentity) => Promise<string>;
    readonly entryFor: (epoch: number, createdAt: Date, expected: number) => NextEntry;
    readonly broadcastOf: (signed: string) => NewMessage;
  },
): Promise<RevocationRow> {
  const { target, reason, createdBy, slackMs, unlessSince } = revocation;
  return transaction(
    db,
    async (tx) => {
      const statement = onPrisma(tx);
      await statement(revocationLock('alone'), []);
      const createdAt = parts.now();
      await requireKnown(tx, target);
      if (unlessSince !== undefined) await requireNoneSince(tx, target, unlessSince);
      if (target.kind === 'host' && target.ban === true) await ban(tx, target, createdAt);
      const log = await readLog(statement);
      const epoch = log.epoch + 1;
      const signed = await parts.sign(epoch, createdAt, log);
      const row = {
        target,
        reason,
        createdAt,
        createdBy,
        epoch,
        standing: stands(target),
        lifted: undefined,
      };
      await tx.revocation.create({
        data: {
          ...{ epoch: BigInt(epoch), targetKind: target.kind, target: keyOf(target), claim: { ...target } },
          ...{ reason, createdAt, createdBy, signed, standing: row.standing },
        },
      });
      const hit = hitMember(target, { now: createdAt, slackMs });
      const [made] = await statement<{ expected: bigint }>(
        `WITH RECURSIVE ${hit.sql},
           written AS (INSERT INTO revocation_hits (epoch, grant_id)
             SELECT ${epoch}, id FROM hit RETURNING grant_id)
         SELECT count(*) AS expected FROM written`,
        hit.values,
      );
      await appendOwn(statement, author, parts.entryFor(epoch, createdAt, Number(made?.expected ?? 0)));
      await enqueue(tx, parts.broadcastOf(signed), createdAt);
      return row;
    },
    { operation: 'revoke' },
  );
}

/** What does not exist was mistyped: a revocation that names nothing would only look like one. */
async function requireKnown(tx: Transaction, target: RevocationTarget): Promise<void> {
  const found = async (): Promise<boolean> => {
    switch (target.kind) {
      case 'grant':
        return (await tx.grant.count({ where: { id: target.id } })) > 0;
      case 'run':
        return (await tx.grant.count({ where: { runId: target.id } })) > 0;
      case 'host':
        return (await tx.host.count({ where: { id: target.id } })) > 0;
      case 'secret': {
        // A removed secret may still be held.
        const row = await tx.secret.findUnique({ where: { path: target.path } });
        return row !== null && (target.version ?? 0) <= row.lastVersion;
      }
      case 'policy_revision':
        return (await tx.policyRevision.count({ where: { revision: target.revision } })) > 0;
      case 'subject':
      case 'prefix':
      case 'all':
        return true;
    }
  };
  if (await found()) return;
  throw new CustodyError('not_found', `revoke: there is no ${describeTarget(target)}`, {
    next: 'custody grant list, host list, secret versions and policy history show what there is',
  });
}

async function requireNoneSince(tx: Transaction, target: RevocationTarget, since: Date): Promise<void> {
  const newer = await tx.revocation.findFirst({
    where: { targetKind: target.kind, target: keyOf(target), createdAt: { gt: since } },
    select: { epoch: true },
  });
  if (newer === null) return;
  throw new CustodyError('conflict', `${describeTarget(target)} was revoked a moment ago, in ${newer.epoch}`);
}

async function ban(tx: Transaction, { id, name }: { id: string; name: string }, now: Date): Promise<void> {
  const { count } = await tx.host.updateMany({ where: { id, bannedAt: null }, data: { bannedAt: now } });
  if (count === 0) {
    throw new CustodyError('conflict', `${name} is banned already`, {
      next: 'custody revocation list --standing shows by whom and why',
    });
  }
  await tx.joinToken.updateMany({
    where: { name, usedAt: null, expiresAt: { gt: now } },
    data: { expiresAt: now },
  });
}

/**
 * Lifts standing revocations: the one of an epoch, or every one of exactly this target. Throws `not_found` where none
 * stands, `conflict` for a ban.
 */
export function lift(
  db: Database,
  author: string,
  what: { readonly epoch: number } | { readonly target: RevocationTarget },
  by: { readonly at: Date; readonly by: string; readonly reason: string },
  entryFor: (row: RevocationRow) => NextEntry,
): Promise<RevocationRow[]> {
  return transaction(
    db,
    async (tx) => {
      const statement = onPrisma(tx);
      // In one order with every grant: a grant is refused, or decided after the lift.
      await statement(revocationLock('alone'), []);
      const rows = await tx.revocation.findMany({
        where: {
          standing: true,
          liftedAt: null,
          ...('epoch' in what
            ? { epoch: BigInt(what.epoch) }
            : { targetKind: what.target.kind, target: keyOf(what.target) }),
        },
        orderBy: { epoch: 'asc' },
        take: listRowsMax,
      });
      if (rows.length === 0) {
        const asked = 'epoch' in what ? `revocation ${what.epoch}` : describeTarget(what.target);
        throw new CustodyError('not_found', `lift: nothing stands of ${asked}`, {
          next: 'custody revocation list --standing shows what refuses new grants',
        });
      }
      const lifted = rows.map((row) => ({ ...toRow(row), lifted: by }));
      for (const row of lifted) {
        if (row.target.kind === 'host' && row.target.ban === true) {
          throw new CustodyError('conflict', `lift: ${row.target.name} was banned, and its keys are gone`, {
            next: 'enrol it again: custody host token create, then custody agent enroll into an empty folder',
          });
        }
        await tx.revocation.update({
          where: { epoch: BigInt(row.epoch) },
          data: { liftedAt: by.at, liftedBy: by.by, liftReason: by.reason },
        });
        await appendOwn(statement, author, entryFor(row));
      }
      return lifted;
    },
    { operation: 'lift' },
  );
}

export async function revocationByEpoch(db: Database, epoch: number): Promise<RevocationRow | undefined> {
  const row = await db.prisma.revocation.findUnique({ where: { epoch: BigInt(epoch) } });
  return row === null ? undefined : toRow(row);
}

/** Newest first. */
export async function listRevocations(db: Database, standingOnly: boolean): Promise<RevocationRow[]> {
  const rows = await db.prisma.revocation.findMany({
    where: standingOnly ? { standing: true, liftedAt: null } : {},
    orderBy: { epoch: 'desc' },
    take: listRowsMax,
  });
  return rows.map(toRow);
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

/** A grant that a revocation hits, or would hit. */
export interface HitGrant {
  readonly grantId: string;
  readonly runId: string;
  readonly host: string;
  readonly subject: string;
  readonly command: readonly string[];
  readonly paths: readonly string[];
  readonly grantedAt: Date;
  readonly ceilingMs: number;
  readonly freshness: { kind: 'strict'; ms: number } | { kind: 'best_effort' };
}

const hitColumns = `g.id AS "grantId", g.run_id AS "runId", o.name AS host, g.subject, g.command, g.paths,
         g.granted_at AS "grantedAt", g.ceiling_ms AS "ceilingMs", g.freshness`;

/** What a revocation would hit now. Nothing is written. `grants` counts what the list leaves out too. */
export async function previewHits(
  db: Database,
  target: RevocationTarget,
  at: LiveAt,
): Promise<{ grants: number; hosts: { host: string; grants: number }[]; hits: HitGrant[] }> {
  return transaction(
    db,
    async (tx) => {
      await requireKnown(tx, target);
      const hit = hitMember(target, at);
      const from = `FROM hit JOIN grants g ON g.id = hit.id JOIN hosts o ON o.id = g.host_id`;
      const hosts = await onPrisma(tx)<{ host: string; grants: bigint }>(
        `WITH RECURSIVE ${hit.sql} SELECT o.name AS host, count(*) AS grants ${from} GROUP BY o.id ORDER BY o.name`,
        hit.values,
      );
      const rows = await onPrisma(tx)<HitGrant>(
        `WITH RECURSIVE ${hit.sql}
         SELECT ${hitColumns} ${from} ORDER BY o.name, g.granted_at, g.id LIMIT ${receiptRowsMax}`,
        hit.values,
      );
      const counted = hosts.map(({ host, grants }) => ({ host, grants: Number(grants) }));
      return { grants: counted.reduce((sum, { grants }) => sum + grants, 0), hosts: counted, hits: rows };
    },
    { operation: 'preview a revocation', isolation: 'RepeatableRead' },
  );
}

/** A grant whose receipt is expected, with what its host has put on record. */
export interface ExpectedReceipt extends HitGrant {
  /** The body of the receipt that says most: a final one before one that is not, this epoch's before another's. */
  readonly receipt: unknown;
  readonly receivedAt: Date | null;
  /** The body of `ended`, and when it came to be held here. */
  readonly ended: unknown;
  readonly endedAt: Date | null;
  readonly released: boolean;
}

/** Every expected receipt of one revocation: those without an answer first. Never fewer than at the revocation. */
export async function expectedReceipts(db: Database, epoch: number): Promise<ExpectedReceipt[]> {
  const { rows } = await db.pool.query<ExpectedReceipt>(
    `SELECT ${hitColumns}, r.body AS receipt, r.ingested_at AS "receivedAt", e.body AS ended, e.ingested_at AS "endedAt",
            EXISTS (SELECT FROM ledger_entries l
                     WHERE l.grant_id = g.id AND l.kind = 'released' AND l.author = g.host_id) AS released
       FROM revocation_hits h
       JOIN grants g ON g.id = h.grant_id
       JOIN hosts o ON o.id = g.host_id
       LEFT JOIN LATERAL (
         SELECT l.body, l.ingested_at FROM ledger_entries l
          WHERE l.grant_id = g.id AND l.kind = 'receipt' AND l.author = g.host_id
          ORDER BY (l.body->>'outcome' = 'not_empty'), (l.body->>'epoch' <> $2), l.chain_epoch, l.seq LIMIT 1) r ON true
       LEFT JOIN ledger_entries e ON e.grant_id = g.id AND e.kind = 'ended' AND e.author = g.host_id
      WHERE h.epoch = $1
      ORDER BY r.body IS NOT NULL, e.body IS NOT NULL, o.name, g.granted_at, g.id`,
    [epoch, String(epoch)],
  );
  return rows;
}

export interface Owed {
  readonly hostId: string;
  readonly grantId: string;
  readonly runId: string;
  /** The newest revocation that hit it. */
  readonly epoch: number;
}

/**
 * Grants hit before `before` of which their hosts have said nothing final, on hosts that were heard of since `seenSince`.
 * Each grant once.
 */
export async function owedReceipts(
  db: Database,
  asked: { readonly before: Date; readonly seenSince: Date },
  limit: number,
): Promise<Owed[]> {
  const { rows } = await db.pool.query<Omit<Owed, 'epoch'> & { epoch: string }>(
    `SELECT g.host_id AS "hostId", g.id AS "grantId", g.run_id AS "runId", max(h.epoch) AS epoch
       FROM grants g
       JOIN hosts o ON o.id = g.host_id AND o.last_seen_at > $2
       JOIN revocation_hits h ON h.grant_id = g.id
       JOIN revocations r ON r.epoch = h.epoch
      WHERE g.ended_at IS NULL AND r.created_at < $1
        AND NOT EXISTS (SELECT FROM ledger_entries l
                         WHERE l.grant_id = g.id AND l.kind = 'receipt' AND l.author = g.host_id
                           AND l.body->>'outcome' <> 'not_empty')
      GROUP BY g.id
      ORDER BY max(h.epoch) DESC, g.id
      LIMIT $3`,
    [asked.before, asked.seenSince, limit],
  );
  return rows.map((row) => ({ ...row, epoch: Number(row.epoch) }));
}

function toRow(row: {
  epoch: bigint;
  claim: unknown;
  reason: string;
  createdAt: Date;
  createdBy: string;
  standing: boolean;
  liftedAt: Date | null;
  liftedBy: string | null;
  liftReason: string | null;
}): RevocationRow {
  const { reason, createdAt, createdBy, standing, liftedAt, liftedBy, liftReason } = row;
  return {
    epoch: Number(row.epoch),
    // Written by `revoke` above, from a checked value.
    target: row.claim as RevocationTarget,
    ...{ reason, createdAt, createdBy, standing },
    lifted: liftedAt === null ? undefined : { at: liftedAt, by: liftedBy ?? '', reason: liftReason ?? '' },
  };
}
