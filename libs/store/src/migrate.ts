// Owns bringing a database to the present schema: ordinary Prisma migration folders, applied without a network.
import { createHash } from 'node:crypto';
import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import pg from 'pg';
import { StoreError, toStoreError } from './errors.ts';

/** "custody" in ASCII, cut to what `pg_advisory_lock(bigint)` takes. */
const lockKey = '27994885389526137';
const lockTimeoutMs = 60_000;
const connectTimeoutMs = 5_000;
const migrationsMax = 10_000;

export interface MigrateOptions {
  readonly connectionString: string;
  /** The folder that holds `<timestamp>_<name>/migration.sql`. */
  readonly migrationsDir: string;
}

interface Migration {
  readonly name: string;
  readonly sql: string;
  /** What Prisma writes in `_prisma_migrations`: the SHA-256 of the file, in hex. */
  readonly checksum: string;
}

/**
 * Applies what is missing, in order of name, and answers with the names of what it applied. Programs that start
 * at once take turns. Each migration and the row that records it are one transaction, so a failed or killed one
 * leaves nothing behind (and a migration may hold no `CREATE INDEX CONCURRENTLY`). The rows are those that
 * Prisma's own `migrate deploy` writes and reads.
 *
 * @throws {StoreError} `migration_edited`, `migration_failed`, `database_newer`, or a connection's codes.
 */
export async function migrate(options: MigrateOptions): Promise<{ applied: string[] }> {
  const migrations = await readMigrations(options.migrationsDir);
  const client = new pg.Client({
    connectionString: options.connectionString,
    application_name: 'custody-migrate',
    connectionTimeoutMillis: connectTimeoutMs,
    lock_timeout: lockTimeoutMs,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
    // Held by the session: it goes with the connection, whatever becomes of this program.
    await client.query('SELECT pg_advisory_lock($1::bigint)', [lockKey]);
    const missing = missingOf(migrations, await readApplied(client));
    for (const migration of missing) await apply(client, migration);
    return { applied: missing.map((migration) => migration.name) };
  } catch (error) {
    throw toStoreError('migrate the database', error);
  } finally {
    await client.end();
  }
}

async function readMigrations(dir: string): Promise<Migration[]> {
  const entries = await fs.readdir(dir, { withFileTypes: true }).catch((cause: unknown) => {
    throw new StoreError(
      'migration_failed',
      `read migrations: ${dir} cannot be read; is the program installed completely?`,
      {
        cause,
      },
    );
  });
  const names = entries
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
    .toSorted();
  if (names.length === 0 || names.length > migrationsMax) {
    throw new StoreError('migration_failed', `read migrations: ${dir} holds ${names.length} of them`);
  }
  return Promise.all(
    names.map(async (name) => {
      const bytes = await fs.readFile(path.join(dir, name, 'migration.sql'));
      return {
        name,
        sql: bytes.toString('utf8'),
        checksum: createHash('sha256').update(bytes).digest('hex'),
      };
    }),
  );
}

interface AppliedRow {
  readonly migration_name: string;
  readonly checksum: string;
  readonly finished: boolean;
}

async function readApplied(client: pg.Client): Promise<AppliedRow[]> {
  // As Prisma's schema engine creates it (migration_persistence in prisma-engines).
  await client.query(`
    CREATE TABLE IF NOT EXISTS _prisma_migrations (
      id                  VARCHAR(36) PRIMARY KEY NOT NULL,
      checksum            VARCHAR(64) NOT NULL,
      finished_at         TIMESTAMPTZ,
      migration_name      VARCHAR(255) NOT NULL,
      logs                TEXT,
      rolled_back_at      TIMESTAMPTZ,
      started_at          TIMESTAMPTZ NOT NULL DEFAULT now(),
      applied_steps_count INTEGER NOT NULL DEFAULT 0
    )`);
  const { rows } = await client.query<AppliedRow>(`
    SELECT migration_name, checksum, finished_at IS NOT NULL AS finished
    FROM _prisma_migrations WHERE rolled_back_at IS NULL ORDER BY migration_name`);
  return rows;
}

function missingOf(migrations: readonly Migration[], applied: readonly AppliedRow[]): Migration[] {
  const known = new Map(migrations.map((migration) => [migration.name, migration]));
  for (const row of applied) {
    const migration = known.get(row.migration_name);
    if (migration === undefined) {
      throw new StoreError(
        'database_newer',
        `migrate the database: it has ${row.migration_name}, which this program does not know; upgrade the program`,
      );
    }
    if (!row.finished) {
      throw new StoreError(
        'migration_failed',
        `migrate the database: another tool began ${row.migration_name} and did not finish; repair it with prisma migrate resolve`,
      );
    }
    if (row.checksum !== migration.checksum) {
      throw new StoreError(
        'migration_edited',
        `migrate the database: ${row.migration_name} was changed after it had been applied; restore its file and put the change in a new migration`,
      );
    }
  }
  const done = new Set(applied.map((row) => row.migration_name));
  return migrations.filter((migration) => !done.has(migration.name));
}

async function apply(client: pg.Client, migration: Migration): Promise<void> {
  try {
    await client.query('BEGIN');
    await client.query(migration.sql);
    await client.query(
      `INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at, finished_at, applied_steps_count)
       VALUES (gen_random_uuid()::text, $1, $2, now(), clock_timestamp(), 1)`,
      [migration.checksum, migration.name],
    );
    await client.query('COMMIT');
  } catch (cause) {
    await client.query('ROLLBACK').catch(() => undefined);
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new StoreError(
      'migration_failed',
      `migrate the database: ${migration.name} failed and was undone: ${why}`,
      {
        cause,
      },
    );
  }
}
