// Owns what keeps a host fresh: which statements about the revocation log count, from when, and until when a run may go on.
import {
  anchorIntervalMs,
  anchorMsMax,
  beaconIntervalMs,
  beaconSkewMsMax,
  graceMsDefault,
  keeperLagMsMax,
} from './limits.ts';
import type { Freshness } from './policy.ts';

/** Signed by the control plane: every revocation made before `atMs`, by its database's clock, has at most that epoch. */
export interface HeadStatement {
  readonly log: string;
  readonly epoch: number;
  readonly atMs: number;
}

/** What one host knows. Every instant named boot is on its boot-time clock; nothing here is its wall clock. */
export interface Standing {
  /** A statement that answered this host's own question: it was made after that was asked. */
  readonly anchor: { readonly atMs: number; readonly askedBootMs: number } | undefined;
  /** Every revocation that was made before this instant has been applied here. */
  readonly provenBootMs: number | undefined;
}

/** Of a host that has just started: it has heard nothing. */
export const unproven: Standing = { anchor: undefined, provenBootMs: undefined };

/** What a beacon is to a host. `docs/spec/bus.md` has the table. */
export type Verdict = 'fresh' | 'old' | 'behind' | 'other_log' | 'unanchored' | 'future';

/** The log that a host follows, and up to where it has applied it. */
export interface Followed {
  readonly log: string | undefined;
  readonly cursor: number;
}

/** Judges a beacon that was heard at that instant. Its own `at` says how old it is, however long it was under way. */
export function hearBeacon(
  known: Standing,
  beacon: HeadStatement,
  { log, cursor }: Followed,
  heardBootMs: number,
): { readonly verdict: Verdict; readonly standing: Standing } {
  const verdict = (word: Verdict) => ({ verdict: word, standing: known });
  const { anchor, provenBootMs = -Infinity } = known;
  if (beacon.log !== log) return verdict('other_log');
  if (beacon.epoch > cursor) return verdict('behind');
  if (anchor === undefined || heardBootMs - anchor.askedBootMs > anchorMsMax) return verdict('unanchored');
  // The anchor was stated after it was asked for: so this is never later than the beacon's true instant.
  const madeBootMs = anchor.askedBootMs + (beacon.atMs - anchor.atMs);
  if (madeBootMs > heardBootMs + beaconSkewMsMax) return verdict('future');
  if (madeBootMs <= provenBootMs) return verdict('old');
  return { verdict: 'fresh', standing: { anchor, provenBootMs: Math.min(madeBootMs, heardBootMs) } };
}

/** Takes the proof that answered a question asked at that instant. The host has applied everything up to its epoch. */
export function hearProof(known: Standing, proof: HeadStatement, askedBootMs: number): Standing {
  const { provenBootMs = -Infinity } = known;
  return {
    anchor: { atMs: proof.atMs, askedBootMs },
    provenBootMs: Math.max(provenBootMs, askedBootMs),
  };
}

/** Whether the log was set back, by a proof that answered a question with that cursor: no answer could be older. */
export function isSetBack({ log, cursor }: Followed, proof: HeadStatement): boolean {
  return (log !== undefined && proof.log !== log) || proof.epoch < cursor;
}

/**
 * Whether an entry is of the log that a host follows. What was made before the log was begun anew, `since`, is of its
 * former lives; what is lost of those cannot stand for what came after. A log that never was names none of its entries.
 */
export function isOfLog(
  followed: { readonly log: string | undefined; readonly since: number | undefined },
  entry: { readonly epoch: number; readonly log?: string | undefined },
): boolean {
  if (followed.log === undefined) return true;
  if (followed.since === undefined) return entry.log === undefined;
  return entry.epoch <= followed.since || entry.log === followed.log;
}

/** Whether a host should ask by itself: too long without a beacon that counted, or without an anchor. */
export function mustAsk({ anchor, provenBootMs }: Standing, nowBootMs: number): boolean {
  if (anchor === undefined || provenBootMs === undefined) return true;
  return (
    nowBootMs - provenBootMs > 2 * beaconIntervalMs || nowBootMs - anchor.askedBootMs >= anchorIntervalMs
  );
}

/** Until when a grant may be held on what is proven; for `best_effort` as long as its ceiling lets it. */
export function freshUntil(freshness: Freshness, provenBootMs: number): number {
  return freshness.kind === 'strict' ? provenBootMs + freshness.ms : Infinity;
}

/** What a grant's end needs beyond its instant: TERM, grace, and the agent behind a keeper that does not act. */
export const endSlackMs = graceMsDefault + keeperLagMsMax;

export interface BoundedGrant {
  readonly grantedAt: Date;
  readonly ceilingMs: number;
  readonly freshness: Freshness;
}

/** When the ceiling of a grant has passed for certain, by the control plane's clock. */
export function ceilingBound({ grantedAt, ceilingMs }: BoundedGrant): Date {
  return new Date(grantedAt.getTime() + ceilingMs + endSlackMs);
}

/**
 * By when a run that was revoked at `revokedAt` is over for certain, though its host be cut off: what is proven there
 * without that revocation is older than it.
 */
export function revokedBound(grant: BoundedGrant, revokedAt: Date): Date {
  const ceiling = ceilingBound(grant);
  const stale = revokedAt.getTime() + freshUntil(grant.freshness, 0) + endSlackMs;
  return stale < ceiling.getTime() ? new Date(stale) : ceiling;
}
