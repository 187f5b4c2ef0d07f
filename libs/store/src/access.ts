// Owns bearer tokens, by their hashes.
import { transaction, type Database } from './database.ts';

export interface AccessRow {
  readonly id: string;
  readonly subject: string;
  readonly role: string;
}

/** The holder of a token that stands now; undefined for an unknown, expired or revoked one. */
export async function accessByHash(
  db: Database,
  tokenHash: Uint8Array,
  now: Date,
): Promise<AccessRow | undefined> {
  const row = await db.prisma.apiToken.findUnique({ where: { hash: Uint8Array.from(tokenHash) } });
  if (row === null || row.revokedAt !== null || (row.expiresAt !== null && row.expiresAt <= now))
    return undefined;
  return { id: row.id, subject: row.subject, role: row.role };
}

/**
 * Makes this the only token of its subject: for the first operator, whose token is made outside, in a file.
 * Another token in the file ends the one before. Idempotent.
 */
export async function ensureAccess(
  db: Database,
  access: AccessRow & { readonly hash: Uint8Array; readonly createdAt: Date },
): Promise<void> {
  const hash = Uint8Array.from(access.hash);
  const { id, subject, role, createdAt } = access;
  await transaction(
    db,
    async (tx) => {
      await tx.apiToken.updateMany({
        where: { subject, hash: { not: hash }, revokedAt: null },
        data: { revokedAt: createdAt },
      });
      await tx.apiToken.upsert({
        where: { hash },
        create: { id, hash, subject, role, createdAt },
        update: { revokedAt: null },
      });
    },
    { operation: 'ensure access' },
  );
}
