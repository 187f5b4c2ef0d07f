// Owns making and dropping whole databases of a server, for set-up and tests.
import pg from 'pg';
import { toStoreError } from './errors.ts';

const connectTimeoutMs = 5_000;
const statementTimeoutMs = 60_000;

export interface NamedDatabase {
  /** An address of the server whose user may create databases; its database is not touched. */
  readonly connectionString: string;
  readonly name: string;
}

/**
 * @param options.template - a database to copy, with no session on it.
 * @throws {StoreError} `conflict` when it exists, or a connection's codes.
 */
export async function createDatabase(options: NamedDatabase & { readonly template?: string }): Promise<void> {
  const name = pg.escapeIdentifier(options.name);
  const template = options.template === undefined ? '' : ` TEMPLATE ${pg.escapeIdentifier(options.template)}`;
  await run(
    `create database ${options.name}`,
    options.connectionString,
    `CREATE DATABASE ${name}${template}`,
  );
}

/** Cuts the sessions on it. Content when there is none. */
export async function dropDatabase(options: NamedDatabase): Promise<void> {
  const name = pg.escapeIdentifier(options.name);
  await run(
    `drop database ${options.name}`,
    options.connectionString,
    `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`,
  );
}

async function run(operation: string, connectionString: string, sql: string): Promise<void> {
  const client = new pg.Client({
    connectionString,
    application_name: 'custody-admin',
    connectionTimeoutMillis: connectTimeoutMs,
    statement_timeout: statementTimeoutMs,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query(sql);
  } catch (error) {
    throw toStoreError(operation, error);
  } finally {
    await client.end();
  }
}
