// Owns secrets and their versions, as sealed bytes: nothing here could open one.
import { CustodyError } from '@custody/core/errors';
import { listRowsMax } from '@custody/core/limits';
import { transaction, type Database } from './database.ts';
import { appendOwn, onPrisma, type NextEntry } from './ledger.ts';

export interface SealedBytes {
  readonly keyId: string;
  readonly wrappedKey: Uint8Array;
  readonly nonce: Uint8Array;
  readonly ciphertext: Uint8Array;
}

export interface VersionRow {
  readonly path: string;
  readonly version: number;
  readonly fields: readonly string[];
  readonly createdAt: Date;
  readonly createdBy: string;
}

export interface SealedVersionRow extends VersionRow {
  readonly sealed: SealedBytes;
}

/**
 * Stores the next version. `seal` is called with its number, which the sealing binds; it must be pure but for
 * its keys and nonces, because a transaction may run it again.
 */
export function putSecret(
  db: Database,
  author: string,
  put: {
    readonly path: string;
    readonly fields: readonly string[];
    readonly createdAt: Date;
    readonly createdBy: string;
    readonly seal: (version: number) => SealedBytes;
    readonly entryFor: (version: number) => NextEntry;
  },
): Promise<VersionRow> {
  return transaction(
    db,
    async (tx) => {
      const { path, createdAt, createdBy } = put;
      await tx.$executeRaw`INSERT INTO secrets (path, created_at) VALUES (${path}, ${createdAt}) ON CONFLICT (path) DO NOTHING`;
      const secret = await tx.secret.update({
        where: { path },
        data: { deletedAt: null, lastVersion: { increment: 1 } },
      });
      const version = secret.lastVersion;
      const sealed = put.seal(version);
      await tx.secretVersion.create({
        data: {
          path,
          version,
          fieldNames: [...put.fields],
          keyId: sealed.keyId,
          wrappedKey: Uint8Array.from(sealed.wrappedKey),
          nonce: Uint8Array.from(sealed.nonce),
          ciphertext: Uint8Array.from(sealed.ciphertext),
          createdAt,
          createdBy,
        },
      });
      await appendOwn(onPrisma(tx), author, put.entryFor(version));
      return { path, version, fields: put.fields, createdAt, createdBy };
    },
    { operation: 'put secret' },
  );
}

/** The newest version of each secret under a folder; of all where `prefix` is empty. */
export async function listSecrets(db: Database, prefix: string): Promise<VersionRow[]> {
  const under = prefix === '' ? {} : { OR: [{ path: prefix }, { path: { startsWith: `${prefix}/` } }] };
  const rows = await db.prisma.secret.findMany({
    where: { deletedAt: null, ...under },
    orderBy: { path: 'asc' },
    take: listRowsMax,
    include: { versions: { orderBy: { version: 'desc' }, take: 1 } },
  });
  return rows.flatMap((row) => row.versions.map(toVersion));
}

export async function listVersions(db: Database, path: string): Promise<VersionRow[]> {
  const rows = await db.prisma.secretVersion.findMany({
    where: { path, secret: { deletedAt: null } },
    orderBy: { version: 'desc' },
    take: listRowsMax,
  });
  return rows.map(toVersion);
}

/** One version, the newest where none is named; undefined where there is none. */
export async function sealedVersion(
  db: Database,
  path: string,
  version: number | undefined,
): Promise<SealedVersionRow | undefined> {
  const row = await db.prisma.secretVersion.findFirst({
    where: { path, secret: { deletedAt: null }, ...(version === undefined ? {} : { version }) },
    orderBy: { version: 'desc' },
  });
  return row === null ? undefined : toSealed(row);
}

/** The newest version of each path that there is. On the way of every grant: one prepared statement for all. */
export async function newestSealed(db: Database, paths: readonly string[]): Promise<SealedVersionRow[]> {
  const { rows } = await db.pool.query<Parameters<typeof toSealed>[0]>({
    name: 'newest-sealed',
    text: `SELECT DISTINCT ON (v.path) v.path, v.version, v.field_names AS "fieldNames", v.created_at AS "createdAt",
                  v.created_by AS "createdBy", v.key_id AS "keyId", v.wrapped_key AS "wrappedKey", v.nonce, v.ciphertext
             FROM secret_versions v JOIN secrets s ON s.path = v.path
            WHERE v.path = ANY($1) AND s.deleted_at IS NULL
            ORDER BY v.path, v.version DESC`,
    values: [[...paths]],
  });
  return rows.map(toSealed);
}

/** Puts on record that somebody saw the values. */
export function recordReveal(db: Database, author: string, entry: NextEntry): Promise<void> {
  return transaction(db, (tx) => appendOwn(onPrisma(tx), author, entry), { operation: 'record reveal' });
}

/** Erases every version; the name stays, so that numbers are never used twice. */
export function removeSecret(
  db: Database,
  author: string,
  path: string,
  now: Date,
  entry: NextEntry,
): Promise<void> {
  return transaction(
    db,
    async (tx) => {
      const gone = await tx.secret.updateMany({ where: { path, deletedAt: null }, data: { deletedAt: now } });
      if (gone.count === 0) throw new CustodyError('not_found', `there is no secret ${path}`);
      await tx.secretVersion.deleteMany({ where: { path } });
      await appendOwn(onPrisma(tx), author, entry);
    },
    { operation: 'remove secret' },
  );
}

function toSealed(row: Parameters<typeof toVersion>[0] & SealedBytes): SealedVersionRow {
  const { keyId, wrappedKey, nonce, ciphertext } = row;
  return { ...toVersion(row), sealed: { keyId, wrappedKey, nonce, ciphertext } };
}

function toVersion(row: {
  path: string;
  version: number;
  fieldNames: string[];
  createdAt: Date;
  createdBy: string;
}): VersionRow {
  const { path, version, fieldNames, createdAt, createdBy } = row;
  return { path, version, fields: fieldNames, createdAt, createdBy };
}
