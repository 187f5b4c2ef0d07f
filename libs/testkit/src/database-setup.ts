// Owns the one Postgres of a test run: started when the first test file asks for it, ended with the run.
import { startPostgres } from '@custody/constellation/postgres';
import { createDatabase } from '@custody/store/databases';
import { migrate } from '@custody/store/migrate';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { createServer, type Socket } from 'node:net';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';

const migrationsDir = fileURLToPath(new URL('../../../prisma/migrations', import.meta.url));

/** What a test file needs to make a database of its own. */
export interface TestServer {
  readonly connectionString: string;
  /** A migrated database without sessions, to be copied. */
  readonly template: string;
}

declare module 'vitest' {
  interface ProvidedContext {
    /** A Unix socket that answers each connection with a TestServer as JSON. */
    custodyTestServer?: string;
  }
}

export async function startTestServer(): Promise<TestServer & AsyncDisposable> {
  await using undo = new AsyncDisposableStack();
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-test-postgres-'));
  undo.defer(() => fs.rmSync(scratch, { recursive: true, force: true }));
  fs.chmodSync(scratch, 0o711);
  const server = await startPostgres({
    dataDir: path.join(scratch, 'data'),
    logFile: path.join(scratch, 'postgres.log'),
    durable: false,
  });
  undo.defer(async () => {
    await server.stop();
    fs.rmSync(server.dataDir, { recursive: true, force: true });
  });
  const template = 'custody_template';
  await createDatabase({ connectionString: server.connectionString, name: template });
  await migrate({ connectionString: server.url(template), migrationsDir });
  const owned = undo.move();
  return {
    connectionString: server.connectionString,
    template,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Vitest's global set-up. Costs a socket until somebody asks. */
export default async function setup(project: {
  provide(key: 'custodyTestServer', value: string): void;
}): Promise<() => Promise<void>> {
  let started: ReturnType<typeof startTestServer> | undefined;
  const answer = async (socket: Socket): Promise<void> => {
    started ??= startTestServer();
    const { connectionString, template } = await started;
    socket.end(JSON.stringify({ connectionString, template } satisfies TestServer));
  };
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-test-'));
  const listener = createServer((socket) => {
    socket.on('error', () => undefined);
    answer(socket).catch((cause: unknown) => socket.end(JSON.stringify({ failed: String(cause) })));
  });
  listener.listen(path.join(scratch, 'socket'));
  await once(listener, 'listening');
  project.provide('custodyTestServer', path.join(scratch, 'socket'));

  return async () => {
    listener.close();
    fs.rmSync(scratch, { recursive: true, force: true });
    await (await started?.catch(() => undefined))?.[Symbol.asyncDispose]();
  };
}
