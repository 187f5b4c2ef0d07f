// Owns one real nats-server: its files, its start, its address and its end.
import { execFile } from 'node:child_process';
import { access, chmod, constants, chown, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { delimiter, isAbsolute, join, resolve as resolvePath } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { promisify } from 'node:util';
import { serverConfig, type Trust } from '@custody/bus/trust';
import { startChild, type Child, type Exit } from './child.ts';

const run = promisify(execFile);

const versionMin = [2, 9, 10] as const;
const versionMs = 10_000;
const infoMs = 1_000;
const stopMs = 5_000;
const orphanTryMs = 20;

export type NatsServerOptions = {
  /** A nats-server of 2.9.10 or newer. */
  readonly binary: string;
  /** Configuration, log, streams and account JWTs. Made with mode 0700; a later start goes on from it. */
  readonly dataDir: string;
  /** 0: a free one. */
  readonly port: number;
  readonly trust: Trust;
  readonly host?: string;
  readonly serverName?: string;
  readonly storeBytesMax?: number;
  /** Run the server as this user; needs root. */
  readonly uid?: number;
  readonly gid?: number;
};

export interface NatsServer extends AsyncDisposable {
  readonly url: string;
  readonly host: string;
  readonly port: number;
  readonly pid: number;
  readonly child: Child;
  stop(): Promise<Exit>;
}

/**
 * Resolves when the server has greeted a connection with its INFO line. Rejects with the end of its log when
 * it exits before. The server's files hold JWTs and no seed.
 */
export async function startNatsServer(options: NatsServerOptions): Promise<NatsServer> {
  const host = options.host ?? '127.0.0.1';
  const files = await prepare(options, host);
  let port = 0;
  const child = await startChild({
    command: options.binary,
    args: ['--config', files.config, '--pid', files.pid],
    env: {},
    cwd: options.dataDir,
    logFile: files.log,
    ...user(options),
    // The ports file is this server's own word that it listens; another may hold the port and greet.
    ready: async () => {
      port = (await listeningPort(files.ports)) ?? 0;
      return port !== 0 && (await greets(host, port));
    },
  });
  const stop = (): Promise<Exit> => child.stop({ termMs: stopMs });
  return {
    url: `nats://${host}:${port}`,
    host,
    port,
    pid: child.pid,
    child,
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop();
    },
  };
}

/**
 * The first nats-server of 2.9.10 or newer on `path` (a PATH), in the sbin folders, or in `cacheDir`, which is
 * `.cache/nats-server/bin` of the checkout, where `deploy/nats-server.mjs` puts it. Rejects when there is none.
 */
export async function findNatsServer(places: {
  readonly path: string;
  readonly cacheDir: string;
}): Promise<string> {
  const dirs = [...places.path.split(delimiter).filter(isAbsolute), '/usr/sbin', '/usr/local/sbin'];
  for (const dir of [...new Set(dirs), places.cacheDir]) {
    const binary = join(dir, 'nats-server');
    if (await isNewEnough(binary)) return binary;
  }
  throw new Error(`find nats-server: none of ${versionMin.join('.')} or newer; run npm run setup`);
}

async function isNewEnough(binary: string): Promise<boolean> {
  try {
    await access(binary, constants.X_OK);
    const { stdout } = await run(binary, ['-v'], { timeout: versionMs });
    const found = /v(\d+)\.(\d+)\.(\d+)/.exec(stdout)?.slice(1).map(Number) ?? [0];
    const differs = versionMin.findIndex((wanted, index) => wanted !== found[index]);
    return differs === -1 || (found[differs] ?? 0) > (versionMin[differs] ?? 0);
  } catch {
    return false;
  }
}

type Files = { readonly config: string; readonly log: string; readonly ports: string; readonly pid: string };

/**
 * Ends the server that an earlier, killed owner left running on this folder: two servers on one store would
 * destroy it. It is known by its pid file and by the configuration it was started with.
 */
async function endOrphan(dataDir: string, config: string): Promise<void> {
  const pid = Number(await readFile(join(dataDir, 'nats.pid'), 'utf8').catch(() => ''));
  if (!Number.isInteger(pid) || pid <= 1) return;
  const runs = async (): Promise<boolean> => (await commandOf(pid)).includes(config);
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    if (!(await runs())) return;
    try {
      process.kill(pid, signal);
    } catch {
      return; // it went meanwhile
    }
    for (let tries = 0; tries < stopMs / orphanTryMs && (await runs()); tries++) await wait(orphanTryMs);
  }
}

async function commandOf(pid: number): Promise<string> {
  try {
    return (await readFile(`/proc/${pid}/cmdline`, 'utf8')).replaceAll('\0', ' ');
  } catch {
    const asked = run('ps', ['-o', 'command=', '-p', String(pid)], { timeout: versionMs });
    return asked.then(
      ({ stdout }) => stdout,
      () => '',
    );
  }
}

async function prepare(options: NatsServerOptions, host: string): Promise<Files> {
  const dataDir = resolvePath(options.dataDir);
  const [config, log, ports] = [
    join(dataDir, 'nats.conf'),
    join(dataDir, 'nats.log'),
    join(dataDir, 'ports'),
  ];
  const [storeDir, resolverDir] = [join(dataDir, 'streams'), join(dataDir, 'accounts')];
  await endOrphan(dataDir, config);
  // A server that was killed leaves its ports file behind.
  await rm(ports, { recursive: true, force: true });
  for (const dir of [dataDir, ports, storeDir, resolverDir]) {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    await chmod(dir, 0o700);
    await give(dir, options);
  }
  const text = serverConfig(options.trust, {
    host,
    port: options.port === 0 ? -1 : options.port,
    storeDir,
    resolverDir,
    portsDir: ports,
    serverName: options.serverName ?? 'custody',
    ...(options.storeBytesMax === undefined ? {} : { storeBytesMax: options.storeBytesMax }),
  });
  await writeFile(config, text, { mode: 0o600 });
  await chmod(config, 0o600);
  await give(config, options);
  return { config, log, ports, pid: join(dataDir, 'nats.pid') };
}

async function give(path: string, options: NatsServerOptions): Promise<void> {
  if (options.uid !== undefined) await chown(path, options.uid, options.gid ?? options.uid);
}

function user(options: NatsServerOptions): { uid?: number; gid?: number } {
  return options.uid === undefined ? {} : { uid: options.uid, gid: options.gid ?? options.uid };
}

/** The port that nats-server wrote to its ports file, once it listens. */
async function listeningPort(portsDir: string): Promise<number | undefined> {
  for (const name of await readdir(portsDir)) {
    const found = /"nats:\/\/[^"]*:(\d+)"/.exec(await readFile(join(portsDir, name), 'utf8'));
    if (found?.[1] !== undefined) return Number(found[1]);
  }
  return undefined;
}

function greets(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ host, port, timeout: infoMs });
    const end = (greeted: boolean) => (): void => {
      socket.destroy();
      resolve(greeted);
    };
    let heard = '';
    socket.on('data', (bytes) => {
      heard += bytes.toString('latin1');
      if (heard.length >= 5) end(heard.startsWith('INFO '))();
    });
    socket.once('error', end(false));
    socket.once('timeout', end(false));
    socket.once('close', end(false));
  });
}
