// Owns the programs under test: the keeper as it ships and, where a sanitizer runtime is there, the one under it.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
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
}

const at = (name: string, folder: string): Build => ({
  name,
  keeper: `${folder}custody-keeper`,
  frameCheck: `${folder}frame-check`,
});

/** Runs a command on a terminal of its own: native/pty_test.c. */
export const ptyRun = `${room}build/pty-run`;
/** Which clocks a program asks the kernel for: native/clocks_test.c. */
export const clockCalls = `${room}build/clock-calls`;
export const release = at('release', `${room}build/`);
export const builds = [release, ...(sanitized ? [at('sanitized', `${room}build/asan/`)] : [])];
/** Under the sanitizers: walks by scanning /proc, and waits 1 s, not 30, for the agent's answer. */
export const variant = sanitized
  ? { name: 'scanning', keeper: `${room}build/asan/custody-keeper-scan`, frameCheck: '' }
  : undefined;
/** For what must find a byte too far: the sanitized build where there is one. */
export const strictest = builds.at(-1) ?? release;
