// Owns enrolled hosts and the join tokens that let them in.
import { CustodyError } from '@custody/core/errors';
import { listRowsMax } from '@custody/core/limits';
import { transaction, type Database } from './database.ts';
import { StoreError } from './errors.ts';
import { appendOwn, onPrisma, type NextEntry } from './ledger.ts';

export interface HostRow {
  readonly id: string;
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly signingKey: string;
  readonly sealingKey: string;
  readonly busUserKey: string;
  readonly enrolledAt: Date;
  readonly lastSeenAt: Date | undefined;
  readonly containment: string | undefined;
  readonly bannedAt: Date | undefined;
}

export interface NewJoinToken {
  readonly id: string;
  readonly hash: Uint8Array;
  readonly name: string | undefined;
  readonly labels: Readonly<Record<string, string>>;
  readonly createdAt: Date;
  readonly expiresAt: Date;
}

export function createJoinToken(
  db: Database,
  author: string,
  token: NewJoinToken,
  entry: NextEntry,
): Promise<void> {
  return transaction(
    db,
    async (tx) => {
      const { id, name, labels, createdAt, expiresAt } = token;
      const hash = Uint8Array.from(token.hash);
      await tx.joinToken.create({ data: { id, hash, name: name ?? null, labels, createdAt, expiresAt } });
      await appendOwn(onPrisma(tx), author, entry);
    },
    { operation: 'create join token' },
  );
}

export interface NewHost {
  readonly id: string;
  /** What the host asked for; a token that names a host overrules it. */
  readonly name: string | undefined;
  readonly signingKey: string;
  readonly sealingKey: string;
  readonly busUserKey: string;
  readonly agentVersion: string;
  readonly containment: string;
}

/**
 * Uses the token and records the host. Throws `join_token_unknown`, `_expired` or `_used`, `bad_request`
 * when nobody named the host, `conflict` when the name is taken.
 */
export function enrollHost(
  db: Database,
  author: string,
  tokenHash: Uint8Array,
  host: NewHost,
  now: Date,
  entryFor: (name: string) => NextEntry,
): Promise<HostRow> {
  return transaction(
    db,
    async (tx) => {
      const hash = Uint8Array.from(tokenHash);
      const token = await tx.joinToken.findUnique({ where: { hash } });
      if (token === null)
        throw new CustodyError('join_token_unknown', 'the join token is not known here', newToken);
      if (token.usedAt !== null)
        throw new CustodyError('join_token_used', 'the join token was used already', newToken);
      if (token.expiresAt <= now)
        throw new CustodyError('join_token_expired', 'the join token has expired', newToken);
      const name = token.name ?? host.name;
      if (name === undefined) {
        throw new CustodyError('bad_request', 'neither the join token nor the host gives a name', {
          next: 'custody agent enroll --name NAME',
        });
      }
      const { id, signingKey, sealingKey, busUserKey, agentVersion, containment } = host;
      const labels = token.labels as Record<string, string>;
      const data = {
        id,
        name,
        labels,
        signingKey,
        sealingKey,
        busUserKey,
        agentVersion,
        containment,
        enrolledAt: now,
      };
      const row = await tx.host.create({ data });
      // The condition makes the use atomic: of two hosts with one token, one finds no row.
      const used = await tx.joinToken.updateMany({
        where: { id: token.id, usedAt: null },
        data: { usedAt: now, usedByHost: id },
      });
      if (used.count !== 1)
        throw new CustodyError('join_token_used', 'the join token was used already', newToken);
      await appendOwn(onPrisma(tx), author, entryFor(name));
      return toHost(row);
    },
    { operation: 'enrol host' },
  ).catch((error: unknown) => {
    if (error instanceof StoreError && error.code === 'conflict') {
      throw new CustodyError('conflict', 'a host of that name is enrolled already', {
        next: 'choose another with --name; custody host list shows them',
        cause: error,
      });
    }
    throw error;
  });
}

const newToken = { next: 'make a new one with custody host token create' };

export async function listHosts(db: Database): Promise<HostRow[]> {
  return (await db.prisma.host.findMany({ orderBy: { name: 'asc' }, take: listRowsMax })).map(toHost);
}

/** On the way of every grant: one prepared statement. */
export async function hostById(db: Database, id: string): Promise<HostRow | undefined> {
  const { rows } = await db.pool.query<Parameters<typeof toHost>[0]>({
    name: 'host-by-id',
    text: `SELECT id, name, labels, signing_key AS "signingKey", sealing_key AS "sealingKey", bus_user_key AS "busUserKey",
                  enrolled_at AS "enrolledAt", last_seen_at AS "lastSeenAt", containment, banned_at AS "bannedAt"
             FROM hosts WHERE id = $1`,
    values: [id],
  });
  return rows.map(toHost)[0];
}

/** Of several that had the name the one that is not banned, else the one banned last. */
export async function hostByName(db: Database, name: string): Promise<HostRow | undefined> {
  const row = await db.prisma.host.findFirst({
    where: { name },
    orderBy: { bannedAt: { sort: 'desc', nulls: 'first' } },
  });
  return row === null ? undefined : toHost(row);
}

export async function hostSeen(db: Database, id: string, now: Date): Promise<void> {
  await db.prisma.host.updateMany({ where: { id }, data: { lastSeenAt: now } });
}

/** Banned hosts that the bus must refuse by now: each that has written its last entry, or has had its time. */
export async function hostsToCut(
  db: Database,
  bannedBefore: Date,
): Promise<{ busUserKey: string; bannedAt: Date }[]> {
  const { rows } = await db.pool.query<{ busUserKey: string; bannedAt: Date }>(
    `SELECT h.bus_user_key AS "busUserKey", h.banned_at AS "bannedAt" FROM hosts h
      WHERE h.banned_at IS NOT NULL
        AND (h.banned_at <= $1
          OR EXISTS (SELECT FROM ledger_entries l WHERE l.author = h.id AND l.kind = 'banned'))
      ORDER BY h.id`,
    [bannedBefore],
  );
  return rows;
}

export function countHosts(db: Database): Promise<number> {
  return db.prisma.host.count({ where: { bannedAt: null } });
}

function toHost(row: {
  id: string;
  name: string;
  labels: unknown;
  signingKey: string;
  sealingKey: string;
  busUserKey: string;
  enrolledAt: Date;
  lastSeenAt: Date | null;
  containment: string | null;
  bannedAt: Date | null;
}): HostRow {
  return {
    ...row,
    labels: row.labels as Record<string, string>,
    lastSeenAt: row.lastSeenAt ?? undefined,
    containment: row.containment ?? undefined,
    bannedAt: row.bannedAt ?? undefined,
  };
}
