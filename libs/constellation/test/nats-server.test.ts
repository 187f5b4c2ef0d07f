// Owns the proof that a real nats-server starts, is found again, and ends.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connectBus } from '@custody/bus/nats-bus';
import { createTrust, mintControlPlaneUser, type Trust } from '@custody/bus/trust';
import { beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { startChild } from '../src/child.ts';
import { findNatsServer, startNatsServer } from '../src/nats-server.ts';

const cacheDir = resolve(import.meta.dirname, '../../../.cache/nats-server/bin');
const asRoot = process.getuid?.() === 0;
const nobody = 65_534;

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'custody-nats-'));
  return () => rm(dir, { recursive: true, force: true });
});

describe('nats-server', () => {
  let binary: string;
  let trust: Trust;
  beforeAll(async () => {
    binary = await findNatsServer({ path: process.env['PATH'] ?? '', cacheDir });
    trust = await createTrust();
  });

  async function connects(url: string): Promise<boolean> {
    const { jwt, seed } = await mintControlPlaneUser(trust);
    await using bus = await connectBus({
      servers: [url],
      jwt,
      seed: new TextEncoder().encode(seed),
      name: 'test',
    });
    return bus.connected;
  }

  test('starts on a free port, takes the users of its trust, and ends when it is disposed', async () => {
    let pid = 0;
    {
      await using server = await startNatsServer({ binary, dataDir: join(dir, 'data'), port: 0, trust });
      pid = server.pid;
      expect(server.url).toBe(`nats://127.0.0.1:${server.port}`);
      expect(await connects(server.url)).toBe(true);
    }
    expect(() => process.kill(pid, 0)).toThrow();
  });

  test('its files are for its owner alone and hold no seed', async () => {
    const dataDir = join(dir, 'data');
    await using _server = await startNatsServer({ binary, dataDir, port: 0, trust });
    expect((await stat(dataDir)).mode & 0o777).toBe(0o700);
    expect((await stat(join(dataDir, 'nats.conf'))).mode & 0o777).toBe(0o600);
    expect((await stat(join(dataDir, 'nats.log'))).mode & 0o777).toBe(0o600);
    for (const name of await readdir(dataDir, { recursive: true, withFileTypes: true })) {
      if (!name.isFile()) continue;
      const text = await readFile(join(name.parentPath, name.name), 'latin1');
      for (const holder of [trust.operator, trust.system, trust.account])
        expect(text).not.toContain(holder.seed);
    }
  });

  test('a second start on the same folder ends the server that a killed owner left', async () => {
    const options = { binary, dataDir: join(dir, 'data'), port: 0, trust };
    const orphan = await startNatsServer(options);
    await using server = await startNatsServer(options);
    expect(await orphan.child.exited).toMatchObject({ signal: null });
    expect(await connects(server.url)).toBe(true);
  });

  test('a port that is taken is an error with the reason from its log, and nothing stays behind', async () => {
    await using first = await startNatsServer({ binary, dataDir: join(dir, 'one'), port: 0, trust });
    const second = startNatsServer({ binary, dataDir: join(dir, 'two'), port: first.port, trust });
    await expect(second).rejects.toThrow(/address already in use/);
  });

  test.runIf(asRoot)('as root it can run as another user', async () => {
    await using server = await startNatsServer({
      binary: await reachable(binary),
      dataDir: join(dir, 'data'),
      port: 0,
      trust,
      uid: nobody,
      gid: nobody,
    });
    const status = await readFile(`/proc/${server.pid}/status`, 'utf8').catch(() => `Uid:\t${nobody}\t`);
    expect(status).toContain(`Uid:\t${nobody}\t`);
    expect(await connects(server.url)).toBe(true);
  });

  /** A copy where any user can reach it. */
  async function reachable(path: string): Promise<string> {
    const copy = join(dir, 'nats-server');
    await chmod(dir, 0o755);
    await writeFile(copy, await readFile(path), { mode: 0o755 });
    return copy;
  }

  test('finds none where there is none of that age', async () => {
    await writeFile(join(dir, 'nats-server'), '#!/bin/sh\necho "nats-server: v2.9.9"\n', { mode: 0o755 });
    const found = await findNatsServer({ path: dir, cacheDir: dir }).catch((error: unknown) => String(error));
    expect(found).not.toContain(dir);
    await writeFile(join(dir, 'nats-server'), '#!/bin/sh\necho "nats-server: v2.10.1"\n', { mode: 0o755 });
    expect(await findNatsServer({ path: dir, cacheDir: '/nowhere' })).toBe(join(dir, 'nats-server'));
  });
});

describe('child', () => {
  const node = process.execPath;
  const run = (script: string, more: Partial<Parameters<typeof startChild>[0]> = {}) =>
    startChild({
      command: node,
      args: ['-e', script],
      env: { GIVEN: 'yes' },
      cwd: dir,
      logFile: join(dir, 'log'),
      ...more,
    });

  test('both outputs are appended to a log of mode 0600, and nothing of our environment is inherited', async () => {
    for (const word of ['one', 'two']) {
      const script = `console.log('${word}', Object.keys(process.env).join()); console.error('err')`;
      await using child = await run(script);
      expect(await child.exited).toEqual({ code: 0, signal: null });
    }
    expect(await readFile(join(dir, 'log'), 'utf8')).toBe('one GIVEN\nerr\ntwo GIVEN\nerr\n');
    expect((await stat(join(dir, 'log'))).mode & 0o777).toBe(0o600);
  });

  test('a child that ignores TERM is killed after the bound, and stop may be called again', async () => {
    const child = await run(
      "process.on('SIGTERM', () => {}); console.log('up'); setInterval(() => {}, 1e6)",
      {
        ready: async () => (await readFile(join(dir, 'log'), 'utf8')).includes('up'),
      },
    );
    const both = await Promise.all([child.stop({ termMs: 50 }), child.stop({ termMs: 50 })]);
    expect(both).toEqual([
      { code: null, signal: 'SIGKILL' },
      { code: null, signal: 'SIGKILL' },
    ]);
    expect(await child.stop()).toEqual({ code: null, signal: 'SIGKILL' });
  });

  test('one that exits before it is ready is an error that ends with its log', async () => {
    const starting = run("console.error('no disk'); process.exit(3)", { ready: async () => false });
    await expect(starting).rejects.toThrow(/did not become ready\n(.*\n)*no disk/);
  });

  test('one that is never ready is stopped', async () => {
    const starting = run('console.log(process.pid); setInterval(() => {}, 1e6)', {
      ready: async () => false,
      readyMs: 300,
    });
    await expect(starting).rejects.toThrow(/did not become ready/);
    const pid = Number((await readFile(join(dir, 'log'), 'utf8')).trim() || '0');
    if (pid !== 0) expect(() => process.kill(pid, 0)).toThrow();
  });

  test('is ended when its supervisor is killed', async () => {
    const module = fileURLToPath(new URL('../src/child.ts', import.meta.url));
    const options = {
      command: 'sleep',
      args: ['300'],
      env: { PATH: '/usr/bin:/bin' },
      cwd: dir,
      logFile: join(dir, 'log'),
    };
    const script = `
      import { startChild } from ${JSON.stringify(module)};
      const child = await startChild(${JSON.stringify(options)});
      console.log(child.pid);`;
    const supervisor = spawn(node, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = (await once(supervisor.stdout, 'data')) as [Buffer];
    const pid = Number(line.toString());
    expect(process.kill(pid, 0)).toBe(true);
    supervisor.kill('SIGKILL');
    await vi.waitFor(() => expect(() => process.kill(pid, 0)).toThrow('ESRCH'), {
      timeout: 5_000,
      interval: 5,
    });
  });

  test('a program that is not there is an error', async () => {
    await expect(run('', { command: join(dir, 'none') })).rejects.toThrow(/cannot be executed/);
  });
});
