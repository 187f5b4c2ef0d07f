// Owns making a checkout ready to run: packages, build, nats-server and, with --bench, what the bench compares with.
// Plain JavaScript for Node 20 and newer, without dependencies: it runs before anything is installed.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { stripVTControlCharacters } from 'node:util';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const cache = path.join(root, '.cache', 'setup');
const bins = path.join(root, 'node_modules', '.bin');
const benchDir = path.join(root, '.cache', 'bench-peers');
const benchPeers = { 'dotenv-cli': '11.0.0', '@dotenvx/dotenvx': '2.38.2', 'tree-kill': '1.2.2' };

const nodeMajorMin = 20;
const stepMsMax = 20 * 60_000;
const logLinesShown = 12;
const lockWaitMs = 250;

class SetupError extends Error {}

async function main() {
  const began = performance.now();
  checkNode();
  fs.mkdirSync(cache, { recursive: true });
  const release = await takeLock();
  try {
    let ran = 0;
    ran += await installPackages();
    ran += await build();
    ran += await natsServer();
    if (process.argv.includes('--bench')) ran += (await benchPackages()) + (await tini());
    if (ran === 0) say(`set-up: nothing to do  (${seconds(began)})\n`);
  } finally {
    release();
  }
}

function checkNode() {
  if (Number(process.versions.node.split('.')[0]) < nodeMajorMin) {
    throw new SetupError(
      `Node ${process.versions.node} is too old to set up with; install Node ${nodeMajorMin} or newer (https://nodejs.org)`,
    );
  }
}

// Packages.

async function installPackages() {
  const lock = readJson(path.join(root, 'package-lock.json'));
  const stamp = hashOf([
    path.join(root, 'package-lock.json'),
    path.join(root, 'package.json'),
    ...rooms().map((room) => path.join(room, 'package.json')),
  ]);
  if (stampIs('packages', stamp) && isInstalled(lock)) return 0;
  if (!isInstalled(lock)) {
    // `npm ci` refuses a lock file that lacks the packages of other platforms, as one does that was made against
    // a registry without them. What the lock does name is installed by version and checksum either way.
    const command = isWhole(lock) ? ['ci'] : ['install', '--no-save'];
    await step('packages from npm', () => npm(command, root, 'npm'));
    if (!isInstalled(lock)) {
      throw new SetupError('npm finished, yet packages are missing; remove node_modules and try again');
    }
  }
  writeStamp('packages', stamp);
  return 1;
}

/** What npm says it installed is what the lock file names, and the pinned Node is among it. */
function isInstalled(lock) {
  const installed = readJson(path.join(root, 'node_modules', '.package-lock.json'))?.packages;
  if (installed === undefined || !fs.existsSync(path.join(bins, 'node'))) return false;
  return Object.entries(lock.packages).every(([place, wanted]) => {
    if (!place.startsWith('node_modules/') || wanted.optional || wanted.peer) return true;
    const found = installed[place];
    if (found === undefined) return false;
    return wanted.link ? found.link === true : found.version === wanted.version;
  });
}

function isWhole(lock) {
  const names = new Set(Object.keys(lock.packages).map((place) => place.replace(/^.*node_modules\//, '')));
  return Object.values(lock.packages).every((entry) =>
    Object.keys(entry.optionalDependencies ?? {}).every((name) => names.has(name)),
  );
}

/** npm with the settings of the machine, but none of the outer npm's run. Its words go to a log file. */
async function npm(args, cwd, log) {
  const flags = [
    '--include=dev',
    '--include=optional',
    '--loglevel=error',
    '--no-audit',
    '--no-fund',
    '--no-progress',
  ];
  const settings = {
    npm_config_engine_strict: 'false',
    npm_config_ignore_scripts: 'false',
    npm_config_update_notifier: 'false',
    npm_config_global: 'false',
    npm_config_fetch_retry_mintimeout: '1000',
    npm_config_fetch_retry_maxtimeout: '5000',
  };
  const env = { ...outsideEnv(), ...settings, ...quiet };
  const offline = (await registryAnswers(env)) ? [] : ['--offline'];
  try {
    await run('npm', [...args, ...flags, ...offline], { cwd, log, env });
  } catch (error) {
    const lost = networkCodes.exec(error.output ?? '')?.[1];
    if (offline.length > 0 || lost !== undefined) {
      throw new SetupError(
        `npm cannot reach its registry${lost === undefined ? '' : ` (${lost})`}; connect to the network or point npm at a registry you can reach (npm config set registry <url>), then try again`,
      );
    }
    throw error;
  }
}

const networkCodes = /\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH)\b/;

/** Asked once and briefly: an install asks for hundreds of things, and retries each. Without an answer, its cache may do. */
async function registryAnswers(env) {
  const probe = ['view', 'node', 'version', '--fetch-retries=0', '--fetch-timeout=15000', '--loglevel=error'];
  try {
    await run('npm', probe, { cwd: root, log: 'npm-probe', env });
    return true;
  } catch (error) {
    if (error.code === 'ENOENT') throw new SetupError('npm is not on PATH; install it (it comes with Node)');
    return !networkCodes.test(error.output ?? '');
  }
}

/** Nothing here downloads an engine, asks for updates or reports usage. */
const quiet = {
  PRISMA_SCHEMA_ENGINE_BINARY: '/bin/sh',
  CHECKPOINT_DISABLE: '1',
  NX_NO_CLOUD: 'true',
  DO_NOT_TRACK: '1',
};

/** How the machine reaches its registry; everything else an outer `npm run` sets is about that run. */
const keptSettings =
  /^npm_config_(registry|cache|userconfig|globalconfig|proxy|https?[_-]proxy|no_?proxy|cafile|ca|cert|key|strict[_-]ssl|offline|prefer[_-]offline|maxsockets|fetch_.*|\/\/.*|@.*)$/i;

function outsideEnv() {
  const env = {};
  for (const [name, value] of Object.entries(process.env)) {
    if (/^npm_/i.test(name) && !keptSettings.test(name)) continue;
    // NODE_ENV=production would leave out what we build with; NODE_OPTIONS is for the program being run.
    if (['NODE_ENV', 'NODE_OPTIONS', 'INIT_CWD'].includes(name)) continue;
    env[name] = value;
  }
  // npm replaces node_modules, and must not run on the Node inside of it.
  env.PATH = (env.PATH ?? '')
    .split(path.delimiter)
    .filter((dir) => !/[\\/]node_modules[\\/]|node-gyp-bin$/.test(`${dir}${path.sep}`))
    .join(path.delimiter);
  return env;
}

// Build.

const sourceFiles = /\.(ts|mts|mjs|js|c|h|json|prisma|sql|html|css|svg)$/;
const notSources = new Set(['node_modules', 'dist', 'build', 'generated', 'test', '.cache', '.nx']);

async function build() {
  const sources = ['apps', 'libs', 'prisma'].flatMap((dir) => filesUnder(path.join(root, dir)));
  const settings = ['package.json', 'package-lock.json', 'nx.json', 'tsconfig.base.json'];
  const stamp = hashOf([...sources, ...settings.map((file) => path.join(root, file))]);
  if (stampIs('build', stamp) && outputsOfBuild().every((output) => fs.existsSync(output))) return 0;
  checkCompiler();
  const env = {
    ...outsideEnv(),
    ...quiet,
    NX_DAEMON: 'false',
    NX_TUI: 'false',
    NX_INTERACTIVE: 'false',
    // By default a folder in /tmp that the first user of the machine owns.
    NX_NATIVE_FILE_CACHE_DIRECTORY: path.join(root, '.cache', 'nx-native'),
  };
  env.PATH = [bins, env.PATH].join(path.delimiter);
  const nx = path.join(root, 'node_modules', 'nx', 'dist', 'bin', 'nx.js');
  const program = fs.existsSync(nx) ? [path.join(bins, 'node'), nx] : [path.join(bins, 'nx')];
  const args = [...program.slice(1), 'run-many', '-t', 'build', '--outputStyle=static', '--nxBail'];
  await step('build', () => run(program[0], args, { cwd: root, log: 'build', env }));
  const outputs = rooms()
    .flatMap((room) => ['dist', 'build', 'src/generated'].map((name) => path.join(room, name)))
    .filter((output) => fs.existsSync(output));
  fs.writeFileSync(
    path.join(cache, 'build-outputs'),
    outputs.map((output) => path.relative(root, output)).join('\n'),
  );
  writeStamp('build', stamp);
  return 1;
}

function outputsOfBuild() {
  const list = readText(path.join(cache, 'build-outputs'));
  return list === undefined ? [''] : list.split('\n').map((output) => path.join(root, output));
}

function checkCompiler() {
  const names = [process.env.CC, 'cc', 'gcc', 'clang'].filter(Boolean);
  const found = names.find((name) => findProgram(name) !== undefined);
  // macOS has a /usr/bin/cc that only asks for the tools to be installed.
  const real =
    process.platform !== 'darwin' || spawnSync('xcode-select', ['-p'], { stdio: 'ignore' }).status === 0;
  if (found !== undefined && real) return;
  throw new SetupError(
    'no C compiler found, and the keeper is written in C; install one (Debian, Ubuntu: apt-get install build-essential; Fedora: dnf install gcc; Alpine: apk add build-base; macOS: xcode-select --install)',
  );
}

// nats-server.

async function natsServer() {
  const file = path.join(root, 'deploy', 'nats-server.mjs');
  const { ensureNatsServer } = await import(pathToFileURL(file).href);
  let told = false;
  const fetching = performance.now();
  const log = () => {
    if (!told) say('set-up: nats-server …');
    told = true;
  };
  try {
    await ensureNatsServer({ root, log });
  } catch (error) {
    if (told) say('\n');
    throw new SetupError(error.message);
  }
  if (told) say(`  (${seconds(fetching)})\n`);
  return told ? 1 : 0;
}

// The bench's peers.

async function benchPackages() {
  const stamp = createHash('sha256').update(JSON.stringify(benchPeers)).digest('hex');
  const present = Object.keys(benchPeers).every((name) =>
    fs.existsSync(path.join(benchDir, 'node_modules', name, 'package.json')),
  );
  if (present && stampIs('bench-peers', stamp)) return 0;
  fs.mkdirSync(benchDir, { recursive: true });
  const manifest = { name: 'custody-bench-peers', private: true, dependencies: benchPeers };
  fs.writeFileSync(path.join(benchDir, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
  await step('bench peers from npm', () => npm(['install', '--no-package-lock'], benchDir, 'npm-bench'));
  writeStamp('bench-peers', stamp);
  return 1;
}

/** On PATH, or unpacked from the machine's package; the bench goes without it where neither is to be had. */
async function tini() {
  const target = path.join(benchDir, 'bin', 'tini');
  if (fs.existsSync(target) || findProgram('tini') !== undefined) return 0;
  const temp = path.join(benchDir, `tini.${process.pid}`);
  fs.rmSync(temp, { recursive: true, force: true });
  fs.mkdirSync(temp, { recursive: true });
  try {
    await step('tini from the package manager', async () => {
      const options = { cwd: temp, log: 'tini', env: { ...outsideEnv(), LC_ALL: 'C' } };
      // apt's own user may not enter the folder; we download into it ourselves.
      await run('apt-get', ['-o', 'APT::Sandbox::User=root', 'download', 'tini'], options);
      const deb = fs.readdirSync(temp).find((name) => name.endsWith('.deb')) ?? '';
      await run('dpkg-deb', ['-x', path.join(temp, deb), path.join(temp, 'x')], options);
      fs.mkdirSync(path.dirname(target), { recursive: true });
      fs.renameSync(path.join(temp, 'x', 'usr', 'bin', 'tini'), target);
    });
  } catch {
    say('set-up: tini cannot be fetched here; the bench goes without it\n');
  } finally {
    fs.rmSync(temp, { recursive: true, force: true });
  }
  return 1;
}

// Steps, programs, stamps.

function say(text) {
  process.stderr.write(text);
}

function seconds(since) {
  return `${((performance.now() - since) / 1000).toFixed(1)} s`;
}

async function step(name, work) {
  const began = performance.now();
  say(`set-up: ${name} …`);
  try {
    await work();
  } catch (error) {
    say(`  failed (${seconds(began)})\n`);
    throw error;
  }
  say(`  (${seconds(began)})\n`);
}

/** Runs a program with its words in `.cache/setup/<log>.log`; rejects with the last of them. */
async function run(program, args, { cwd, env, log }) {
  const file = path.join(cache, `${log}.log`);
  const output = fs.openSync(file, 'w');
  const { promise, resolve, reject } = withResolvers();
  const child = spawn(program, args, { cwd, env, stdio: ['ignore', output, output], timeout: stepMsMax });
  const forward = (signal) => child.kill(signal);
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, forward);
  child.once('error', reject);
  child.once('exit', (code, signal) => resolve(code ?? signal));
  try {
    const result = await promise;
    if (result === 0) return;
    const words = readText(file) ?? '';
    const error = new SetupError(
      `${path.basename(program)} ${args[0]} ended with ${result}; from ${file}:\n${tail(words)}`,
    );
    error.output = words;
    throw error;
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM']) process.off(signal, forward);
    fs.closeSync(output);
  }
}

// Promise.withResolvers came with Node 22.
function withResolvers() {
  let resolve;
  let reject;
  const promise = new Promise((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
}

function tail(words) {
  const lines = stripVTControlCharacters(words)
    .trim()
    .split('\n')
    .filter((line) => !line.includes('A complete log of this run'));
  // A compiler's line says more than those that say that the compiler failed.
  const compiler = lines.filter((line) => /error TS\d+|\berror:/.test(line));
  const errors = compiler.length > 0 ? compiler : lines.filter((line) => /\berror\b/i.test(line));
  return (errors.length > 0 ? errors.slice(0, logLinesShown) : lines.slice(-logLinesShown))
    .map((line) => `  ${line}`)
    .join('\n');
}

function findProgram(name) {
  const dirs = name.includes('/') ? [''] : (process.env.PATH ?? '').split(path.delimiter);
  for (const dir of dirs) {
    const file = path.join(dir, name);
    try {
      fs.accessSync(file, fs.constants.X_OK);
      return file;
    } catch {
      continue;
    }
  }
  return undefined;
}

function rooms() {
  return ['libs', 'apps'].flatMap((top) =>
    fs
      .readdirSync(path.join(root, top))
      .map((name) => path.join(root, top, name))
      .filter((room) => fs.existsSync(path.join(room, 'package.json'))),
  );
}

function filesUnder(dir) {
  return fs.readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    const file = path.join(dir, entry.name);
    if (entry.isDirectory()) return notSources.has(entry.name) ? [] : filesUnder(file);
    return sourceFiles.test(entry.name) ? [file] : [];
  });
}

/** Names and contents, and the machine: a checkout may be shared between two of them. */
function hashOf(files) {
  const hash = createHash('sha256').update(`${process.platform} ${process.arch}\n`);
  for (const file of files.toSorted()) {
    const bytes = fs.readFileSync(file);
    hash.update(`${path.relative(root, file)} ${bytes.length}\n`).update(bytes);
  }
  return hash.digest('hex');
}

function stampIs(name, stamp) {
  return readText(path.join(cache, name)) === stamp;
}

function writeStamp(name, stamp) {
  fs.writeFileSync(path.join(cache, name), stamp);
}

function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

function readJson(file) {
  const text = readText(file);
  return text === undefined ? undefined : JSON.parse(text);
}

/** One set-up of a checkout at a time; the lock of a dead one is taken over. */
async function takeLock() {
  const file = path.join(cache, 'lock');
  for (let waited = false; ; waited = true) {
    try {
      fs.writeFileSync(file, String(process.pid), { flag: 'wx' });
      process.once('exit', () => fs.rmSync(file, { force: true }));
      return () => fs.rmSync(file, { force: true });
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const holder = Number(readText(file));
    if (!isAlive(holder)) {
      fs.rmSync(file, { force: true });
      continue;
    }
    if (!waited) say(`set-up: waiting for the one that runs already (process ${holder})\n`);
    await delay(lockWaitMs);
  }
}

function isAlive(pid) {
  if (!Number.isInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

try {
  await main();
} catch (error) {
  const known = error instanceof SetupError;
  const denied = error.code === 'EACCES' || error.code === 'EROFS' || error.code === 'EPERM';
  if (known) say(`set-up: ${error.message}\n`);
  else if (denied)
    say(`set-up: ${error.path ?? root} cannot be written; does the checkout belong to another user?\n`);
  else say(`set-up: ${error.stack}\n`);
  process.exitCode = 1;
}
