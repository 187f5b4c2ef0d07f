// Owns the open runs of this host: from release, through revocation, to the ledger entry that closes each.
import { isCanary } from '@custody/core/canary';
import { CustodyError } from '@custody/core/errors';
import { closedRunsKeptMax, keeperLagMsMax, keeperReturnMsMax } from '@custody/core/limits';
import { hits } from '@custody/core/revocation';
import type { Outsider } from '@custody/keeper/scan';
import type { SweepOptions, SweepResult } from '@custody/keeper/sweep';
import type { LedgerEntry } from '@custody/ledger/entry';
import { counter, histogram } from '@custody/telemetry/telemetry';
import { hostKinds, type HostBody } from '@custody/wire/ledger';
import type { RevocationClaims } from '@custody/wire/messages';
import { Admission, type AdmissionOptions } from './admission.ts';
import type { Escapes, Seen } from './escapes.ts';
import type { RunGroups } from './groups.ts';
import type { LogChange } from './link.ts';
import {
  earliest,
  endedBody,
  keeperOf,
  notEmptyBody,
  nothing,
  receiptBody,
  sweptRows,
  withRows,
  type Closing,
  type Ended,
} from './record.ts';
import {
  adoptFreshness,
  around,
  boundBootMs,
  oldestSeq,
  overdue,
  renewRun,
  runOnRecord,
  shown,
  type KeeperEnd,
  type Peer,
  type Run,
  type RunShown,
} from './run.ts';
import { machineTimers, type Timers } from './timers.ts';

export interface RunsOptions extends AdmissionOptions {
  readonly hostId: string;
  readonly sweep: (
    grantId: string,
    options: Required<Pick<SweepOptions, 'keeper' | 'root' | 'place'>>,
  ) => Promise<SweepResult>;
  readonly groups: RunGroups;
  readonly escapes: () => Pick<Escapes, 'watch' | 'look' | 'lookShared'>;
  /** Whether a keeper is stopped, and so keeps no ceiling. */
  readonly stopped: (pid: number) => boolean;
  /** Whether a process that may be a keeper still lives. */
  readonly alive: (pid: number) => boolean;
  /** Absent: those of this machine. */
  readonly timers?: Timers;
}

/** Between two looks at whether a keeper that is away still lives. */
const keeperLookMs = 50;

const runsStale = counter('custody.agent.stale', 'runs ended because this host was cut off');
const revokedToEmpty = histogram(
  'custody.agent.revoked_to_empty',
  'from hearing of a revocation to an empty tree',
  'ms',
);

export class Runs implements AsyncDisposable {
  readonly #options: RunsOptions;
  readonly #timers: Timers;
  readonly #runs = new Map<string, Run>();
  readonly #closing = new Set<Promise<void>>();
  /** Grants whose `ended` is in the ledger, the newest of them, and what ended them. */
  readonly #closed = new Map<string, Closing['cause']>();
  /** Until it returns, the run is already known to revocations. */
  readonly admit: Admission['admit'];
  #provenBootMs = -Infinity;
  #noneOpen: PromiseWithResolvers<void> | undefined;

  constructor(options: RunsOptions) {
    this.#options = options;
    this.#timers = options.timers ?? machineTimers;
    const admission = new Admission(options, {
      count: () => this.#runs.size,
      find: (grantId) => this.#runs.get(grantId),
      add: (run) => void this.#runs.set(run.grantId, run),
      notStarted: (grantId) => this.notStarted(grantId),
    });
    this.admit = (ask, peer) => admission.admit(ask, peer);
  }

  /** Rebuilds the open runs from the ledger, before anything else happens. Given to `Spool.open`. */
  replay(entry: LedgerEntry): void {
    if (entry.kind === 'released') {
      const body = hostKinds.released.parse(entry.body);
      this.#runs.set(
        body.grantId,
        runOnRecord(body, this.#options.hostId, around(this.#runs.get(body.parent ?? '')), entry.seq),
      );
    } else if (entry.kind === 'started') {
      const body = hostKinds.started.parse(entry.body);
      const run = this.#runs.get(body.grantId);
      if (run !== undefined)
        Object.assign(run, { started: true, root: { pid: body.pid, startTicks: body.startTicks } });
    } else if (entry.kind === 'escape') {
      const { grantId, pid, startTicks } = hostKinds.escape.parse(entry.body);
      this.#runs.get(grantId)?.escapes.add(`${pid}:${startTicks}`);
    } else if (entry.kind === 'log_changed') {
      this.#renewNoMore();
    } else if (entry.kind === 'ended') {
      const { grantId, cause } = hostKinds.ended.parse(entry.body);
      this.#runs.delete(grantId);
      this.#remember(grantId, cause);
    }
  }

  get open(): number {
    return this.#runs.size;
  }

  openRuns(): Seen[] {
    return [...this.#runs.values()].map((run) => ({ ...run, keeper: keeperOf(run) }));
  }

  recordEscape({ grantId, runId }: Seen, escape: Outsider): void {
    const { pid, ppid, startTicks, uid, name, cgroup } = escape;
    this.#record('escape', { grantId, runId, pid, ppid, startTicks, uid, name, cgroup });
  }

  /** The lowest entry that the ledger on disk must keep: that of the oldest open run, or of a run around one. */
  lowestOpenSeq(): number {
    return Math.min(...[...this.#runs.values()].map(oldestSeq));
  }

  /** The least epoch at which an open run was decided: every later entry of the log must be applied to it. */
  lowestOpenEpoch(): number {
    return Math.min(...[...this.#runs.values()].map(({ epoch }) => epoch ?? Number.POSITIVE_INFINITY));
  }

  /** Whether its end is this host's ledger's to tell: it is open, or its `ended` is written and may still be on its way. */
  readonly accountsFor = (grantId: string): boolean => this.#runs.has(grantId) || this.#closed.has(grantId);

  /** Resolves when no run is open. */
  whenNoneOpen(): Promise<void> {
    if (this.#runs.size === 0) return Promise.resolve();
    return (this.#noneOpen ??= Promise.withResolvers()).promise;
  }

  describe(): RunShown[] {
    return [...this.#runs.values()].map((run) => shown(run, this.#options.bootMs()));
  }

  /** Every revocation made before that instant has been applied here. */
  renew(provenBootMs: number): void {
    this.#provenBootMs = Math.max(this.#provenBootMs, provenBootMs);
    for (const run of this.#runs.values()) this.#renewOne(run);
  }

  /** The log was set back: what is proven from now on says nothing to the runs of before. Resolves when that is on record. */
  async logChanged({ from, to }: LogChange): Promise<number> {
    this.#renewNoMore();
    await this.#options.spool().append('log_changed', { from, to, openRuns: this.open });
    return this.open;
  }

  /** After a restart: a keeper has this long to come back for its run; then the agent empties the tree itself. */
  awaitKeepers(): void {
    for (const run of this.#runs.values())
      if (run.revoked === undefined) this.#awaitKeeper(run, keeperReturnMsMax);
    this.#options.escapes().watch();
  }

  attach(grantId: string, keeper: KeeperEnd): void {
    const run = this.#runs.get(grantId);
    if (run === undefined) throw new CustodyError('not_found', `no open run holds grant ${grantId}`);
    run.keeper = keeper;
    this.#renewOne(run);
    this.#watchBound(run);
    this.#endIfRevoked(run);
  }

  /** A keeper that lost its connection, or outlived an agent, comes back. Its uid must be the one on record. */
  resume(grantId: string, peer: Peer, keeper: KeeperEnd, freshUntilBootMs?: number): void {
    const run = this.#runs.get(grantId);
    if (run === undefined || run.uid !== peer.uid || run.keeperPid !== peer.pid) {
      throw new CustodyError(
        'not_found',
        `no open run of uid ${peer.uid} and pid ${peer.pid} holds grant ${grantId}`,
      );
    }
    adoptFreshness(run, freshUntilBootMs, this.#options.bootMs());
    this.attach(grantId, keeper);
  }

  /** What a keeper is told that comes back for a run which is not open: why it ended, where that is still known. */
  whyNotOpen(grantId: string): 'revoked' | 'ceiling' | 'agent' {
    const cause = this.#closed.get(grantId);
    return cause === 'revoked' || cause === 'ceiling' ? cause : 'agent';
  }

  started(grantId: string, pid: number, startTicks: string): void {
    const run = this.#runs.get(grantId);
    if (run === undefined) return;
    run.root = { pid, startTicks };
    if (!run.started) this.#record('started', { grantId, runId: run.runId, pid, startTicks });
    run.started = true;
    void this.#options.groups.freeKeeper(run.runId);
    if (run.revoked !== undefined && this.#options.groups.kill(run.runId))
      run.killedBootMs ??= this.#options.bootMs();
  }

  /** The keeper says the tree is empty. */
  ended(grantId: string, end: Ended): void {
    const run = this.#unended(grantId);
    if (run === undefined) return;
    // To a keeper that was away, what the sweep killed for a revocation looks like an exit.
    const swept = run.revoked !== undefined && end.cause === 'exit' ? run.sweptBootMs : undefined;
    const told = swept === undefined ? end : { ...end, cause: 'revoked' as const, signalledBootMs: swept };
    const killed = told.cause === 'revoked' ? (run.killedBootMs ?? Infinity) : Infinity;
    const signalledBootMs = earliest(told.signalledBootMs, killed);
    this.#keep(this.#finish(run, { ...told, signalledBootMs, proof: 'keeper' }));
  }

  /** The command could not be executed: no process ever held the values. */
  notStarted(grantId: string): void {
    const run = this.#unended(grantId);
    if (run === undefined) return;
    const emptyBootMs = Math.floor(this.#options.bootMs());
    this.#close(run, { ...nothing, cause: 'not_started', emptyBootMs, proof: 'keeper' });
  }

  /** The connection closed without `ended`: the keeper died, or will come back. */
  detached(grantId: string, keeper: KeeperEnd): void {
    const run = this.#unended(grantId);
    // The end of an older connection is no news of a keeper that has come back on another.
    if (run === undefined || (run.keeper !== undefined && run.keeper !== keeper)) return;
    run.keeper = undefined;
    this.#awaitKeeper(run, keeperReturnMsMax);
  }

  /** One revocation, from the link. Kills first; the record follows when the tree is empty. */
  revoke(claims: RevocationClaims, heardBootMs: number, heardAt: Date): void {
    for (const run of this.#runs.values()) {
      // What was decided at this epoch, or later, was decided knowing of it.
      if (run.revoked !== undefined || claims.epoch <= (run.epoch ?? 0) || !hits(claims.target, run))
        continue;
      run.revoked = { claims, heardBootMs, heardAt };
      this.#endIfRevoked(run);
    }
  }

  /** Whether this host holds a canary; of two agents that follow each other the second finds that of the first. */
  get canaryOpen(): boolean {
    return [...this.#runs.values()].some(({ credentials }) => isCanary(credentials));
  }

  endCanaries(): void {
    for (const run of this.#runs.values()) if (isCanary(run.credentials)) run.keeper?.end('agent', 0);
  }

  /** Waits for what is being closed. Trees go on: the next agent adopts them. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const run of this.#runs.values()) run.watch?.cancel();
    while (this.#closing.size > 0) await Promise.allSettled(this.#closing);
  }

  /** A run whose keeper has not said how it ended. */
  #unended(grantId: string): Run | undefined {
    const run = this.#runs.get(grantId);
    return run?.told === undefined ? run : undefined;
  }

  #renewOne(run: Run): void {
    const { bootMs, stopped } = this.#options;
    if (run.told === undefined) renewRun(run, this.#provenBootMs, bootMs(), stopped);
  }

  #renewNoMore(): void {
    // Epochs of the new log say nothing of when they were decided either.
    for (const run of this.#runs.values()) Object.assign(run, { renewable: false, epoch: undefined });
  }

  /** What stood inside a run that is over has nobody around it: it ends too, wherever it is. */
  #endWithin({ grantId }: Run): void {
    for (const inner of this.#runs.values()) {
      if (inner.within[0]?.grantId !== grantId || inner.told !== undefined) continue;
      if (inner.keeper !== undefined) inner.keeper.end('agent', 0);
      else if (inner.releasedSeq !== Number.POSITIVE_INFINITY) void this.#sweep(inner);
    }
  }

  #endIfRevoked(run: Run): void {
    if (run.revoked === undefined || run.told !== undefined) return;
    // No grace: the values must be out of every process as soon as the kernel can do it.
    if (run.keeper !== undefined) {
      // The keeper first: what dies next is then no exit to it. Both are one system call.
      run.keeper.end('revoked', 0);
      if (this.#options.groups.kill(run.runId)) run.killedBootMs = this.#options.bootMs();
      // A keeper that is stopped or stuck must not keep the values alive.
      run.watch?.cancel();
      run.watch = this.#timers.once(() => void this.#sweep(run), keeperLagMsMax);
    }
    if (run.keeper === undefined && run.releasedSeq !== Number.POSITIVE_INFINITY && run.started)
      this.#endAway(run);
  }

  /** Its group at once. A keeper that lives may still come back, sees to the rest, and exits as revoked. */
  #endAway(run: Run): void {
    if (!this.#options.groups.kill(run.runId)) return void this.#sweep(run);
    run.sweptBootMs ??= this.#options.bootMs();
    this.#awaitKeeper(run, keeperLagMsMax);
  }

  /** The keeper keeps the ceiling, and the freshness. Where it does not, stopped or stuck, the agent does. */
  #watchBound(run: Run): void {
    run.watch?.cancel();
    const killBootMs = boundBootMs(run) + run.graceMs;
    const leftMs = killBootMs - this.#options.bootMs();
    run.watch = this.#timers.once(
      () => {
        // A beacon may have moved it on meanwhile.
        if (this.#options.bootMs() < boundBootMs(run) + run.graceMs) return this.#watchBound(run);
        this.#options.groups.kill(run.runId);
        this.#awaitEnd(run, keeperLagMsMax);
      },
      Math.min(Math.max(leftMs, 0), 2 ** 31 - 1),
    );
  }

  /** A keeper that runs has its time to empty the tree. One that is stopped, or stopped again, has none. */
  #awaitEnd(run: Run, leftMs: number): void {
    if (leftMs <= 0 || this.#options.stopped(run.keeperPid)) return void this.#sweep(run);
    run.watch = this.#timers.once(() => this.#awaitEnd(run, leftMs - keeperLookMs), keeperLookMs);
  }

  /** A living keeper has its time to come back. One that died may not be dead yet when its connection closes. */
  #awaitKeeper(run: Run, leftMs: number): void {
    run.watch?.cancel();
    if (leftMs <= 0 || !this.#options.alive(run.keeperPid)) return this.#keeperLost(run);
    run.watch = this.#timers.once(() => this.#awaitKeeper(run, leftMs - keeperLookMs), keeperLookMs);
  }

  #keeperLost(run: Run): void {
    if (run.keeper === undefined) void this.#sweep(run);
  }

  /** The keeper saw its tree empty. What it cannot see is looked for before the record says so. */
  async #finish(run: Run, end: Closing): Promise<void> {
    run.watch?.cancel();
    run.told = end;
    // A scan costs more than a short run: exits share one. What was asked for by somebody does not wait.
    const escapes = this.#options.escapes();
    const outside = await (end.cause === 'exit' ? escapes.lookShared() : escapes.look());
    const clean = outside?.every(({ grantId }) => grantId !== run.grantId);
    if (clean === true && (await this.#options.groups.emptied(run.runId))) this.#close(run, end);
    else await this.#sweep(run);
  }

  /** Empties the tree without its keeper, and closes the run on what was found. */
  async #sweep(run: Run): Promise<void> {
    if (run.sweeping) return;
    run.sweeping = true;
    const { groups, bootMs, log } = this.#options;
    try {
      const startedBootMs = bootMs();
      run.sweptBootMs ??= startedBootMs;
      // A keeper that is still there did not keep the bound; one that has gone says nothing of why.
      const cause = (run.keeper === undefined ? undefined : overdue(run, startedBootMs)) ?? 'lost';
      const inGroup = groups.membersOf(run.runId);
      groups.killAll(run.runId);
      const found = await this.#options.sweep(run.grantId, {
        keeper: keeperOf(run),
        root: run.root,
        place: run.place,
      });
      if (!this.#runs.has(run.grantId)) return;
      if (found.emptyBootMs === undefined) throw new Error(found.complaints[0] ?? 'processes are left');
      if (!(await groups.emptied(run.runId))) throw new Error('processes are left in its group');
      const killed = sweptRows(run, inGroup, found.processes, startedBootMs);
      log.warn({ grantId: run.grantId, killed: killed.length }, 'emptied a tree without its keeper');
      const { told } = run;
      const emptyBootMs = Math.max(found.emptyBootMs, told?.emptyBootMs ?? 0);
      if (told !== undefined) return this.#close(run, withRows({ ...told, emptyBootMs }, killed));
      this.#close(
        run,
        withRows(
          {
            ...nothing,
            cause: run.revoked === undefined ? cause : 'revoked',
            signalledBootMs: startedBootMs,
            emptyBootMs,
            survivors: killed.length,
            proof: 'sweep',
          },
          killed,
        ),
      );
    } catch (error) {
      this.#options.log.error(
        { err: error, grantId: run.grantId },
        'a tree could not be emptied; trying again',
      );
      if (run.revoked !== undefined && !run.complained) {
        run.complained = true;
        this.#record('receipt', notEmptyBody(run, error, run.revoked));
      }
      run.watch = this.#timers.once(() => void this.#sweep(run), keeperReturnMsMax);
    } finally {
      run.sweeping = false;
    }
  }

  #close(run: Run, end: Closing): void {
    if (!this.#runs.delete(run.grantId)) return;
    run.watch?.cancel();
    this.#options.groups.drop(run.runId);
    this.#remember(run.grantId, end.cause);
    this.#record('ended', endedBody(run, end));
    if (end.cause === 'stale') runsStale.add(1);
    this.#endWithin(run);
    const { revoked } = run;
    if (revoked !== undefined) {
      revokedToEmpty.record(end.emptyBootMs - revoked.heardBootMs);
      this.#record('receipt', receiptBody(run, end, revoked));
    }
    if (this.#runs.size === 0) this.#noneOpen?.resolve();
  }

  #record<Kind extends 'started' | 'ended' | 'receipt' | 'escape'>(kind: Kind, body: HostBody<Kind>): void {
    const written = this.#options.spool().append(kind, body);
    this.#keep(
      written.then(
        () => {},
        (error: unknown) => {
          if (kind === 'ended') this.#closed.delete(body.grantId);
          this.#options.log.error({ err: error, kind }, 'an entry could not be put on record');
        },
      ),
    );
  }

  #remember(grantId: string, cause: Closing['cause']): void {
    this.#closed.set(grantId, cause);
    for (const oldest of this.#closed.keys()) {
      if (this.#closed.size <= closedRunsKeptMax) break;
      this.#closed.delete(oldest);
    }
  }

  /** Work that the end of this object waits for. */
  #keep(work: Promise<void>): void {
    const kept = work.finally(() => this.#closing.delete(kept));
    this.#closing.add(kept);
  }
}
