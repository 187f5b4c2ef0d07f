// Owns the call of `custody-keeper scan`: who holds the marker of a living run outside of its tree.
import { execFile } from 'node:child_process';
import { KeeperError } from './error.ts';
import { lossyTextOf } from './frames.ts';
import { keeperPath } from './native.ts';
import type { KeeperProcess } from './sweep.ts';

/** One run that is open. */
export interface OpenRun {
  readonly grantId: string;
  /** Its group, where it has one, is a folder of this name. */
  readonly runId: string;
  /** Undefined where it is gone: whoever holds the marker is outside of the tree then. */
  readonly keeper: KeeperProcess | undefined;
}

/** A process that holds the marker, and is neither a descendant of the keeper nor in the run's group. */
export interface Outsider {
  readonly grantId: string;
  readonly pid: number;
  readonly ppid: number;
  readonly startTicks: string;
  readonly uid: number;
  /** Its path in the v2 hierarchy; empty where there is none. */
  readonly cgroup: string;
  readonly name: string;
}

const outputBytesMax = 16 * 1024 * 1024;
const timeoutMs = 30_000;
const rowPattern = /^([^\t]+)\t(\d{1,10})\t(\d{1,10})\t(\d{1,20})\t(\d{1,10})\t([^\t]*)\t(.*)$/;

/**
 * Looks at every process of the system once. Ends none.
 * @throws KeeperError `not_built`; `scan_failed`.
 */
export async function scan(runs: readonly OpenRun[], program = keeperPath()): Promise<Outsider[]> {
  const limits = { encoding: 'buffer', maxBuffer: outputBytesMax, timeout: timeoutMs } as const;
  return new Promise((resolve, reject) => {
    const child = execFile(program, ['scan'], limits, (cause, stdout, stderr) => {
      const complaint = lossyTextOf(stderr).trim();
      if (cause === null) resolve(rowsOf(stdout));
      else reject(new KeeperError('scan_failed', complaint || 'the scan could not run', { cause }));
    });
    const lines = runs.map(({ grantId, runId, keeper }) => {
      return `${grantId} ${runId} ${keeper?.pid ?? 0} ${keeper?.startTicks ?? 0}\n`;
    });
    child.stdin?.on('error', () => {}); // a program that could not be started takes no input; the callback says why
    child.stdin?.end(lines.join(''));
  });
}

function rowsOf(stdout: Uint8Array): Outsider[] {
  return lossyTextOf(stdout)
    .split('\n')
    .flatMap((line) => {
      const [, grantId, pid, ppid, startTicks, uid, cgroup, name] = rowPattern.exec(line) ?? [];
      if (grantId === undefined || startTicks === undefined || cgroup === undefined || name === undefined)
        return [];
      return [{ grantId, pid: Number(pid), ppid: Number(ppid), startTicks, uid: Number(uid), cgroup, name }];
    });
}
