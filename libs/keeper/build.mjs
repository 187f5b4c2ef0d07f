// Owns the native build: the keeper, the programs of its tests and the Node addon, from C to build/.
// `--sanitize` builds the keeper and those programs under ASan and UBSan into build/asan instead.
// native/ is for every system, native/linux/ and native/darwin/ for one each. On Linux the files of darwin/ are built
// too, over test/shim/, into custody-keeper-kqueue: the tests run them where there is no Mac.
// `--target=aarch64-macos` builds with zig what a Mac would get, into build/aarch64-macos: see cross.mjs.
import { execFile } from 'node:child_process';
import { accessSync, constants, mkdirSync, readFileSync, readdirSync, renameSync, statSync } from 'node:fs';
import { delimiter, join, relative } from 'node:path';
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

const target = process.argv.find((word) => word.startsWith('--target='))?.slice('--target='.length);
const platform = target === undefined ? process.platform : 'darwin';
if (platform !== 'linux' && platform !== 'darwin') {
  fail(`the keeper holds process trees on Linux and macOS; it cannot be built on ${platform} yet`);
}

/** The compiler and the words that come first. */
function compiler() {
  if (target !== undefined) return [...JSON.parse(process.env['ZIG'] ?? '["zig"]'), 'cc', '-target', target];
  const folders = (process.env['PATH'] ?? '').split(delimiter);
  for (const name of [process.env['CC'], 'cc', 'gcc', 'clang']) {
    if (!name) continue;
    if (name.includes('/')) return [name];
    if (folders.some((folder) => mayRun(join(folder, name)))) return [name];
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
const common = [
  '-std=c11',
  '-D_GNU_SOURCE',
  `-DCUSTODY_VERSION="${version}"`,
  `-I${native}`,
  ...warnings,
  ...hardening,
];
const ofSystem = platform === 'darwin' ? ['-include', join(native, 'darwin', 'libc.h')] : [];
const linking = platform === 'darwin' ? [] : ['-Wl,-z,relro,-z,now', '-Wl,-z,noexecstack'];
// Static first: the dynamic loader is half the start of so small a program. Some systems ship no static libc,
// and a sanitizer's runtime is never static.
const dynamic = ['-fPIE', '-pie'];
const linux = sanitize
  ? [dynamic]
  : [
      ['-fPIE', '-static-pie', '-s'],
      [...dynamic, '-s'],
    ];
const programs = platform === 'darwin' ? [[]] : linux;

const sourcesIn = (folder) =>
  readdirSync(join(native, folder))
    .filter((name) => name.endsWith('.c') && !name.endsWith('_test.c') && name !== 'peer.c')
    .map((name) => join(folder, name));
const keeperSources = [...sourcesIn('.'), ...sourcesIn(platform)];
const outputs = [
  { name: 'custody-keeper', sources: keeperSources, ways: programs.map((way) => [...way, ...ofSystem]) },
  {
    name: 'frame-check',
    sources: ['frame_test.c', 'frame.c'],
    ways: programs.map((way) => [...way, ...ofSystem]),
  },
];
if (platform === 'linux') {
  const shim = join(room, 'test', 'shim');
  const over = [`-I${join(shim, 'include')}`, '-include', join(shim, 'include', 'darwin.h')];
  outputs.push(
    { name: 'pty-run', sources: ['pty_test.c'], ways: programs },
    { name: 'signal-count', sources: ['signal_test.c'], ways: programs },
    { name: 'flood', sources: ['flood_test.c'], ways: programs },
    { name: 'clock-calls', sources: ['clocks_test.c'], ways: programs },
    { name: 'agent-least', sources: ['agent_test.c', 'frame.c'], ways: programs },
    { name: 'spawn-times', sources: ['spawn_test.c'], ways: programs },
    {
      name: 'custody-keeper-kqueue',
      sources: [...sourcesIn('.'), ...sourcesIn('darwin'), relative(native, join(shim, 'shim.c'))],
      ways: programs.map((way) => [...way, ...over]),
    },
  );
}
if (sanitize && platform === 'linux') {
  // The same keeper as on a kernel that lists no children, and with less patience: paths that only tests take.
  const variant = ['-DCUSTODY_SCAN', '-DANSWER_MS_MAX=1000'];
  outputs.push({ name: 'custody-keeper-scan', sources: keeperSources, ways: [[...dynamic, ...variant]] });
} else if (!sanitize) {
  const headers = fileURLToPath(new URL('include', import.meta.resolve('node-api-headers')));
  // On macOS the linker must be told that Node itself has the napi_ functions.
  const lookup = platform === 'darwin' ? ['-undefined', 'dynamic_lookup'] : [];
  const ways = [['-fPIC', '-shared', ...lookup, '-isystem', headers]];
  outputs.push({ name: 'peer.node', sources: ['peer.c', 'say.c', join(platform, 'proc.c')], ways });
  if (platform === 'linux') outputs.push({ name: 'network-test.node', sources: ['network_test.c'], ways });
}

function changedMs(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

const inputs = [join(room, 'build.mjs')];
for (const from of [native, join(room, 'test', 'shim')]) {
  for (const name of readdirSync(from, { recursive: true })) inputs.push(join(from, name));
}
const newestMs = Math.max(...inputs.map(changedMs));
const folder = join(room, 'build', target ?? (sanitize ? 'asan' : '.'));
const stale = outputs.filter(({ name }) => changedMs(join(folder, name)) <= newestMs);

if (stale.length > 0) {
  const [cc, ...first] = compiler();
  mkdirSync(folder, { recursive: true });
  for (const { name, sources, ways } of stale) {
    const made = join(folder, `.${name}.${process.pid}`);
    const files = sources.toSorted().map((source) => join(native, source));
    let fault;
    for (const flags of ways) {
      fault = await run(cc, [...first, ...common, ...flags, ...linking, ...files, '-o', made]).then(
        () => undefined,
        (cause) => cause,
      );
      if (fault === undefined) break;
    }
    if (fault !== undefined) fail(`${cc} could not build ${name}\n${fault.stderr ?? fault.message}`);
    renameSync(made, join(folder, name)); // a program that runs keeps its file; the next start has the new one
  }
}
