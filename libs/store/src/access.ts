// Owns bearer tokens, by their hashes.
import type { Database } from './database.ts';

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

/** Makes sure that a token exists: for the first operator, whose token is made outside. Idempotent. */
export async function ensureAccess(
  db: Database,
  access: AccessRow & { readonly hash: Uint8Array; readonly createdAt: Date },
): Promise<void> {
  const hash = Uint8Array.from(access.hash);
  const { id, subject, role, createdAt } = access;
  await db.prisma.apiToken.upsert({
    where: { hash },
    create: { id, hash, subject, role, createdAt },
    update: {},
  });
}
