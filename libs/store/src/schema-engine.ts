// Owns loading Prisma's schema engine from its WebAssembly, for development and tests: it needs no download.
import { PrismaPg } from '@prisma/adapter-pg';
import { bindMigrationAwareSqlAdapterFactory, ColumnTypeEnum } from '@prisma/driver-adapter-utils';
import * as bindings from '@prisma/schema-engine-wasm/schema_engine_bg';
import type {
  MigrationDirectory,
  MigrationList,
  SchemaEngine,
} from '@prisma/schema-engine-wasm/schema_engine_bg';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { createDatabase, dropDatabase } from './databases.ts';

export type { MigrationList, SchemaEngine };

export const schemaFilters = { externalTables: [], externalEnums: [] };

/** PostgreSQL's one-byte internal type "char", and `text` (pg_type.dat). */
const charOid = 18;
const textOid = 25;

/**
 * Opens an adapter that also understands the catalogue's type "char": adapter-pg 7.10 refuses it, while the engine
 * asks for it (`pg_constraint.contype`) and wants it back as a character. The pool passes it as text and notes
 * where it stood; the adapter then says what it was. One connection, so one query at a time.
 */
async function connectToCatalog(connectionString: string): Promise<PrismaPgAdapter> {
  const pool = new pg.Pool({ connectionString, max: 1 });
  pool.on('error', () => undefined);
  let charColumns: number[] = [];
  const query = pool.query.bind(pool) as (...args: unknown[]) => Promise<pg.QueryResult>;
  const queryAsText = async (...args: unknown[]): Promise<pg.QueryResult> => {
    const result = await query(...args);
    const fields = result.fields ?? [];
    charColumns = fields.flatMap((field, index) => (field.dataTypeID === charOid ? [index] : []));
    for (const index of charColumns) Object.assign(fields[index] ?? {}, { dataTypeID: textOid });
    return result;
  };
  pool.query = queryAsText as typeof pool.query;

  const adapter = await new PrismaPg(pool, { disposeExternalPool: true }).connect();
  const queryRaw = adapter.queryRaw.bind(adapter);
  adapter.queryRaw = async (sql) => {
    const result = await queryRaw(sql);
    for (const index of charColumns) result.columnTypes[index] = ColumnTypeEnum.Character;
    return result;
  };
  return adapter;
}

type PrismaPgAdapter = Awaited<ReturnType<PrismaPg['connect']>>;

function adapterFor(connectionString: string): PrismaPg {
  const adapter = new PrismaPg({ connectionString });
  adapter.connect = () => connectToCatalog(connectionString);
  adapter.connectToShadowDb = async () => {
    const name = `custody_shadow_${globalThis.crypto.randomUUID()}`;
    await createDatabase({ connectionString, name });
    const url = new URL(connectionString);
    url.pathname = `/${name}`;
    const shadow = await connectToCatalog(url.href);
    const dispose = shadow.dispose.bind(shadow);
    shadow.dispose = async () => {
      await dispose();
      await dropDatabase({ connectionString, name });
    };
    return shadow;
  };
  return adapter;
}

/** What is used of the global of that name; its types come with the DOM library only. */
interface WasmLoader {
  instantiate(bytes: Uint8Array, imports: object): Promise<{ instance: { exports: WasmExports } }>;
}

interface WasmExports {
  __wbindgen_start(): void;
}

let loaded = false;

/**
 * The package's entry imports its .wasm as a module, which Node does not do; so it is instantiated here.
 * `connectionString` must allow creating databases: differences are taken over a shadow database.
 */
export async function openSchemaEngine(options: {
  readonly connectionString: string;
  readonly schemaFile: string;
}): Promise<SchemaEngine> {
  if (!loaded) {
    const file = fileURLToPath(import.meta.resolve('@prisma/schema-engine-wasm/schema_engine_bg'));
    const bytes = fs.readFileSync(path.join(path.dirname(file), 'schema_engine_bg.wasm'));
    // Where the engine leaves the words of a panic; without it the panic is a TypeError about something else.
    const registry = { set_message: (words: string): void => void process.stderr.write(`${words}\n`) };
    Object.assign(globalThis, { PRISMA_WASM_PANIC_REGISTRY: registry });
    const { WebAssembly: loader } = globalThis as unknown as { WebAssembly: WasmLoader };
    const { instance } = await loader.instantiate(bytes, { './schema_engine_bg.js': bindings });
    const { __wbg_set_wasm } = bindings as unknown as { __wbg_set_wasm: (exports: WasmExports) => void };
    __wbg_set_wasm(instance.exports);
    instance.exports.__wbindgen_start();
    loaded = true;
  }
  const datamodel = fs.readFileSync(options.schemaFile, 'utf8');
  return bindings.SchemaEngine.new(
    { datamodels: [[options.schemaFile, datamodel]] },
    () => undefined,
    bindMigrationAwareSqlAdapterFactory(adapterFor(options.connectionString)),
  );
}

/** The migrations folder as the engine wants it. */
export function listMigrations(dir: string): MigrationList {
  const names = fs
    .readdirSync(dir, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
    .toSorted();
  const lockfile = path.join(dir, 'migration_lock.toml');
  return {
    baseDir: dir,
    lockfile: {
      path: 'migration_lock.toml',
      content: fs.existsSync(lockfile) ? fs.readFileSync(lockfile, 'utf8') : null,
    },
    shadowDbInitScript: '',
    migrationDirectories: names.map((name): MigrationDirectory => ({
      path: name,
      migrationFile: {
        path: 'migration.sql',
        content: { tag: 'ok', value: fs.readFileSync(path.join(dir, name, 'migration.sql'), 'utf8') },
      },
    })),
  };
}

/** The SQL that leads from the migrations to the schema file; empty when they agree. */
export async function differenceOf(options: {
  readonly connectionString: string;
  readonly schemaFile: string;
  readonly migrationsDir: string;
}): Promise<string> {
  const engine = await openSchemaEngine(options);
  try {
    const { exitCode, stdout } = await engine.diff({
      from: { tag: 'migrations', ...listMigrations(options.migrationsDir) },
      to: {
        tag: 'schemaDatamodel',
        files: [{ path: options.schemaFile, content: fs.readFileSync(options.schemaFile, 'utf8') }],
      },
      script: true,
      exitCode: true,
      filters: schemaFilters,
    });
    return exitCode === 0 ? '' : (stdout ?? '');
  } finally {
    engine.free();
  }
}
