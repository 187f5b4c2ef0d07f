// Owns what the agent knows of one run while it is open: how it is made, found again, shown, and until when it may go on.
import { freshUntil } from '@custody/core/freshness';
import { graceMsDefault } from '@custody/core/limits';
import type { Freshness } from '@custody/core/policy';
import type { RevocableGrant } from '@custody/core/revocation';
import type { HostBody } from '@custody/wire/ledger';
import type { GrantClaims } from '@custody/wire/messages';
import type { Held } from '@custody/wire/schema';
import type { Ask } from './delivery.ts';
import { startOf } from './process.ts';
import type { Closing, Heard } from './record.ts';
import type { Timer } from './timers.ts';

/** What the kernel says of the process at the other end of the socket. */
export interface Peer {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** The keeper of one run, as runs see it. */
export interface KeeperEnd {
  end(cause: 'revoked' | 'ceiling' | 'agent', graceMs: number): void;
  /** The host is fresh for it until then. */
  fresh(untilBootMs: number): void;
}

export interface Run extends RevocableGrant {
  readonly uid: number;
  readonly keeperPid: number;
  /** Unknown where /proc does not say. */
  readonly keeperStartTicks: string | undefined;
  readonly command: readonly string[];
  readonly credentials: readonly Held[];
  /**
   * The revocation epoch at its decision: what is not greater cannot hit it. Unknown of a run of an older agent, and
   * of one of before the log was set back: there every entry counts.
   */
  epoch: number | undefined;
  readonly containment: GrantClaims['containment'];
  readonly ceilingBootMs: number;
  readonly graceMs: number;
  /** Undefined in a record from before it was acted on: then it is not. */
  readonly freshness: Freshness | undefined;
  /** Until when it is fresh. The keeper keeps it too, and knows it where an agent has just started. */
  freshUntilBootMs: number;
  /** False where the revocation log was set back since: what is proven now says nothing of the one before. */
  renewable: boolean;
  /** The runs around it, innermost first, open or not. */
  readonly within: readonly Run[];
  /** Where its files stand. */
  readonly place: string | undefined;
  /** Sequence number of its `released` entry; infinite until that is durable. */
  releasedSeq: number;
  started: boolean;
  root: { pid: number; startTicks: string } | undefined;
  keeper: KeeperEnd | undefined;
  revoked: Heard | undefined;
  watch: Timer | undefined;
  sweeping: boolean;
  /** Whether it was put on record that it could not be emptied so far. */
  complained: boolean;
  /** When the agent began to empty the tree itself. */
  sweptBootMs: number | undefined;
  /** When the agent killed its group for a revocation. */
  killedBootMs: number | undefined;
  /** What the keeper said of the end, until nothing is left outside of the tree either. */
  told: Closing | undefined;
  readonly escapes: Set<string>;
}

/** Of a run that was just granted, or just found in the ledger. */
export function atStart() {
  return {
    renewable: true,
    started: false,
    root: undefined,
    keeper: undefined,
    revoked: undefined,
    watch: undefined,
    sweeping: false,
    complained: false,
    sweptBootMs: undefined,
    killedBootMs: undefined,
    told: undefined,
    escapes: new Set<string>(),
  };
}

/** A run, and what is around it. */
export function around(parent: Run | undefined): Run[] {
  return parent === undefined ? [] : [parent, ...parent.within];
}

/** A run that was just granted: it holds nothing yet, and is fresh until somebody says for how long. */
export function runGranted(
  claims: GrantClaims,
  ask: Ask,
  peer: Peer,
  ceilingBootMs: number,
  within: readonly Run[],
): Run {
  const { grantId, runId, hostId, subject, policyRevision, epoch, credentials, containment } = claims;
  return {
    ...{ grantId, runId, hostId, subject, policyRevision, epoch, credentials, containment },
    ...{ uid: peer.uid, keeperPid: peer.pid, keeperStartTicks: startOf(peer.pid), command: ask.command },
    ...{ ceilingBootMs, freshness: claims.freshness, freshUntilBootMs: Infinity, graceMs: claims.graceMs },
    within,
    place: ask.wanted.some(({ deliver }) => deliver === 'file' || deliver === 'fifo') ? ask.place : undefined,
    releasedSeq: Number.POSITIVE_INFINITY,
    ...atStart(),
  };
}

/** A run as its release has it on record. How fresh it is stands nowhere but with its keeper. */
export function runOnRecord(
  body: HostBody<'released'>,
  hostId: string,
  within: readonly Run[],
  releasedSeq: number,
): Run {
  return {
    ...body,
    hostId,
    epoch: body.epoch,
    within,
    place: body.place,
    freshness: body.freshness,
    freshUntilBootMs: body.freshness?.kind === 'strict' ? 0 : Infinity,
    keeperPid: body.pid,
    keeperStartTicks: body.startTicks,
    graceMs: graceMsDefault,
    releasedSeq,
    ...atStart(),
  };
}

/** When it must begin to end, whoever is dead or stopped. */
export function boundBootMs(run: Run): number {
  return Math.min(run.ceilingBootMs, run.freshUntilBootMs);
}

/** Why a run is over its bound; undefined where it is not. */
export function overdue(run: Run, nowBootMs: number): 'ceiling' | 'stale' | undefined {
  if (nowBootMs < boundBootMs(run)) return undefined;
  return run.freshUntilBootMs < run.ceilingBootMs ? 'stale' : 'ceiling';
}

/**
 * Moves on until when it is fresh. One whose time has passed stays over: its keeper is ending it. A keeper that job
 * control has stopped is woken by every word, which its shell sees: it hears when half of its time has passed.
 */
export function renewRun(
  run: Run,
  provenBootMs: number,
  nowBootMs: number,
  stopped: (pid: number) => boolean,
): void {
  const leftMs = run.freshUntilBootMs - nowBootMs;
  if (run.freshness?.kind !== 'strict' || !run.renewable || leftMs <= 0) return;
  const until = Math.floor(freshUntil(run.freshness, provenBootMs));
  if (until <= run.freshUntilBootMs) return;
  if (leftMs > run.freshness.ms / 2 && stopped(run.keeperPid)) return;
  run.freshUntilBootMs = until;
  run.keeper?.fresh(until);
}

/** What its keeper says of until when it is fresh: never more than the policy's bound from now. */
export function adoptFreshness(run: Run, keptUntilBootMs: number | undefined, nowBootMs: number): void {
  if (run.freshness?.kind !== 'strict') return;
  const kept = Math.floor(Math.min(keptUntilBootMs ?? 0, nowBootMs + run.freshness.ms));
  run.freshUntilBootMs = Math.max(run.freshUntilBootMs, kept);
}

/** The place in the ledger of the oldest run that this one stands in, or of itself. */
export function oldestSeq(run: Run): number {
  return Math.min(...around(run).map(({ releasedSeq }) => releasedSeq));
}

/** What `custody agent status` shows of a run. */
export interface RunShown {
  readonly grantId: string;
  readonly uid: number;
  readonly keeperPid: number;
  readonly ceilingInMs: number;
  readonly freshness?: Freshness;
  /** Strict: when it ends unless a beacon comes. */
  readonly staleInMs?: number;
  /** Whether a beacon would help. */
  readonly renewable: boolean;
  readonly command: readonly string[];
}

export function shown(run: Run, nowBootMs: number): RunShown {
  const { grantId, uid, keeperPid, command, freshness, renewable } = run;
  const inMs = (bootMs: number): number => Math.max(0, Math.round(bootMs - nowBootMs));
  return {
    ...{ grantId, uid, keeperPid, ceilingInMs: inMs(run.ceilingBootMs), renewable, command },
    ...(freshness === undefined ? {} : { freshness }),
    ...(freshness?.kind === 'strict' ? { staleInMs: inMs(run.freshUntilBootMs) } : {}),
  };
}
