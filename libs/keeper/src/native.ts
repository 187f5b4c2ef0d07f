// Owns the way to what is built from C: the keeper program and the addon.
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { KeeperError } from './error.ts';

/** Who is at the other end of a Unix socket, as the kernel recorded it when the socket was connected. */
export interface Peer {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** What the kernel says of a process at this moment. */
export interface ProcessInfo {
  readonly ppid: number;
  /** As the keeper says it: with the pid it names a process for ever. */
  readonly startTicks: string;
  /** False for one that has died and that its parent has not collected. */
  readonly alive: boolean;
  /** By job control or a tracer. */
  readonly stopped: boolean;
}

interface Addon {
  peer(fd: number): Peer;
  process(pid: number): (Omit<ProcessInfo, 'startTicks'> & { readonly startTicks: bigint }) | undefined;
  bootTimeMs(): number;
  undumpable(): void;
}

// src/ and dist/ stand side by side, so one relative path serves both.
const build = new URL('../build/', import.meta.url);

let loaded: Addon | undefined;

function addon(): Addon {
  if (loaded !== undefined) return loaded;
  const path = fileURLToPath(new URL('peer.node', build));
  try {
    loaded = createRequire(import.meta.url)(path) as Addon;
    return loaded;
  } catch (cause) {
    throw new KeeperError('not_built', 'cannot load peer.node; run `nx run @custody/keeper:build`', {
      cause,
    });
  }
}

/**
 * Absolute path of the keeper program.
 * @throws KeeperError `not_built`.
 */
export function keeperPath(): string {
  const path = fileURLToPath(new URL('custody-keeper', build));
  if (existsSync(path)) return path;
  throw new KeeperError('not_built', 'there is no custody-keeper; run `nx run @custody/keeper:build`');
}

/**
 * The peer of a connected Unix socket (SO_PEERCRED; LOCAL_PEERCRED and LOCAL_PEERPID on macOS).
 * @throws KeeperError `not_a_socket` where fd is none, `no_peer` where it is one that has no such peer.
 */
export function peerOf(fd: number): Peer {
  try {
    return addon().peer(fd);
  } catch (cause) {
    if (cause instanceof KeeperError) throw cause;
    const connected = cause instanceof Error && 'code' in cause && cause.code !== 'ENOTCONN';
    throw new KeeperError(connected ? 'not_a_socket' : 'no_peer', `cannot ask who is at descriptor ${fd}`, {
      cause,
    });
  }
}

/** Undefined where there is no such process. @throws KeeperError `not_built`. */
export function processOf(pid: number): ProcessInfo | undefined {
  const found = addon().process(pid);
  return found && { ...found, startTicks: String(found.startTicks) };
}

/** Milliseconds, with fractions, on the clock that ceilings are on: it counts suspends, and nobody sets it. */
export function bootTimeMs(): number {
  return addon().bootTimeMs();
}

/** This process leaves no core file, and on Linux no other process of its user may read its memory. */
export function undumpable(): void {
  addon().undumpable();
}
