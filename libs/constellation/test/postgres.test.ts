// Owns the proof that a Postgres server starts, is closed to strangers, survives SIGKILL and stops.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startPostgres, type Postgres, type PostgresOptions } from '../src/postgres.ts';

let dir: string;
let options: PostgresOptions;

beforeAll(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-postgres-'));
  fs.chmodSync(dir, 0o755);
  options = { dataDir: path.join(dir, 'data'), logFile: path.join(dir, 'postgres.log'), durable: false };
});

afterAll(() => fs.rmSync(dir, { recursive: true, force: true }));

async function ask(connectionString: string, sql: string): Promise<unknown> {
  const client = new pg.Client({ connectionString });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return Object.values((await client.query(sql)).rows[0] as object)[0];
  } finally {
    await client.end();
  }
}

test('starts a UTF8, C-locale server that only its password opens, and keeps its data over a stop', async () => {
  {
    await using server = await startPostgres(options);
    expect(await ask(server.connectionString, 'SHOW server_encoding')).toBe('UTF8');
    expect(
      await ask(server.connectionString, `SELECT datcollate FROM pg_database WHERE datname = 'postgres'`),
    ).toBe('C');
    expect(await ask(server.connectionString, 'SHOW listen_addresses')).toBe('127.0.0.1');
    expect(await ask(server.connectionString, 'SHOW unix_socket_directories')).toBe('');
    const client = new pg.Client({ connectionString: server.connectionString });
    await client.connect();
    await client.query('CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS n');
    await client.end();

    const wrong = new URL(server.connectionString);
    wrong.password = 'wrong';
    await expect(ask(wrong.href, 'SELECT 1')).rejects.toMatchObject({ code: '28P01' });
    const password = fs.statSync(path.join(server.dataDir, 'password'));
    expect(password.mode & 0o777).toBe(0o600);
  }
  await using again = await startPostgres(options);
  expect(await ask(again.connectionString, 'SELECT n FROM kept')).toBe(7);
});

test('says that it exited when it is killed, and starts again over what the kill left', async () => {
  const server = await startPostgres(options);
  process.kill(server.pid, 'SIGKILL');
  expect(await server.exited).toEqual({ code: null, signal: 'SIGKILL' });
  await using again = await startPostgres(options);
  expect(await ask(again.connectionString, 'SELECT 1')).toBe(1);
});

test('starts although the lock file names a process that is some other program', async () => {
  const server = await startPostgres(options);
  const lockFile = path.join(server.dataDir, 'cluster', 'postmaster.pid');
  process.kill(server.pid, 'SIGKILL');
  await server.exited;
  fs.writeFileSync(lockFile, fs.readFileSync(lockFile, 'utf8').replace(/^\d+/, String(process.pid)));
  await using again = await startPostgres(options);
  expect(again.pid).not.toBe(server.pid);
});

test('refuses a folder that a living supervisor serves, and takes it over once that supervisor is dead', async () => {
  const module = fileURLToPath(new URL('../src/postgres.ts', import.meta.url));
  const script = `
    import { startPostgres } from ${JSON.stringify(module)};
    const server = await startPostgres(${JSON.stringify(options)});
    console.log(server.pid);
    setInterval(() => undefined, 60_000);`;
  const supervisor = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(supervisor.stdout, 'data')) as [Buffer];
  const orphan = Number(line.toString());
  await expect(startPostgres(options)).rejects.toMatchObject({ code: 'in_use' });

  supervisor.kill('SIGKILL');
  await once(supervisor, 'exit');
  await using server = await startPostgres(options);
  expect(server.pid).not.toBe(orphan);
});

test('ends the server when its supervisor is killed', async () => {
  const module = fileURLToPath(new URL('../src/postgres.ts', import.meta.url));
  const script = `
    import { startPostgres } from ${JSON.stringify(module)};
    const server = await startPostgres(${JSON.stringify(options)});
    console.log(server.connectionString);
    setInterval(() => undefined, 60_000);`;
  const supervisor = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(supervisor.stdout, 'data')) as [Buffer];
  const client = new pg.Client({ connectionString: line.toString().trim() });
  const cut = once(client, 'error');
  client.on('error', () => undefined);
  await client.connect();
  supervisor.kill('SIGKILL');
  expect(await cut).toMatchObject([{ code: '57P01' }]);
});

test('names the port that is taken instead of talking to the server that has it', async () => {
  await using first = await startPostgres(options);
  const other = { ...options, dataDir: path.join(dir, 'other'), port: first.port };
  await expect(startPostgres(other)).rejects.toMatchObject({ code: 'port_taken' });
});

test('stops twice without complaint', async () => {
  const server: Postgres = await startPostgres(options);
  expect(await server.stop()).toEqual({ code: 0, signal: null });
  expect(await server.stop()).toEqual({ code: 0, signal: null });
});

test.runIf(process.getuid?.() === 0)('serves data under a folder that is closed to the owner', async () => {
  const closed = path.join(dir, 'closed');
  fs.mkdirSync(closed, { mode: 0o700 });
  const server = await startPostgres({ ...options, dataDir: path.join(closed, 'data') });
  try {
    expect(server.dataDir).toMatch(/^\/var\/lib\/custody\/postgres-/);
    expect(fs.realpathSync(path.join(closed, 'data'))).toBe(server.dataDir);
    expect(await ask(server.connectionString, 'SELECT 1')).toBe(1);
  } finally {
    await server.stop();
    fs.rmSync(server.dataDir, { recursive: true });
  }
});
