// Owns what the agent asks /proc of one process. On a system without it nothing is known.
import { readFileSync } from 'node:fs';

/** Field 22 of /proc/PID/stat: with the pid it names a process for ever. */
export function startOf(pid: number): string | undefined {
  return fieldsOf(pid)?.[19];
}

export interface Member {
  readonly pid: number;
  readonly ppid: number;
  readonly startTicks: string;
  readonly name: string;
}

/** What goes on record of a process that is about to be killed; undefined when it has gone. */
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

/** The real uid it has now. */
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
  return fieldsOf(pid)?.[0] === 'T';
}

/** Whether it is there and has not died: a signal still finds what its parent has not collected. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  const state = fieldsOf(pid)?.[0];
  return state !== 'Z' && state !== 'X';
}

/** proc_pid_stat(5) from field 3 on: the name before it stands in parentheses and may hold anything. */
function fieldsOf(pid: number): string[] | undefined {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'latin1')
      .replace(/^.*\) /s, '')
      .split(' ');
  } catch {
    return undefined;
  }
}
