// Owns the proof that the migrations make the schema, once, and that Prisma's own engine agrees.
import { withDatabase } from '@custody/testkit/database';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { migrate } from '../src/migrate.ts';
import { differenceOf, listMigrations, openSchemaEngine, schemaFilters } from '../src/schema-engine.ts';

const schemaFile = fileURLToPath(new URL('../../../prisma/schema.prisma', import.meta.url));
const migrationsDir = fileURLToPath(new URL('../../../prisma/migrations', import.meta.url));
const names = listMigrations(migrationsDir).migrationDirectories.map((directory) => directory.path);

const databases = withDatabase();
let scratch: string;

beforeEach(() => {
  scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-migrations-'));
});
afterEach(() => fs.rmSync(scratch, { recursive: true, force: true }));

function write(name: string, sql: string): void {
  fs.mkdirSync(path.join(scratch, name), { recursive: true });
  fs.writeFileSync(path.join(scratch, name, 'migration.sql'), sql);
}

async function tablesOf(connectionString: string): Promise<string[]> {
  const client = new pg.Client({ connectionString });
  await client.connect();
  const { rows } = await client.query<{ name: string }>(
    `SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY 1`,
  );
  await client.end();
  return rows.map((row) => row.name);
}

test('schema.prisma and the migrations agree', async () => {
  expect(await differenceOf({ connectionString: databases.url, schemaFile, migrationsDir })).toBe('');
});

test('a difference between schema and migrations is found', async () => {
  const changed = path.join(scratch, 'schema.prisma');
  fs.writeFileSync(changed, `${fs.readFileSync(schemaFile, 'utf8')}\nmodel Planted {\n  id String @id\n}\n`);
  const sql = await differenceOf({ connectionString: databases.url, schemaFile: changed, migrationsDir });
  expect(sql).toContain('CREATE TABLE "Planted"');
});

test('applies everything once, and nothing the second time', async () => {
  const connectionString = await databases.another();
  expect(await migrate({ connectionString, migrationsDir })).toEqual({ applied: names });
  expect(await migrate({ connectionString, migrationsDir })).toEqual({ applied: [] });
});

test('leaves a history that Prisma itself takes for its own', async () => {
  const connectionString = await databases.another();
  await migrate({ connectionString, migrationsDir });
  const engine = await openSchemaEngine({ connectionString, schemaFile });
  const migrationsList = listMigrations(migrationsDir);
  expect(
    await engine.diagnoseMigrationHistory({
      migrationsList,
      optInToShadowDatabase: false,
      filters: schemaFilters,
    }),
  ).toMatchObject({
    editedMigrationNames: [],
    failedMigrationNames: [],
    hasMigrationsTable: true,
    history: null,
  });
  expect(await engine.applyMigrations({ migrationsList, filters: schemaFilters })).toEqual({
    appliedMigrationNames: [],
  });
  engine.free();
});

test('accepts a database that Prisma itself has migrated', async () => {
  const connectionString = await databases.another();
  const engine = await openSchemaEngine({ connectionString, schemaFile });
  await engine.applyMigrations({ migrationsList: listMigrations(migrationsDir), filters: schemaFilters });
  engine.free();
  expect(await migrate({ connectionString, migrationsDir })).toEqual({ applied: [] });
});

test('of programs that start at once, exactly one applies each migration', async () => {
  const connectionString = await databases.another();
  const results = await Promise.all([1, 2, 3, 4].map(() => migrate({ connectionString, migrationsDir })));
  expect(results.flatMap((result) => result.applied)).toEqual(names);
});

test('names the migration that was changed after it had been applied', async () => {
  const connectionString = await databases.another();
  write('1_a', 'CREATE TABLE a (id int);');
  await migrate({ connectionString, migrationsDir: scratch });
  write('1_a', 'CREATE TABLE a (id int, more int);');
  await expect(migrate({ connectionString, migrationsDir: scratch })).rejects.toMatchObject({
    code: 'migration_edited',
    publicMessage: expect.stringContaining('1_a was changed after it had been applied'),
  });
});

test('undoes the whole of a migration that fails, keeps those before it, and goes on once it is repaired', async () => {
  const connectionString = await databases.another();
  write('1_a', 'CREATE TABLE a (id int);');
  write('2_b', 'CREATE TABLE b (id int); CREATE TABLE a (id int);');
  await expect(migrate({ connectionString, migrationsDir: scratch })).rejects.toMatchObject({
    code: 'migration_failed',
    publicMessage: expect.stringContaining('2_b failed and was undone: relation "a" already exists'),
  });
  expect(await tablesOf(connectionString)).toEqual(['_prisma_migrations', 'a']);
  write('2_b', 'CREATE TABLE b (id int);');
  expect(await migrate({ connectionString, migrationsDir: scratch })).toEqual({ applied: ['2_b'] });
});

test('refuses a database that is newer than the program', async () => {
  const connectionString = await databases.another();
  write('1_a', 'CREATE TABLE a (id int);');
  write('2_b', 'CREATE TABLE b (id int);');
  await migrate({ connectionString, migrationsDir: scratch });
  fs.rmSync(path.join(scratch, '2_b'), { recursive: true });
  await expect(migrate({ connectionString, migrationsDir: scratch })).rejects.toMatchObject({
    code: 'database_newer',
  });
});

test('says unreachable when nothing listens', async () => {
  const connectionString = 'postgresql://nobody:x@127.0.0.1:1/none';
  await expect(migrate({ connectionString, migrationsDir })).rejects.toMatchObject({ code: 'unreachable' });
});
