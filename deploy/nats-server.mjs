// Owns getting a nats-server: the one on PATH, the one fetched before, or one from the machine's package manager.
// Runs on Node 20 and newer, needs no root, and touches nothing outside <root>/.cache and a temporary folder.
import { execFile } from 'node:child_process';
import {
  access,
  chmod,
  constants,
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);

export const versionMin = '2.9.10';
const askMs = 10_000;
const stepMs = 120_000;
const outputBytesMax = 16 * 1024 * 1024;

/** Where a fetched nats-server lies. */
export function cachedNatsServer(root) {
  return join(resolve(root), '.cache', 'nats-server', 'bin', 'nats-server');
}

/**
 * The absolute path of a nats-server of `versionMin` or newer; instant and without network when there is one
 * on PATH or in the cache. Throws one line that says how to get it when it cannot be had.
 */
export async function ensureNatsServer({ root, log = () => {} }) {
  const cached = cachedNatsServer(root);
  for (const path of [...onPath('nats-server'), cached]) {
    if (await isNewEnough(path)) return path;
  }
  const reasons = [];
  for (const [name, fetch] of [
    ['apt', fromApt],
    ['brew', fromBrew],
  ]) {
    try {
      const path = await fetch(cached, log);
      if (path !== undefined) return path;
    } catch (error) {
      reasons.push(`${name}: ${lastLine(error)}`);
    }
  }
  const why = reasons.length === 0 ? '' : ` (${reasons.join('; ')})`;
  throw new Error(
    `nats-server ${versionMin} or newer is needed and could not be fetched${why}: ` +
      'install it (apt install nats-server, brew install nats-server, or https://github.com/nats-io/nats-server/releases) so that it is on PATH',
  );
}

function onPath(name) {
  const dirs = (process.env.PATH ?? '').split(delimiter).filter((dir) => dir.startsWith('/'));
  // Debian installs it to sbin, which an ordinary user's PATH lacks.
  return [...new Set([...dirs, '/usr/sbin', '/usr/local/sbin'])].map((dir) => join(dir, name));
}

async function isNewEnough(path) {
  try {
    await access(path, constants.X_OK);
    const { stdout } = await run(path, ['-v'], { timeout: askMs });
    const found = /v(\d+)\.(\d+)\.(\d+)/.exec(stdout);
    return found !== null && compare(found.slice(1).map(Number), versionMin.split('.').map(Number)) >= 0;
  } catch {
    return false;
  }
}

function compare(a, b) {
  for (const [index, number] of a.entries()) {
    if (number !== b[index]) return number - b[index];
  }
  return 0;
}

/** Debian, Ubuntu: download the package and unpack it; nothing is installed. */
async function fromApt(cached, log) {
  for (const tool of ['apt-get', 'dpkg-deb']) {
    if (!(await has(tool))) return undefined;
  }
  const temp = await mkdtemp(join(tmpdir(), 'custody-nats-'));
  try {
    // apt's own user may not enter the folder; we download into it ourselves.
    const options = ['-o', 'APT::Sandbox::User=root', '-o', 'Acquire::Retries=2'];
    log('nats-server: downloading the package with apt-get');
    try {
      await download(temp, options);
    } catch {
      log('nats-server: reading the package lists into a private folder first');
      const own = await privateState(temp, options);
      await run('apt-get', [...own, '-o', 'APT::Update::Error-Mode=any', 'update'], step(temp));
      await download(temp, own);
    }
    const names = await readdir(temp);
    const deb = names.find((name) => name.startsWith('nats-server_') && name.endsWith('.deb'));
    if (deb === undefined) throw new Error('apt-get downloaded no package');
    await run('dpkg-deb', ['-x', join(temp, deb), join(temp, 'x')], step(temp));
    for (const dir of ['usr/sbin', 'usr/bin']) {
      const binary = join(temp, 'x', dir, 'nats-server');
      if (await isNewEnough(binary)) return await keep(binary, cached, log);
    }
    throw new Error(`the package holds no nats-server of ${versionMin} or newer that runs here`);
  } finally {
    await rm(temp, { recursive: true, force: true });
  }
}

function download(temp, options) {
  return run('apt-get', [...options, 'download', 'nats-server'], step(temp));
}

/** apt's lists and cache in a folder of our own, so that `update` needs no root. */
async function privateState(temp, options) {
  const state = join(temp, 'apt');
  for (const dir of ['lists/partial', 'cache/archives/partial']) {
    await mkdir(join(state, dir), { recursive: true });
  }
  const status = join(state, 'status');
  await writeFile(status, '');
  // The machine's hooks after an update (cleaning its cache, refreshing its indexes) are for root.
  const config = join(state, 'apt.conf');
  const hooks = ['Pre-Invoke', 'Post-Invoke', 'Post-Invoke-Success'];
  const lines = hooks.map((hook) => `#clear APT::Update::${hook};`);
  await writeFile(config, `${lines.join('\n')}\n`);
  const places = {
    'Dir::State::Lists': join(state, 'lists'),
    'Dir::State::status': status,
    'Dir::Cache': join(state, 'cache'),
  };
  return [
    '-c',
    config,
    ...options,
    ...Object.entries(places).flatMap(([key, path]) => ['-o', `${key}=${path}`]),
  ];
}

/** macOS, and Linux with Homebrew: only where brew is there already. */
async function fromBrew(_cached, log) {
  if (!(await has('brew'))) return undefined;
  log('nats-server: brew install nats-server');
  await run('brew', ['install', 'nats-server'], { ...step(tmpdir()), timeout: 5 * stepMs });
  const { stdout } = await run('brew', ['--prefix', 'nats-server'], { timeout: askMs });
  const path = join(stdout.trim(), 'bin', 'nats-server');
  if (!(await isNewEnough(path))) throw new Error(`brew has no nats-server of ${versionMin} or newer`);
  return path;
}

/** Temp beside the target, then rename: another process sees all of it or none. */
async function keep(binary, cached, log) {
  await mkdir(dirname(cached), { recursive: true });
  const temp = `${cached}.${process.pid}.tmp`;
  try {
    await copyFile(binary, temp);
    await chmod(temp, 0o755);
    await rename(temp, cached);
  } finally {
    await rm(temp, { force: true });
  }
  log(`nats-server: ready at ${cached}`);
  return cached;
}

function step(cwd) {
  return {
    cwd,
    timeout: stepMs,
    maxBuffer: outputBytesMax,
    env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
  };
}

async function has(tool) {
  for (const path of onPath(tool)) {
    try {
      await access(path, constants.X_OK);
      return true;
    } catch {
      continue;
    }
  }
  return false;
}

function lastLine(error) {
  const lines = String(error.stderr || error.message)
    .trim()
    .split('\n');
  return (lines.findLast((line) => line.startsWith('E:')) ?? lines.at(-1) ?? '').trim();
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(resolve(process.argv[1])).href) {
  const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
  try {
    console.log(await ensureNatsServer({ root, log: (line) => console.error(line) }));
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
