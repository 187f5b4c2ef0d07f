// Owns the way of a run in: what is asked, what is put on record, and only then the values.
import { localUser } from '@custody/core/cedar';
import { CustodyError } from '@custody/core/errors';
import { freshUntil } from '@custody/core/freshness';
import { decideCeiling } from '@custody/core/grant';
import { refusalRecordsMax, runsPerHostMax } from '@custody/core/limits';
import type { Freshness } from '@custody/core/policy';
import type { SealingKey } from '@custody/crypto/keys';
import { counter, traced } from '@custody/telemetry/telemetry';
import { failureOf, type GrantClaims, type GrantRequest } from '@custody/wire/messages';
import type { Ask } from './delivery.ts';
import { cutOffMeanwhile, denyByCopy, revokedMeanwhile } from './denial.ts';
import type { Escapes } from './escapes.ts';
import type { RunGroups } from './groups.ts';
import type { Granted, Link } from './link.ts';
import type { Log } from './log.ts';
import type { Manifests } from './manifests.ts';
import { openValues } from './opening.ts';
import { releasedBody } from './record.ts';
import { releaseOf, type Release } from './release.ts';
import { around, overdue, runGranted, type Peer, type Run } from './run.ts';
import type { Spool } from './spool.ts';

export interface AdmissionOptions {
  readonly hostName: string;
  /** Why this host takes no run any more; undefined while it does. */
  readonly refusal: () => CustodyError | undefined;
  readonly sealingKey: SealingKey;
  readonly link: () => Pick<
    Link,
    'policy' | 'refreshPolicy' | 'whenReady' | 'requestGrant' | 'standing' | 'prove'
  >;
  readonly spool: () => Pick<Spool, 'append'>;
  readonly groups: Pick<RunGroups, 'hold' | 'drop'>;
  readonly escapes: () => Pick<Escapes, 'watch'>;
  readonly manifests: Pick<Manifests, 'granted'>;
  /** Whether that process is the keeper of this host's canary. */
  readonly isCanaryKeeper: (pid: number) => boolean;
  readonly bootMs: () => number;
  readonly newId: (prefix: string) => string;
  readonly log: Log;
}

/** The open runs, as far as admission touches them. */
export interface Book {
  readonly count: () => number;
  readonly find: (grantId: string) => Run | undefined;
  readonly add: (run: Run) => void;
  readonly notStarted: (grantId: string) => void;
}

const grantsReleased = counter('custody.agent.grants', 'grants released to a tree');
const runsRefused = counter('custody.agent.refusals', 'runs refused, by code');

export class Admission {
  readonly #options: AdmissionOptions;
  readonly #book: Book;
  #refusalsWaiting = 0;

  constructor(options: AdmissionOptions, book: Book) {
    this.#options = options;
    this.#book = book;
  }

  /**
   * Decides, asks, records, and only then gives the values (invariant 2). Throws the refusal to show.
   * Until it returns, the run is already known to revocations.
   */
  async admit(ask: Ask, peer: Peer): Promise<Release> {
    const parent = ask.traceparent === undefined ? undefined : { traceparent: ask.traceparent };
    return traced('agent.admit', { parent, attributes: { 'custody.uid': peer.uid } }, async () => {
      try {
        return await this.#admit(ask, peer);
      } catch (error) {
        runsRefused.add(1, { code: error instanceof CustodyError ? error.code : 'internal' });
        this.#recordRefusal(ask, peer, error);
        throw error;
      }
    });
  }

  async #admit(ask: Ask, peer: Peer): Promise<Release> {
    const { link: linkOf, spool, hostName, bootMs, newId } = this.#options;
    const link = linkOf();
    const refusal = this.#options.refusal();
    if (refusal !== undefined) throw refusal;
    if (this.#book.count() >= runsPerHostMax) {
      throw new CustodyError(
        'agent_unavailable',
        `${this.#book.count()} runs are open on this host, the most it takes`,
      );
    }
    const isCanary = this.#options.isCanaryKeeper(peer.pid);
    await denyByCopy(hostName, ask, { uid: peer.uid, isCanary }, link);
    await link.whenReady();
    const parent = this.#parentOf(ask, peer);
    const askedBootMs = bootMs();
    const runId = newId('r');
    const held = this.#hold(ask, peer, runId);
    const containment = await held.containment;
    const granted = await this.#request(runId, link, {
      version: 1,
      requestId: newId('q'),
      runId,
      uid: peer.uid,
      gid: peer.gid,
      pid: peer.pid,
      command: [...ask.command],
      cwd: ask.cwd,
      ...(ask.reason === undefined ? {} : { reason: ask.reason }),
      ...(ask.ttlMs === undefined ? {} : { ttlMs: ask.ttlMs }),
      credentials: [...ask.wanted],
      containment,
      ...(ask.onExit === undefined ? {} : { onExit: ask.onExit }),
      ...(parent === undefined ? {} : { parent }),
    });
    const { claims } = granted;
    // Known to revocations from here on, before the values are opened.
    const run = this.#register(ask, peer, claims, askedBootMs, parent?.remainingMs);
    try {
      const since = await link.standing(run, claims.epoch);
      if (since !== undefined || this.#isRevoked(run)) throw revokedMeanwhile(since);
      if ((await held.made) !== claims.containment) {
        throw new CustodyError('agent_unavailable', 'the group of this run could not be made', {
          next: 'nothing was released; try again',
        });
      }
      // The outer run may have ended while this one was asked for.
      this.#parentOf(ask, peer);
      await this.#freshen(run, claims.freshness, link);
      const values = openValues(this.#options.sealingKey, granted.sealed, claims, ask);
      const wipe = (): void => values.forEach(({ value }) => value.fill(0));
      const subject = localUser(hostName, peer.uid);
      run.releasedSeq = await spool().append(
        'released',
        releasedBody(run, claims, ask, { ...peer, subject }),
      );
      const stale = overdue(run, bootMs()) === 'stale';
      if (stale || this.#isRevoked(run)) {
        wipe();
        throw stale ? cutOffMeanwhile() : revokedMeanwhile(undefined);
      }
      grantsReleased.add(1);
      this.#options.escapes().watch();
      const notes = [...granted.notes, ...this.#options.manifests.granted(peer.uid, ask.manifest)];
      return releaseOf(run, ask, claims.onExit, values, notes, wipe);
    } catch (error) {
      // The control plane has a grant here that nobody holds: the record says so, to a revocation too.
      this.#book.notStarted(run.grantId);
      throw error;
    }
  }

  /**
   * The keeper stands in the run's group before anything is released: what it starts was never outside. Where
   * no group can be made, the keeper's own mechanism holds the run, and the record says so. Where it is sure
   * to be made, the control plane is asked meanwhile: a move can take longer than the answer.
   */
  #hold(ask: Ask, peer: Peer, runId: string) {
    const outer = ask.parent === undefined ? undefined : this.#book.find(ask.parent)?.runId;
    const { sure, done } = this.#options.groups.hold(runId, peer, outer);
    const made = done.then((refusal) => {
      if (refusal !== undefined) this.#options.log.debug({ runId, refusal }, 'no cgroup for a run');
      return refusal === undefined ? ('cgroup' as const) : ask.containment;
    });
    return { containment: sure ? ('cgroup' as const) : made, made };
  }

  async #request(runId: string, link: Pick<Link, 'requestGrant'>, request: GrantRequest): Promise<Granted> {
    try {
      return await link.requestGrant(request);
    } catch (error) {
      this.#options.groups.drop(runId);
      throw error;
    }
  }

  /** Read through a method: a revocation may have come during an await. */
  #isRevoked(run: Run): boolean {
    return run.revoked !== undefined;
  }

  #parentOf(ask: Ask, peer: Peer): { grantId: string; remainingMs: number } | undefined {
    if (ask.parent === undefined) return undefined;
    const parent = this.#book.find(ask.parent);
    if (parent === undefined || parent.uid !== peer.uid || parent.revoked !== undefined) {
      throw new CustodyError(
        'run_unacceptable',
        `the grant around this run, ${ask.parent}, is not open here`,
        {
          next: 'a run inside a run needs the outer one to be alive; unset CUSTODY_GRANT if there is none',
        },
      );
    }
    return {
      grantId: parent.grantId,
      remainingMs: Math.max(0, Math.floor(parent.ceilingBootMs - this.#options.bootMs())),
    };
  }

  #register(
    ask: Ask,
    peer: Peer,
    claims: GrantClaims,
    askedBootMs: number,
    parentMs: number | undefined,
  ): Run {
    const { ceilingMs } = decideCeiling({ policyMs: claims.ceilingMs, requestMs: ask.ttlMs, parentMs });
    const within = around(this.#book.find(claims.parent ?? ''));
    const run = runGranted(claims, ask, peer, Math.floor(askedBootMs + ceilingMs), within);
    this.#book.add(run);
    return run;
  }

  /** Until when the run is fresh, by a proof that leaves it half of its bound at the least. */
  async #freshen(run: Run, freshness: Freshness, link: Pick<Link, 'prove'>): Promise<void> {
    if (freshness.kind === 'best_effort') return;
    const provenBootMs = await link.prove(this.#options.bootMs() - freshness.ms / 2);
    run.freshUntilBootMs = Math.floor(freshUntil(freshness, provenBootMs));
  }

  #recordRefusal(ask: Ask, peer: Peer, error: unknown): void {
    if (this.#refusalsWaiting >= refusalRecordsMax) return;
    this.#refusalsWaiting += 1;
    const command = ask.command.join(' ').slice(0, 1_024);
    this.#options
      .spool()
      .append('refused', { uid: peer.uid, pid: peer.pid, command, error: failureOf(error) })
      .catch((err: unknown) => this.#options.log.error({ err }, 'a refusal could not be put on record'))
      .finally(() => (this.#refusalsWaiting -= 1));
  }
}
