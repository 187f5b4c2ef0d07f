// Owns the rounds in which every host proves its kill: one revocation of all canaries, judged by the receipts. A reconciler.
import { canaryPath } from '@custody/core/canary';
import {
  canaryJudgedAfterMs,
  canaryNamesMax,
  canaryPauseMsMax,
  reconcileIntervalMs,
} from '@custody/core/limits';
import * as store from '@custody/store/canaries';
import type { Database } from '@custody/store/database';
import type { RevocationView } from '@custody/wire/http';
import type { ControlPlaneBody } from '@custody/wire/ledger';
import type { Authority } from './authority.ts';
import type { Log } from './log.ts';
import { Reconciler } from './reconciler.ts';
import type { Revocations } from './revocations.ts';

export interface CanariesOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly revocations: Pick<Revocations, 'get' | 'round'>;
  /** Between two rounds; undefined: only those that operators make. */
  readonly intervalMs: number | undefined;
  /** Whether there is a bus to tell hosts over. */
  readonly joined: () => boolean;
  readonly now: () => Date;
  readonly log: Log;
}

/** One entry of the log serves the whole fleet. A round that an operator makes with `custody revoke` is judged like any other. */
export function proveKills(options: CanariesOptions): Reconciler {
  return new Reconciler(
    () => tend(options),
    reconcileIntervalMs,
    (error) => options.log.warn({ err: error }, 'canaries could not be tended; the timer tries again'),
  );
}

async function tend(options: CanariesOptions): Promise<void> {
  const { db, revocations, intervalMs, joined, now } = options;
  const round = await store.lastRound(db);
  if (round !== undefined && !round.judged) await judge(options, round);
  if (intervalMs === undefined || !joined()) return;
  const dueBefore = new Date(now().getTime() - intervalMs);
  if (round !== undefined && round.createdAt > dueBefore) return;
  if (await store.canaryStands(db)) await revocations.round({ kind: 'prefix', path: canaryPath }, dueBefore);
}

async function judge(
  { db, authority, revocations, now, log }: CanariesOptions,
  round: store.Round,
): Promise<void> {
  const view = await revocations.get(round.epoch, 0);
  const at = now();
  if (!view.proven && at.getTime() - round.createdAt.getTime() < canaryJudgedAfterMs) return;
  // Who enrolled, or lost its canary to another round, a moment before could not have one yet.
  const since = new Date(round.createdAt.getTime() - canaryPauseMsMax);
  const verdict = verdictOf(view, await store.hostsWithout(db, round.epoch, since));
  const recorded = await store.recordVerdict(
    db,
    authority.author,
    round.epoch,
    authority.entry('canary_judged', at, verdict),
  );
  if (!recorded) return;
  const { failed, absent, ...counts } = verdict;
  if (failed.length + absent.length > 0) log.error(verdict, 'hosts did not prove that they can kill');
  else log.info(counts, 'every host proved that it can kill');
}

/** A canary that ended by itself at that instant proves nothing, and accuses nobody. */
function verdictOf(view: RevocationView, without: readonly string[]): ControlPlaneBody<'canary_judged'> {
  const { epoch, counts, receipts } = view;
  const failed = receipts.filter(({ proven, state }) => !proven || state === 'late');
  const micros = receipts.flatMap(({ emptyMicros }) => emptyMicros ?? []);
  return {
    epoch,
    expected: counts.expected,
    killed: counts.killed,
    slowestMicros: micros.reduce((a, b) => Math.max(a, b), 0),
    failedCount: counts.expected - counts.killed - counts.ended - counts.never_released,
    failed: failed.slice(0, canaryNamesMax).map(({ host, state }) => ({ host, state })),
    absentCount: without.length,
    absent: without.slice(0, canaryNamesMax),
  };
}
