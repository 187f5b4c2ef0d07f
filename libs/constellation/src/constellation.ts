// Owns a whole constellation on one machine: PostgreSQL, nats-server, the control plane and hosts with an agent each.
import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { dirname, join } from 'node:path';
import type { Trust } from '@custody/bus/trust';
import { call } from '@custody/wire/client';
import { z } from 'zod';
import { startChild, type Child } from './child.ts';
import { layoutOf, type Layout } from './layout.ts';
import { findNatsServer, startNatsServer } from './nats-server.ts';
import { Part, type Started } from './part.ts';
import { startPostgres } from './postgres.ts';

const root = join(import.meta.dirname, '..', '..', '..');
const readyPollMs = 15;
const readyMsMax = 20_000;

export interface ConstellationOptions {
  /** Everything is kept under it; a later start goes on from it. */
  readonly dataDir: string;
  readonly hosts: number;
  /** `PATH` for finding nats-server, and what the programs inherit: `OTEL_*` and the like. */
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** The wall clock that its control plane also reads. */
  readonly now: () => Date;
  readonly onEvent?: (event: ConstellationEvent) => void;
  /** False in tests only: Postgres without fsync. */
  readonly durable?: boolean;
  /** How many share the database and the bus: `control-plane`, `control-plane-b`, … Default 1. */
  readonly controlPlanes?: number;
  /** Where nats-server listens, and what hosts dial. Default: the loopback, both. */
  readonly bus?: { readonly listen: string; readonly forHosts: string };
  /** Words before the command line of a host's agent, and more environment for it. */
  readonly around?: (host: string) => Around;
}

export interface Around {
  /** A program that becomes the one it is given, such as `nsenter`: the agent must have its pid. */
  readonly before?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
}

export interface ConstellationEvent {
  readonly part: string;
  readonly what: 'started' | 'died' | 'failed';
  readonly detail: string;
}

export interface HostOfConstellation {
  readonly name: string;
  readonly dataDir: string;
  readonly socket: string;
}

export interface Constellation extends AsyncDisposable {
  readonly api: string;
  /** Of every control plane; the first is `api`. */
  readonly apis: readonly string[];
  readonly tokenFile: string;
  readonly token: string;
  readonly busUrl: string;
  readonly databaseUrl: string;
  readonly layout: Layout;
  readonly hosts: readonly HostOfConstellation[];
  /** `postgres`, `nats`, `control-plane`, `control-plane-b`, `host-a`, … Throws for a name it does not know. */
  part(name: string): Part;
}

/** Resolves when every host can be granted credentials. What was started is stopped when anything fails. */
export async function startConstellation(options: ConstellationOptions): Promise<Constellation> {
  const layout = layoutOf(options.dataDir);
  const onEvent = options.onEvent ?? ((): void => {});
  await prepareFolders(layout);
  const ports = await choosePorts(layout);
  const env = inherited(options.environment);
  const parts = new Map<string, Part>();
  await using stack = new AsyncDisposableStack();
  const run = async (name: string, start: () => Promise<Started>): Promise<void> => {
    parts.set(name, stack.use(await Part.start({ name, start, onEvent })));
  };

  const [natsBinary] = await Promise.all([
    findNatsServer({
      path: options.environment['PATH'] ?? '',
      cacheDir: join(root, '.cache', 'nats-server', 'bin'),
    }),
    initialize(layout, ports, env),
    run('postgres', () => postgres(layout, ports, options.durable ?? true)),
  ]);
  const trust = JSON.parse(await readFile(join(layout.keys, 'trust.json'), 'utf8')) as Trust;
  await run('nats', async () => {
    const server = await startNatsServer({
      binary: natsBinary,
      dataDir: layout.nats,
      port: ports.nats,
      trust,
      ...(options.bus === undefined ? {} : { host: options.bus.listen }),
    });
    return { pid: server.pid, exited: server.child.exited, stop: () => server.stop() };
  });
  const busUrl = `nats://127.0.0.1:${ports.nats}`;
  const busForHosts = `nats://${options.bus?.forHosts ?? '127.0.0.1'}:${ports.nats}`;
  const apiPorts = [ports.api, ...(await freePorts((options.controlPlanes ?? 1) - 1))];
  const apis = apiPorts.map((port) => `http://127.0.0.1:${port}`);
  const api = `http://127.0.0.1:${ports.api}`;
  for (const [index, port] of apiPorts.entries()) {
    const name = index === 0 ? 'control-plane' : `control-plane-${letter(index)}`;
    await run(name, () => controlPlane(layout, env, { name, busUrl, busForHosts, port }));
  }

  const tokenFile = join(layout.keys, 'operator.token');
  const token = (await readFile(tokenFile, 'utf8')).trim();
  const hosts = Array.from({ length: options.hosts }, (_, index): HostOfConstellation => {
    const name = `host-${letter(index)}`;
    return { name, dataDir: layout.hostDir(name), socket: layout.socket(name) };
  });
  const startedAt = options.now();
  await Promise.all(
    hosts.map(async (host) => {
      const around = options.around?.(host.name) ?? {};
      const own = { ...env, ...around.environment };
      await enroll(layout, own, { api, token }, host);
      await run(host.name, () => agent(layout, own, host, around.before ?? []));
    }),
  );
  await untilServed(api, token, hosts, startedAt);
  const databaseUrl = (await readFile(layout.databaseUrl, 'utf8')).trim();
  const owned = stack.move();
  return {
    ...{ api, apis, tokenFile, token, busUrl, databaseUrl, layout, hosts },
    part: (name) => {
      const part = parts.get(name);
      if (part === undefined)
        throw new Error(`a constellation has no part ${name}; it has ${[...parts.keys()].join(', ')}`);
      return part;
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function letter(index: number): string {
  return String.fromCodePoint(0x61 + index);
}

async function prepareFolders(layout: Layout): Promise<void> {
  // Postgres runs as another user where we are root: it must be able to pass, and no more.
  await mkdir(layout.dir, { recursive: true, mode: 0o711 });
  for (const dir of [layout.keys, layout.logs, join(layout.dir, 'hosts'), dirname(layout.socket('x'))]) {
    await mkdir(dir, { recursive: true, mode: 0o700 });
  }
}

const portsRecord = z.strictObject({ postgres: z.int(), nats: z.int(), api: z.int() });
type Ports = z.infer<typeof portsRecord>;

/** Chosen once for a data folder: hosts remember where the bus is. */
async function choosePorts(layout: Layout): Promise<Ports> {
  const kept = await readFile(layout.ports, 'utf8').catch(() => undefined);
  if (kept !== undefined) return portsRecord.parse(JSON.parse(kept));
  const [postgresPort, nats, api] = await freePorts(3);
  const ports = portsRecord.parse({ postgres: postgresPort, nats, api });
  await writeFile(layout.ports, JSON.stringify(ports), { mode: 0o600 });
  return ports;
}

/** Holds all of them open at once, so that they differ. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      const listening = Promise.withResolvers<void>();
      server.once('error', listening.reject);
      server.listen(0, '127.0.0.1', listening.resolve);
      await listening.promise;
      return server;
    }),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

async function postgres(layout: Layout, ports: Ports, durable: boolean): Promise<Started> {
  const server = await startPostgres({
    dataDir: layout.postgres,
    port: ports.postgres,
    logFile: layout.log('postgres'),
    durable,
  });
  await writeFile(layout.databaseUrl, `${server.connectionString}\n`, { mode: 0o600 });
  return server;
}

function program(app: 'control-plane' | 'agent'): string {
  return join(root, 'apps', app, 'dist', 'main.js');
}

async function initialize(layout: Layout, ports: Ports, env: Record<string, string>): Promise<void> {
  if (await exists(join(layout.keys, 'operator.token'))) return;
  const args = [program('control-plane'), 'init', '--dir', layout.keys, '--nats-port', String(ports.nats)];
  await toItsEnd('control-plane init', await child(layout, 'init', args, env), layout.log('init'));
}

async function controlPlane(
  layout: Layout,
  env: Record<string, string>,
  { name, busUrl, busForHosts, port }: { name: string; busUrl: string; busForHosts: string; port: number },
): Promise<Child> {
  return startChild({
    command: process.execPath,
    args: [program('control-plane'), 'start'],
    env: {
      ...env,
      CUSTODY_KEYS_DIR: layout.keys,
      CUSTODY_DATABASE_URL_FILE: layout.databaseUrl,
      CUSTODY_BUS_SERVERS: busUrl,
      CUSTODY_BUS_SERVERS_FOR_HOSTS: busForHosts,
      CUSTODY_LISTEN: `127.0.0.1:${port}`,
    },
    cwd: layout.dir,
    logFile: layout.log(name),
    ready: () => answers(`http://127.0.0.1:${port}/readyz`),
    readyMs: readyMsMax,
  });
}

async function enroll(
  layout: Layout,
  env: Record<string, string>,
  { api, token }: { api: string; token: string },
  host: HostOfConstellation,
): Promise<void> {
  if (await exists(join(host.dataDir, 'identity.json'))) return;
  const { token: joinToken } = await call({ url: api, token }, 'host.token', { body: { name: host.name } });
  const args = [program('agent'), 'enroll', '--url', api, '--data', host.dataDir];
  const started = await child(layout, host.name, args, { ...env, CUSTODY_JOIN_TOKEN: joinToken });
  await toItsEnd(`enrol ${host.name}`, started, layout.log(host.name));
}

function agent(
  layout: Layout,
  env: Record<string, string>,
  host: HostOfConstellation,
  before: readonly string[],
): Promise<Child> {
  const own = [process.execPath, program('agent'), 'start', '--data', host.dataDir, '--socket', host.socket];
  const [command = '', ...args] = [...before, ...own];
  return startChild({
    command,
    args,
    env,
    cwd: layout.dir,
    logFile: layout.log(host.name),
    ready: () => accepts(host.socket),
    readyMs: readyMsMax,
  });
}

function child(layout: Layout, log: string, args: string[], env: Record<string, string>): Promise<Child> {
  return startChild({ command: process.execPath, args, env, cwd: layout.dir, logFile: layout.log(log) });
}

async function toItsEnd(what: string, started: Child, logFile: string): Promise<void> {
  const { code, signal } = await started.exited;
  if (code === 0) return;
  const words = (await readFile(logFile, 'utf8')).trim().split('\n').slice(-3).join('; ');
  throw new Error(`${what}: it ended with ${signal ?? code}: ${words}`);
}

/** A host has subscribed and caught up when the control plane has heard it ask. */
async function untilServed(
  api: string,
  token: string,
  hosts: readonly HostOfConstellation[],
  since: Date,
): Promise<void> {
  const deadline = AbortSignal.timeout(readyMsMax);
  for (;;) {
    const { hosts: known } = await call({ url: api, token }, 'host.list', {});
    const seen = new Set(
      known.filter((host) => new Date(host.lastSeenAt ?? 0) >= since).map((host) => host.name),
    );
    const waiting = hosts.filter((host) => !seen.has(host.name));
    if (waiting.length === 0) return;
    if (deadline.aborted)
      throw new Error(`${waiting.map((host) => host.name).join(', ')}: no sign of life; see the log folder`);
    await new Promise((resolve) => setTimeout(resolve, readyPollMs));
  }
}

async function answers(url: string): Promise<boolean> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(1_000) });
    await response.body?.cancel();
    return response.ok;
  } catch {
    return false;
  }
}

function accepts(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    const end = (ok: boolean) => (): void => {
      socket.destroy();
      resolve(ok);
    };
    socket.once('connect', end(true));
    socket.once('error', end(false));
  });
}

/** What a program needs of the caller's environment, and nothing of the caller's secrets. */
const inheritedNames = [
  'PATH',
  'HOME',
  'LANG',
  'TZ',
  'TMPDIR',
  'CUSTODY_LOG',
  'CUSTODY_CONTAINMENT',
  'CUSTODY_CANARY',
  'CUSTODY_CANARY_INTERVAL',
];

function inherited(environment: Readonly<Record<string, string | undefined>>): Record<string, string> {
  const kept = Object.entries(environment).filter(
    ([key, value]) => value !== undefined && (key.startsWith('OTEL_') || inheritedNames.includes(key)),
  );
  return Object.fromEntries(kept) as Record<string, string>;
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
