// Owns what the agent asks the kernel of one process.
import { readFileSync } from 'node:fs';
import { processOf } from '@custody/keeper/native';

/** With the pid it names a process for ever: field 22 of /proc/PID/stat; on macOS microseconds. */
export function startOf(pid: number): string | undefined {
  return processOf(pid)?.startTicks;
}

export interface Member {
  readonly pid: number;
  readonly ppid: number;
  readonly startTicks: string;
  readonly name: string;
}

/** What goes on record of a process of a group that is about to be killed, from /proc; undefined when it has gone. */
export function memberOf(pid: number): Member | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`);
    const [open, shut] = [stat.indexOf('('), stat.lastIndexOf(')')];
    const fields = stat.toString('latin1', shut + 2).split(' ');
    const name = stat.toString('utf8', open + 1, shut).replaceAll(/\p{Cc}/gu, '?');
    return { pid, ppid: Number(fields[1]), startTicks: fields[19] ?? '0', name };
  } catch {
    return undefined;
  }
}

/** The real uid it has now; undefined where there is no /proc to say. */
export function uidOf(pid: number): number | undefined {
  try {
    const uid = /^Uid:\t(\d+)\t/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1];
    return uid === undefined ? undefined : Number(uid);
  } catch {
    return undefined;
  }
}

/** Whether a signal has stopped it: it can keep no ceiling then. */
export function isStopped(pid: number): boolean {
  return processOf(pid)?.stopped === true;
}

/** Whether it is there and has not died: a signal still finds what its parent has not collected. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  return processOf(pid)?.alive !== false;
}
