// Owns writing a new migration: node libs/store/new-migration.mjs NAME
// Compares prisma/schema.prisma with the migrations, over a Postgres of its own, and writes the difference.
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { startPostgres } from '../constellation/src/postgres.ts';
import { differenceOf } from './src/schema-engine.ts';

const name = process.argv[2] ?? '';
if (!/^[a-z][a-z0-9_]{0,60}$/.test(name)) {
  console.error('usage: node libs/store/new-migration.mjs NAME   (lower case, digits and _)');
  process.exit(2);
}

const prismaDir = fileURLToPath(new URL('../../prisma', import.meta.url));
const migrationsDir = path.join(prismaDir, 'migrations');
fs.mkdirSync(migrationsDir, { recursive: true });
fs.writeFileSync(path.join(migrationsDir, 'migration_lock.toml'), 'provider = "postgresql"\n');
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-migration-'));
fs.chmodSync(scratch, 0o711);

try {
  await using server = await startPostgres({
    dataDir: path.join(scratch, 'data'),
    logFile: path.join(scratch, 'postgres.log'),
    durable: false,
  });
  const sql = await differenceOf({
    connectionString: server.connectionString,
    schemaFile: path.join(prismaDir, 'schema.prisma'),
    migrationsDir,
  });
  if (sql === '') {
    console.log('the migrations and schema.prisma agree: nothing to write');
  } else {
    const timestamp = new Date().toISOString().replaceAll(/[-T:]/g, '').slice(0, 14);
    const dir = path.join(migrationsDir, `${timestamp}_${name}`);
    fs.mkdirSync(dir);
    fs.writeFileSync(path.join(dir, 'migration.sql'), sql);
    console.log(`${path.relative(process.cwd(), dir)}/migration.sql`);
  }
} finally {
  fs.rmSync(scratch, { recursive: true, force: true });
}
