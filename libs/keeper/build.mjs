// Owns the native build: the keeper, the programs of its tests and the Node addon, from C to build/.
// `--sanitize` builds the keeper and those programs under ASan and UBSan into build/asan instead.
import { execFile } from 'node:child_process';
import { accessSync, constants, mkdirSync, readFileSync, readdirSync, renameSync, statSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const room = fileURLToPath(new URL('.', import.meta.url));
const native = join(room, 'native');
const sanitize = process.argv.includes('--sanitize');
const { version } = JSON.parse(readFileSync(join(room, 'package.json'), 'utf8'));

function fail(line) {
  process.stderr.write(`custody: ${line}\n`);
  process.exit(1);
}

if (process.platform !== 'linux') {
  fail(`the keeper holds process trees on Linux only so far; it cannot be built on ${process.platform} yet`);
}

function compiler() {
  const folders = (process.env['PATH'] ?? '').split(delimiter);
  for (const name of [process.env['CC'], 'cc', 'gcc', 'clang']) {
    if (!name) continue;
    if (name.includes('/')) return name;
    if (folders.some((folder) => mayRun(join(folder, name)))) return name;
  }
  return fail(
    'no C compiler found; install one (Debian, Ubuntu: apt-get install build-essential; macOS: xcode-select --install)',
  );
}

/** A folder of PATH that this user may not look into holds nothing for him. */
function mayRun(path) {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

const warnings = ['-Wall', '-Wextra', '-Werror', '-Wpedantic', '-Wconversion', '-Wshadow'];
const hardening = sanitize
  ? ['-O1', '-g', '-fno-omit-frame-pointer', '-fsanitize=address,undefined', '-fno-sanitize-recover=all']
  : ['-O2', '-D_FORTIFY_SOURCE=2', '-fstack-protector-strong'];
const common = ['-std=c11', '-D_GNU_SOURCE', `-DCUSTODY_VERSION="${version}"`, ...warnings, ...hardening];
const linking = ['-Wl,-z,relro,-z,now', '-Wl,-z,noexecstack'];
// Static first: the dynamic loader is half the start of so small a program. Some systems ship no static libc,
// and a sanitizer's runtime is never static.
const dynamic = ['-fPIE', '-pie'];
const programs = sanitize
  ? [dynamic]
  : [
      ['-fPIE', '-static-pie', '-s'],
      [...dynamic, '-s'],
    ];

const keeperSources = readdirSync(native).filter(
  (name) => name.endsWith('.c') && !name.endsWith('_test.c') && name !== 'peer.c',
);
const outputs = [
  { name: 'custody-keeper', sources: keeperSources, ways: programs },
  { name: 'frame-check', sources: ['frame_test.c', 'frame.c'], ways: programs },
  { name: 'pty-run', sources: ['pty_test.c'], ways: programs },
  { name: 'signal-count', sources: ['signal_test.c'], ways: programs },
  { name: 'clock-calls', sources: ['clocks_test.c'], ways: programs },
  { name: 'agent-least', sources: ['agent_test.c', 'frame.c'], ways: programs },
  { name: 'spawn-times', sources: ['spawn_test.c'], ways: programs },
];
if (sanitize) {
  // The same keeper as on a kernel that lists no children, and with less patience: paths that only tests take.
  const variant = ['-DCUSTODY_SCAN', '-DANSWER_MS_MAX=1000'];
  outputs.push({ name: 'custody-keeper-scan', sources: keeperSources, ways: [[...dynamic, ...variant]] });
} else {
  const headers = fileURLToPath(new URL('include', import.meta.resolve('node-api-headers')));
  const addon = [['-fPIC', '-shared', '-isystem', headers]];
  outputs.push({ name: 'peer.node', sources: ['peer.c'], ways: addon });
  outputs.push({ name: 'network-test.node', sources: ['network_test.c'], ways: addon });
}

function changedMs(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

const inputs = [...readdirSync(native).map((name) => join(native, name)), join(room, 'build.mjs')];
const newestMs = Math.max(...inputs.map(changedMs));
const folder = join(room, 'build', sanitize ? 'asan' : '.');
const stale = outputs.filter(({ name }) => changedMs(join(folder, name)) <= newestMs);

if (stale.length > 0) {
  const cc = compiler();
  mkdirSync(folder, { recursive: true });
  for (const { name, sources, ways } of stale) {
    const made = join(folder, `.${name}.${process.pid}`);
    const files = sources.toSorted().map((source) => join(native, source));
    let fault;
    for (const flags of ways) {
      fault = await run(cc, [...common, ...flags, ...linking, ...files, '-o', made]).then(
        () => undefined,
        (cause) => cause,
      );
      if (fault === undefined) break;
    }
    if (fault !== undefined) fail(`${cc} could not build ${name}\n${fault.stderr ?? fault.message}`);
    renameSync(made, join(folder, name)); // a program that runs keeps its file; the next start has the new one
  }
}
