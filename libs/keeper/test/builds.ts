// Owns the programs under test: the keeper as it ships, the one under a sanitizer where there is one, and that of macOS.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, renameSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const room = fileURLToPath(new URL('..', import.meta.url));

function build(...flags: string[]): boolean {
  const made = spawnSync(process.execPath, ['build.mjs', ...flags], { cwd: room, encoding: 'utf8' });
  if (made.status !== 0) process.stderr.write(made.stderr);
  return made.status === 0;
}

if (!build()) throw new Error('the keeper does not build');
const sanitized = build('--sanitize') && existsSync(`${room}build/asan/custody-keeper`);

export interface Build {
  readonly name: string;
  readonly keeper: string;
  readonly frameCheck: string;
  /** As the keeper says it in its request. */
  readonly containment: 'subreaper' | 'kqueue';
  /** PATH of what it runs. */
  readonly path: string;
}

const at = (name: string, folder: string): Build => ({
  name,
  keeper: `${folder}custody-keeper`,
  frameCheck: `${folder}frame-check`,
  containment: 'subreaper',
  path: process.env['PATH'] ?? '',
});

/** Programs as a user installs them: of those that come with the system macOS shows no environment, nor does the shim. */
function unprotected(...names: string[]): string {
  const folder = `${room}build/unprotected`;
  mkdirSync(folder, { recursive: true });
  for (const name of names) {
    const found = spawnSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' }).stdout.trim();
    const made = `${folder}/.${name}.${process.pid}`;
    copyFileSync(found, made);
    renameSync(made, `${folder}/${name}`); // whole at once: other test files do the same
  }
  return `${folder}:${process.env['PATH']}`;
}

/** Runs a command on a terminal of its own: native/pty_test.c. */
export const ptyRun = `${room}build/pty-run`;
/** Floods its parent with signals: native/flood_test.c. */
export const flood = `${room}build/flood`;
/** Which clocks a program asks the kernel for: native/clocks_test.c. */
export const clockCalls = `${room}build/clock-calls`;
export const release = at('release', `${room}build/`);
export const builds = [release, ...(sanitized ? [at('sanitized', `${room}build/asan/`)] : [])];
/** The keeper of macOS, native/darwin/, over shim/: under the sanitizers where they are. */
export const kqueue: Build = {
  ...release,
  name: 'kqueue',
  keeper: `${room}build/${sanitized ? 'asan/' : ''}custody-keeper-kqueue`,
  containment: 'kqueue',
  path: unprotected('sh', 'sleep', 'env', 'setsid'),
};
/** Every keeper there is. */
export const keepers = [...builds, kqueue];
/** The keeper of the tests that are about one: a file may set another before it takes their file in. */
export const underTest = { build: release };
/** Under the sanitizers: walks by scanning /proc, and waits 1 s, not 30, for the agent's answer. */
export const variant: Build | undefined = sanitized
  ? { ...release, name: 'scanning', keeper: `${room}build/asan/custody-keeper-scan` }
  : undefined;
/** For what must find a byte too far: the sanitized build where there is one. */
export const strictest = builds.at(-1) ?? release;
