// Owns giving each test file a migrated database of its own on the run's real Postgres.
import { openDatabase, type Database } from '@custody/store/database';
import { createDatabase, dropDatabase } from '@custody/store/databases';
import { randomUUID } from 'node:crypto';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, inject } from 'vitest';
import { startTestServer, type TestServer } from './database-setup.ts';

const poolMax = 10;

export interface TestDatabase {
  /** The superuser's address of this file's database. */
  readonly url: string;
  readonly database: Database;
  /** For a test that needs a second one: an empty or migrated database, dropped with the file's. */
  another(options?: { readonly migrated?: boolean }): Promise<string>;
}

/**
 * Called once at the top of a test file; the fields are valid inside tests and hooks. The databases are dropped
 * after the file's last test. Without the global set-up of `database-setup.ts` the file has a server to itself.
 */
export function withDatabase(): TestDatabase {
  let server: TestServer | undefined;
  let own: (TestServer & AsyncDisposable) | undefined;
  let opened: { url: string; database: Database } | undefined;
  const names: string[] = [];

  const make = async (migrated: boolean): Promise<string> => {
    if (server === undefined) throw new Error('make a test database: call it inside a test or a hook');
    const { connectionString, template } = server;
    const name = `test_${randomUUID().replaceAll('-', '')}`;
    await createDatabase({ connectionString, name, ...(migrated && { template }) });
    names.push(name);
    const url = new URL(connectionString);
    url.pathname = `/${name}`;
    return url.href;
  };

  beforeAll(async () => {
    const socket = inject('custodyTestServer');
    server = socket === undefined ? (own = await startTestServer()) : await ask(socket);
    const url = await make(true);
    opened = { url, database: await openDatabase({ connectionString: url, poolMax }) };
  });

  afterAll(async () => {
    await opened?.database[Symbol.asyncDispose]();
    for (const name of names) await dropDatabase({ connectionString: server?.connectionString ?? '', name });
    await own?.[Symbol.asyncDispose]();
  });

  const current = (): { url: string; database: Database } => {
    if (opened === undefined)
      throw new Error('use the test database: it is open inside tests and hooks only');
    return opened;
  };
  return {
    get url() {
      return current().url;
    },
    get database() {
      return current().database;
    },
    another: (options) => make(options?.migrated ?? false),
  };
}

async function ask(socketPath: string): Promise<TestServer> {
  const answer = JSON.parse(await text(connect(socketPath))) as TestServer | { failed: string };
  if ('failed' in answer) throw new Error(`start the Postgres of the test run: ${answer.failed}`);
  return answer;
}
