// Owns the way from what happened to a run to the bodies of its ledger entries.
import { processRowsMax } from '@custody/core/limits';
import type { ProcRow } from '@custody/keeper/frames';
import type { KeeperProcess } from '@custody/keeper/sweep';
import { unlistedCounts, type HostBody, type ProcessRow, type UnlistedCounts } from '@custody/wire/ledger';
import type { GrantClaims, RevocationClaims } from '@custody/wire/messages';
import type { Ask } from './delivery.ts';
import type { Member } from './process.ts';

/** How a tree ended, by its keeper's word. */
export interface Ended {
  readonly cause: 'exit' | 'ceiling' | 'stale' | 'revoked' | 'agent';
  readonly rootStatus: string | undefined;
  readonly signalledBootMs: number | undefined;
  readonly emptyBootMs: number;
  readonly survivors: number;
  readonly processes: number;
  readonly rows: readonly ProcessRow[];
  /** Those without a row. */
  readonly unlisted: UnlistedCounts;
}

/** The same, also where the agent had to find out by itself. */
export interface Closing extends Omit<Ended, 'cause'> {
  readonly cause: HostBody<'ended'>['cause'];
  readonly proof: 'keeper' | 'sweep';
}

/** A revocation that hit a run, and when this host heard of it. */
export interface Heard {
  readonly claims: RevocationClaims;
  readonly heardBootMs: number;
  readonly heardAt: Date;
}

interface Identified {
  readonly grantId: string;
  readonly runId: string;
  readonly containment: GrantClaims['containment'];
}

/** No process was found. */
export const nothing = {
  rootStatus: undefined,
  signalledBootMs: undefined,
  survivors: 0,
  processes: 0,
  rows: [],
  unlisted: {},
} as const;

/** A keeper's or a sweep's row of one process. */
export function recorded({ pid, ppid, startTicks, how, name, endedBootUs, survivor }: ProcRow): ProcessRow {
  return {
    ...{ pid, ppid, startTicks, how: `${how.kind}:${how.number}`, name: name.slice(0, 64) },
    ...(endedBootUs === undefined ? {} : { endedBootMs: Math.floor(endedBootUs / 1_000) }),
    ...(survivor ? { survivor } : {}),
  };
}

/** What the agent killed with the group and what its sweep killed besides, each process once, the keeper not among them. */
export function sweptRows(
  { keeperPid }: { readonly keeperPid: number },
  inGroup: readonly Member[],
  swept: readonly ProcRow[],
  killedBootMs: number,
): ProcessRow[] {
  const rows = new Map<string, ProcessRow>();
  for (const row of swept) rows.set(`${row.pid}:${row.startTicks}`, recorded(row));
  for (const { pid, ppid, startTicks, name } of inGroup) {
    const endedBootMs = Math.floor(killedBootMs);
    const row = { pid, ppid, startTicks, how: 'killed:9', name: name.slice(0, 64), endedBootMs };
    rows.set(`${pid}:${startTicks}`, row);
  }
  return [...rows.values()].filter(({ pid }) => pid !== keeperPid);
}

/** The end with these processes too. Past the bound only counts go on: those first that ended by themselves. */
export function withRows(end: Closing, killed: readonly ProcessRow[]): Closing {
  const rows = [...end.rows, ...killed];
  const excess = Math.max(0, rows.length - processRowsMax);
  const byThemselves = rows.filter(({ how, survivor }) => /^(?:exit|signal):/.test(how) && survivor !== true);
  const dropped = new Set([...byThemselves, ...killed.toReversed()].slice(0, excess));
  return {
    ...end,
    rows: rows.filter((row) => !dropped.has(row)),
    unlisted: [...dropped].reduce(counted, end.unlisted),
    processes: end.processes + killed.length,
  };
}

function counted(counts: UnlistedCounts, { how }: ProcessRow): UnlistedCounts {
  const kind = unlistedCounts.keyof().parse(how.split(':')[0]);
  return { ...counts, [kind]: (counts[kind] ?? 0) + 1 };
}

export function earliest(keeperBootMs: number | undefined, agentBootMs: number): number | undefined {
  const first = Math.min(keeperBootMs ?? Infinity, agentBootMs);
  return first === Infinity ? undefined : first;
}

export function keeperOf(run: {
  readonly keeperPid: number;
  readonly keeperStartTicks: string | undefined;
}): KeeperProcess | undefined {
  const { keeperPid: pid, keeperStartTicks: startTicks } = run;
  return startTicks === undefined ? undefined : { pid, startTicks };
}

export function releasedBody(
  run: Identified & {
    readonly ceilingBootMs: number;
    readonly keeperStartTicks: string | undefined;
    readonly place: string | undefined;
  },
  claims: GrantClaims,
  ask: Ask,
  { uid, pid, subject }: { uid: number; pid: number; subject: string },
): HostBody<'released'> {
  const { credentials, ceilingMs, freshness, policyRevision, policyIds, containment, parent } = claims;
  return {
    ...{ grantId: run.grantId, runId: run.runId, uid, pid, subject },
    command: [...ask.command],
    cwd: ask.cwd,
    credentials: [...credentials],
    ...{
      ceilingMs,
      ceilingBootMs: run.ceilingBootMs,
      freshness,
      policyRevision,
      policyIds: [...policyIds],
      containment,
    },
    ...(run.keeperStartTicks === undefined ? {} : { startTicks: run.keeperStartTicks }),
    ...(parent === undefined ? {} : { parent }),
    epoch: claims.epoch,
    ...(ask.reason === undefined ? {} : { reason: ask.reason }),
    ...(run.place === undefined ? {} : { place: run.place }),
  };
}

export function endedBody(
  { grantId, runId, containment, freshUntilBootMs }: Identified & { readonly freshUntilBootMs: number },
  end: Closing,
): HostBody<'ended'> {
  const { cause, rootStatus, survivors, processes, proof } = end;
  return {
    ...{ grantId, runId, cause, survivors, processes, proof, containment },
    ...(cause === 'stale' && freshUntilBootMs !== Infinity ? { freshUntilBootMs } : {}),
    ...(rootStatus === undefined ? {} : { rootStatus }),
    emptyBootMs: Math.floor(end.emptyBootMs),
    rows: [...end.rows],
    ...(Object.keys(end.unlisted).length === 0 ? {} : { unlisted: end.unlisted }),
  };
}

interface Watched extends Identified {
  readonly escapes: ReadonlySet<string>;
}

export function receiptBody(
  { grantId, runId, containment, escapes }: Watched,
  end: Closing,
  { claims, heardBootMs, heardAt }: Heard,
): HostBody<'receipt'> {
  const micros = (bootMs: number): number => Math.max(0, Math.round((bootMs - heardBootMs) * 1_000));
  const { survivors, processes } = end;
  return {
    ...{ grantId, runId, epoch: claims.epoch, survivors, processes, escapes: escapes.size, containment },
    outcome: end.cause === 'revoked' ? 'killed' : 'already_ended',
    heardAt: heardAt.toISOString(),
    ...(end.signalledBootMs === undefined ? {} : { signalledMicros: micros(end.signalledBootMs) }),
    emptyMicros: micros(end.emptyBootMs),
  };
}

/** Not a final word: what stands in the way of one. */
export function notEmptyBody(
  { grantId, runId, containment, escapes }: Watched,
  error: unknown,
  { claims, heardAt }: Heard,
): HostBody<'receipt'> {
  return {
    ...{ grantId, runId, epoch: claims.epoch, outcome: 'not_empty', heardAt: heardAt.toISOString() },
    ...{ survivors: 0, processes: 0, escapes: escapes.size, containment },
    why: (error instanceof Error ? error.message : 'unknown').slice(0, 1_024),
  };
}
