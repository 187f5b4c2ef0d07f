// Owns how long a grant may last: the least of what policy, request and parent allow.
import { formatDuration } from './duration.ts';
import { ttlMsMax } from './limits.ts';

export interface CeilingRequest {
  /** From the policies that permit, most restrictive already taken. */
  readonly policyMs: number;
  /** `--ttl`; absent: as long as policy allows. */
  readonly requestMs: number | undefined;
  /** What is left of the grant this run stands in. */
  readonly parentMs: number | undefined;
}

export interface CeilingDecision {
  readonly ceilingMs: number;
  /** A line for the person who asked for more than was given. */
  readonly note: string | undefined;
}

/** Invariant 5: a grant never outlives min(policy, request, parent grant). */
export function decideCeiling(asked: CeilingRequest): CeilingDecision {
  const bounds: readonly (readonly [number, string])[] = [
    [asked.policyMs, 'the policy allows'],
    [asked.parentMs ?? Number.POSITIVE_INFINITY, 'the parent grant leaves'],
    [ttlMsMax, 'any grant may last'],
  ];
  const [tightestMs, who] = bounds.reduce((least, bound) => (bound[0] < least[0] ? bound : least));
  const wantedMs = asked.requestMs ?? tightestMs;
  if (wantedMs <= tightestMs) return { ceilingMs: wantedMs, note: undefined };
  return {
    ceilingMs: tightestMs,
    note: `ttl ${formatDuration(wantedMs)} is more than ${who}: the ceiling is ${formatDuration(tightestMs)}`,
  };
}
