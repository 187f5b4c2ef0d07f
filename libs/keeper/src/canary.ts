// Owns the start of a canary: a keeper like any other, over a command that only KILL ends.
import { spawn } from 'node:child_process';
import { keeperPath } from './native.ts';

export interface CanaryRun {
  /** Of the keeper; undefined where it could not be started. */
  readonly pid: number | undefined;
  /** How its keeper ended: `exit 123` where the canary was revoked. */
  readonly ended: Promise<string>;
}

/**
 * Starts `custody run` over `custody-keeper canary`, for `ttlMs` at most, with one credential. It outlives the caller.
 * @throws KeeperError `not_built`.
 */
export function startCanary(socketPath: string, reference: string, ttlMs: number): CanaryRun {
  const program = keeperPath();
  const words = [
    ...['run', '--socket', socketPath, '--no-manifest', '--ttl', `${ttlMs}ms`],
    ...['--env', `CUSTODY_CANARY=${reference}`, '--', program, 'canary', String(Math.ceil(ttlMs / 1_000))],
  ];
  // A session of its own: what is typed at an agent in the foreground is not for it.
  const child = spawn(program, words, { cwd: '/', env: {}, detached: true, stdio: 'ignore' });
  child.unref();
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (code, signal) => resolve(signal ?? `exit ${code}`));
  });
  return { pid: child.pid, ended };
}
