// Owns the way from what happened to a run to the bodies of its ledger entries.
import { processRowsMax } from '@custody/core/limits';
import type { ProcRow } from '@custody/keeper/frames';
import type { KeeperProcess } from '@custody/keeper/sweep';
import type { HostBody, ProcessRow } from '@custody/wire/ledger';
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
} as const;

/** A keeper's or a sweep's row of one process. */
export function recorded({ pid, ppid, startTicks, how, name }: ProcRow): ProcessRow {
  return { pid, ppid, startTicks, how: `${how.kind}:${how.number}`, name: name.slice(0, 64) };
}

/** What the agent killed with the group and what its sweep killed besides, each process once, the keeper not among them. */
export function sweptRows(
  { keeperPid }: { readonly keeperPid: number },
  inGroup: readonly Member[],
  swept: readonly ProcRow[],
): ProcessRow[] {
  const rows = new Map<string, ProcessRow>();
  for (const row of swept) rows.set(`${row.pid}:${row.startTicks}`, recorded(row));
  for (const { pid, ppid, startTicks, name } of inGroup) {
    rows.set(`${pid}:${startTicks}`, { pid, ppid, startTicks, how: 'killed:9', name: name.slice(0, 64) });
  }
  return [...rows.values()].filter(({ pid }) => pid !== keeperPid);
}

/** The end with these processes too. Past the bound only the count goes on. */
export function withRows(end: Closing, killed: readonly ProcessRow[]): Closing {
  const rows = [...end.rows, ...killed].slice(0, processRowsMax);
  return { ...end, rows, processes: end.processes + killed.length };
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
  };
}

export function receiptBody(
  { grantId, runId, containment }: Identified,
  end: Closing,
  { claims, heardBootMs, heardAt }: Heard,
): HostBody<'receipt'> {
  const micros = (bootMs: number): number => Math.max(0, Math.round((bootMs - heardBootMs) * 1_000));
  const { survivors, processes } = end;
  return {
    ...{ grantId, runId, epoch: claims.epoch, survivors, processes, containment },
    outcome: end.cause === 'revoked' ? 'killed' : 'already_ended',
    heardAt: heardAt.toISOString(),
    ...(end.signalledBootMs === undefined ? {} : { signalledMicros: micros(end.signalledBootMs) }),
    emptyMicros: micros(end.emptyBootMs),
  };
}
