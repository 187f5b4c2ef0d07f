// Owns the decision on a run: policy, ceiling, values sealed to the host, and the record of it.
import { createHash } from 'node:crypto';
import { isCanary, isReserved, reservedDenial } from '@custody/core/canary';
import { deniedByPolicy, deniedDelivery, localUser } from '@custody/core/cedar';
import { CustodyError } from '@custody/core/errors';
import { ceilingBound, endSlackMs } from '@custody/core/freshness';
import { decideCeiling } from '@custody/core/grant';
import { canaryTtlMs, ceilingMsDefault, graceMsDefault } from '@custody/core/limits';
import {
  decideOnExit,
  freshnessDefault,
  missingContainment,
  stricterOnExit,
  unionOf,
  type Containment,
  type Freshness,
  type OnExit,
} from '@custody/core/policy';
import { encodeFields } from '@custody/crypto/payload';
import { sealTo } from '@custody/crypto/seal';
import type { Database } from '@custody/store/database';
import * as store from '@custody/store/grants';
import type { HostRow } from '@custody/store/hosts';
import { counter, traced } from '@custody/telemetry/telemetry';
import { hostKinds } from '@custody/wire/ledger';
import { failureOf, type GrantAnswer, type GrantClaims, type GrantRequest } from '@custody/wire/messages';
import type { GrantView, ReplyOf } from '@custody/wire/http';
import type { Held, Wanted } from '@custody/wire/schema';
import type { Authority } from './authority.ts';
import type { Policies } from './policies.ts';
import type { Secrets } from './secrets.ts';

export interface GrantsOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly policies: Policies;
  readonly secrets: Secrets;
  readonly now: () => Date;
  readonly newId: (prefix: string) => string;
}

const grantsIssued = counter('custody.grants', 'grants issued');
const grantsDenied = counter('custody.denials', 'grant requests refused, by code');

/** Which are listed: of all hosts' canaries none, unless they are asked for. */
export interface GrantsListed {
  readonly active?: boolean | undefined;
  readonly canaries?: boolean | undefined;
}

interface Obliged {
  readonly ceilingMs: number;
  readonly freshness: Freshness;
  readonly containment: readonly Containment[];
  readonly onExit: OnExit | undefined;
  readonly policyIds: readonly string[];
}

/** Its host's agent let nobody but its own keeper ask for it, and it opens nothing. */
const canaryObliged: Obliged = {
  ceilingMs: canaryTtlMs,
  freshness: freshnessDefault,
  containment: [],
  onExit: undefined,
  policyIds: ['canary'],
};

export class Grants {
  readonly #options: GrantsOptions;

  constructor(options: GrantsOptions) {
    this.#options = options;
  }

  /** Decides a host's request. Throws the refusal, after putting it on record. */
  async decide(host: HostRow, request: GrantRequest): Promise<Extract<GrantAnswer, { ok: true }>> {
    const { db, authority, now } = this.#options;
    const subject = localUser(host.name, request.uid);
    try {
      const answer = await this.#decide(host, request, subject);
      grantsIssued.add(1);
      return answer;
    } catch (error) {
      if (!(error instanceof CustodyError)) throw error;
      grantsDenied.add(1, { code: error.code });
      const command = request.command.join(' ').slice(0, 1_024);
      const body = { hostId: host.id, subject, command, error: failureOf(error) };
      await store.recordDenial(db, authority.author, authority.entry('denied', now(), body));
      throw error;
    }
  }

  async list({ active: activeOnly = false, canaries = false }: GrantsListed): Promise<GrantView[]> {
    const now = this.#options.now();
    const rows = await store.listGrants(
      this.#options.db,
      activeOnly ? { now, slackMs: endSlackMs } : undefined,
      canaries,
    );
    return rows.map((row) => grantView(row, now));
  }

  async get(grantId: string): Promise<ReplyOf<'grant.get'>> {
    const row = await this.story(grantId);
    return { ...grantView(row, this.#options.now()), jws: row.jws };
  }

  async story(grantId: string): Promise<store.GrantStory> {
    const row = await store.grantStory(this.#options.db, grantId);
    if (row !== undefined) return row;
    throw new CustodyError('not_found', `there is no grant ${grantId}`, {
      next: 'custody grant list shows them',
    });
  }

  countActive(): Promise<number> {
    return store.countActiveGrants(this.#options.db, this.#options.now(), endSlackMs);
  }

  async #decide(
    host: HostRow,
    request: GrantRequest,
    subject: string,
  ): Promise<Extract<GrantAnswer, { ok: true }>> {
    const { db, authority, now, newId, policies } = this.#options;
    const { revision, engine } = await policies.inForce();
    const obliged = this.#obligations(host, request, subject, revision, engine);
    requireContainment(obliged, request.containment, revision);
    const parentMs =
      request.parent === undefined ? undefined : await this.#parentMs(host, request, request.parent);
    const { ceilingMs, note } = decideCeiling({
      policyMs: obliged.ceilingMs,
      requestMs: request.ttlMs,
      parentMs,
    });
    const { onExit, note: exitNote } = decideOnExit(obliged.onExit, request.onExit);
    const { credentials, sealed } = await this.#collect(host, request);
    const sealedSha256 = createHash('sha256').update(sealed).digest('hex');
    const grantId = newId('g');
    const grantedAt = now();
    const { runId, requestId, containment, uid, pid, command, cwd, reason } = request;
    const asked = { hostId: host.id, subject, secrets: credentials, parentGrant: request.parent?.grantId };
    const grant = await traced('store.issue_grant', { attributes: { 'db.system.name': 'postgresql' } }, () =>
      store.issueGrant(db, authority.author, asked, async (epoch) => {
        const claims: GrantClaims = {
          grantId,
          requestId,
          runId,
          hostId: host.id,
          subject,
          credentials,
          ceilingMs,
          graceMs: graceMsDefault,
          freshness: obliged.freshness,
          policyRevision: revision,
          policyIds: [...obliged.policyIds],
          containment,
          ...(request.parent === undefined ? {} : { parent: request.parent.grantId }),
          ...(onExit === 'kill' ? {} : { onExit }),
          epoch,
          sealedSha256,
          grantedAt: grantedAt.toISOString(),
        };
        const { policyIds, freshness } = claims;
        const record = {
          grantId,
          runId,
          hostId: host.id,
          subject,
          credentials,
          ceilingMs,
          policyRevision: revision,
          policyIds,
          epoch,
        };
        return {
          grant: {
            ...{ id: grantId, runId, hostId: host.id, uid, pid, subject, command, cwd, reason, credentials },
            ...{ policyRevision: revision, policyIds, ceilingMs, freshness, containment, epoch, grantedAt },
            parentGrant: request.parent?.grantId,
            jws: await authority.signGrant(claims),
          },
          entry: authority.entry('granted', grantedAt, record),
        };
      }),
    );
    return {
      ok: true,
      grant: grant.jws,
      sealed: Buffer.from(sealed).toString('base64'),
      notes: [note, exitNote].filter((line) => line !== undefined),
    };
  }

  /** Every credential must be permitted; the most restrictive obligation over all of them holds. */
  #obligations(
    host: HostRow,
    request: GrantRequest,
    subject: string,
    revision: number,
    engine: Awaited<ReturnType<Policies['inForce']>>['engine'],
  ): Obliged {
    if (isCanary(request.credentials)) return canaryObliged;
    const reserved = request.credentials.find(({ path }) => isReserved(path));
    if (reserved !== undefined) throw reservedDenial(reserved.path);
    // A run without credentials holds nothing; its tree is still contained and its ceiling kept.
    let obliged: Obliged = {
      ceilingMs: ceilingMsDefault,
      freshness: freshnessDefault,
      containment: [],
      onExit: undefined,
      policyIds: [],
    };
    for (const [index, wanted] of request.credentials.entries()) {
      const { path, deliver = 'env' } = wanted;
      const { uid, reason } = request;
      const program = request.command[0] ?? '';
      const decision = engine.decide({ host: host.name, labels: host.labels, uid, path, program, reason });
      if (!decision.allow) throw deniedByPolicy(subject, path, revision, decision.policyIds);
      const { ceilingMs, freshness, containment, onExit, deliver: allowed } = decision.obligations;
      if (!allowed.includes(deliver))
        throw deniedDelivery({ ...wanted, deliver }, revision, decision.policyIds, allowed);
      obliged =
        index === 0
          ? { ceilingMs, freshness, containment, onExit, policyIds: decision.policyIds }
          : {
              ceilingMs: Math.min(obliged.ceilingMs, ceilingMs),
              freshness: tighter(obliged.freshness, freshness),
              containment: unionOf([obliged.containment, containment]),
              onExit: stricterOnExit([obliged.onExit, onExit]),
              policyIds: [...new Set([...obliged.policyIds, ...decision.policyIds])],
            };
    }
    return obliged;
  }

  /** Invariant 5: what a run inside a run holds, the outer one holds, and for no longer than it. */
  async #parentMs(
    host: HostRow,
    request: GrantRequest,
    { grantId: parentId, remainingMs }: NonNullable<GrantRequest['parent']>,
  ): Promise<number> {
    const parent = await this.story(parentId);
    if (parent.hostId !== host.id || parent.ended !== undefined) {
      throw new CustodyError(
        'run_unacceptable',
        `the grant around this run, ${parentId}, is not open on this host`,
        {
          next: 'a run inside a run needs the outer one to be alive',
        },
      );
    }
    const extra = request.credentials.find(
      ({ path, field }) => !parent.credentials.some((held) => held.path === path && held.field === field),
    );
    // The host counts what is left; more than was given cannot be.
    if (extra === undefined) return Math.min(remainingMs, parent.ceilingMs);
    throw new CustodyError(
      'run_unacceptable',
      `the run around this one does not hold ${extra.path}/${extra.field}`,
      {
        next: 'a run inside a run can only narrow: give it to the outer run too, or start this one outside',
      },
    );
  }

  /** Opens the values just long enough to seal them to the host. */
  async #collect(host: HostRow, request: GrantRequest): Promise<{ credentials: Held[]; sealed: Uint8Array }> {
    const { secrets, newId } = this.#options;
    const { held, values } = isCanary(request.credentials)
      ? canaryHeld(request.credentials, newId('canary'))
      : await secrets.collect(request.credentials);
    const payload = encodeFields(values);
    for (const value of values.values()) value.fill(0);
    const sealed = sealTo(host.sealingKey, payload);
    payload.fill(0);
    return { credentials: held, sealed };
  }
}

/** Made up for this run, and kept nowhere. */
function canaryHeld(
  wanted: readonly Wanted[],
  value: string,
): { held: Held[]; values: Map<string, Uint8Array> } {
  return {
    held: wanted.map(({ name, path, field }) => ({ name, path, field, version: 1 })),
    values: new Map(wanted.map(({ name }) => [name, Buffer.from(value)])),
  };
}

/** The host asked with the strongest it has for this run: nothing it could do would help. */
function requireContainment(obliged: Obliged, offered: Containment, revision: number): void {
  const missing = missingContainment(obliged.containment, offered);
  if (missing.length === 0) return;
  throw new CustodyError(
    'run_unacceptable',
    `policy ${obliged.policyIds.join(', ')} (revision ${revision}) requires containment ${missing.join(' and ')}; this host offers ${offered}`,
    { next: 'run it on a host that offers it: docs/containment.md says when a host can' },
  );
}

function tighter(a: Freshness, b: Freshness): Freshness {
  if (a.kind === 'best_effort') return b;
  return b.kind === 'best_effort' || a.ms <= b.ms ? a : b;
}

function grantView(row: store.GrantStory, now: Date): GrantView {
  const started = hostKinds.started.safeParse(row.started).data;
  const ended = hostKinds.ended.safeParse(row.ended).data;
  const state = (): GrantView['state'] => {
    if (ended !== undefined) return 'ended';
    if (ceilingBound(row) < now) return 'expired';
    return row.released === undefined ? 'granted' : 'running';
  };
  return {
    grantId: row.id,
    runId: row.runId,
    host: row.host,
    subject: row.subject,
    uid: row.uid,
    pid: row.pid,
    command: [...row.command],
    cwd: row.cwd,
    ...(row.reason === undefined ? {} : { reason: row.reason }),
    credentials: row.credentials.map((each) => ({ ...each })),
    policyRevision: row.policyRevision,
    policyIds: [...row.policyIds],
    freshness: row.freshness,
    containment: row.containment as GrantView['containment'],
    ...(row.parentGrant === undefined ? {} : { parent: row.parentGrant }),
    epoch: row.epoch,
    grantedAt: row.grantedAt.toISOString(),
    ceilingMs: row.ceilingMs,
    ceilingAt: new Date(row.grantedAt.getTime() + row.ceilingMs).toISOString(),
    state: state(),
    ...(row.released === undefined ? {} : { released: row.released.toISOString() }),
    ...(started === undefined ? {} : { root: { pid: started.pid, startTicks: started.startTicks } }),
    ...(ended === undefined || row.endedAt === undefined
      ? {}
      : {
          ended: {
            at: row.endedAt.toISOString(),
            cause: ended.cause,
            ...(ended.rootStatus === undefined ? {} : { rootStatus: ended.rootStatus }),
            survivors: ended.survivors,
            processes: ended.processes,
            proof: ended.proof,
            emptyBootMs: ended.emptyBootMs,
            rows: ended.rows,
            ...(ended.unlisted === undefined ? {} : { unlisted: ended.unlisted }),
          },
        }),
  };
}
