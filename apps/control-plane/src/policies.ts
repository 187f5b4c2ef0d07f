// Owns the policy set in force: applied as numbered revisions, evaluated here, copied signed to hosts.
import { createHash } from 'node:crypto';
import {
  localUser,
  parsePolicies,
  PolicyEngine,
  type HoldDecision,
  type HoldRequest,
} from '@custody/core/cedar';
import { CustodyError } from '@custody/core/errors';
import { deliveries } from '@custody/core/policy';
import type { Database } from '@custody/store/database';
import type { HostRow } from '@custody/store/hosts';
import * as store from '@custody/store/policies';
import type { Explanation, PolicySummary } from '@custody/wire/http';
import { encodeJson } from '@custody/wire/schema';
import { fleet } from '@custody/wire/subjects';
import type { Authority } from './authority.ts';
import type { Hosts } from './hosts.ts';

export interface PoliciesOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly now: () => Date;
  /** There is a notice in the outbox. */
  readonly nudgeOutbox: () => void;
}

export interface InForce {
  readonly revision: number;
  readonly text: string;
  readonly engine: PolicyEngine;
}

export class Policies {
  readonly #options: PoliciesOptions;
  #inForce: InForce = { revision: 0, text: '', engine: new PolicyEngine('in-force', []) };

  constructor(options: PoliciesOptions) {
    this.#options = options;
  }

  /** The set that decides now. Asks for the number each time: another control plane may have applied a newer one. */
  async inForce(): Promise<InForce> {
    const { db } = this.#options;
    if ((await store.currentRevision(db)) === this.#inForce.revision) return this.#inForce;
    const row = await store.policyRevision(db, 'current');
    if (row === undefined || row.revision <= this.#inForce.revision) return this.#inForce;
    const engine = new PolicyEngine('in-force', parsePolicies(row.text));
    this.#inForce = { revision: row.revision, text: row.text, engine };
    return this.#inForce;
  }

  validate(text: string): PolicySummary['policies'] {
    return parsePolicies(text).map(({ id, effect, line }) => ({ id, effect, line }));
  }

  async apply(by: string, text: string): Promise<PolicySummary> {
    const { db, authority, now, nudgeOutbox } = this.#options;
    this.validate(text);
    const createdAt = now();
    const row = await store.applyPolicy(
      db,
      authority.author,
      { text, createdAt, createdBy: by },
      {
        entryFor: (revision) =>
          authority.entry('policy_applied', createdAt, { by, revision, sha256: sha256(text) }),
        noticeFor: (revision) => ({ subject: fleet('policy'), payload: encodeJson({ revision }) }),
      },
    );
    nudgeOutbox();
    return summary(row);
  }

  async history(): Promise<PolicySummary[]> {
    return (await store.policyHistory(this.#options.db)).map(summary);
  }

  async show(which: string): Promise<PolicySummary & { text: string }> {
    const row = await store.policyRevision(this.#options.db, which === 'current' ? which : Number(which));
    if (row !== undefined) return { ...summary(row), text: row.text };
    throw new CustodyError(
      'not_found',
      which === 'current' ? 'no policy was applied yet' : `there is no policy revision ${which}`,
      {
        next: 'custody policy history shows them; custody policy apply FILE makes the next',
      },
    );
  }

  /** The set signed for one host, with the labels that its own decisions need. */
  async signedFor(host: HostRow): Promise<string> {
    const { revision, text } = await this.inForce();
    const { labels, id: hostId } = host;
    return this.#options.authority.signPolicy({
      revision,
      text,
      hostId,
      labels,
      at: this.#options.now().toISOString(),
    });
  }

  /** Whether `HOST/UID` may hold a secret now. Throws `not_found` for a host that is not enrolled. */
  async explainFor(
    hosts: Hosts,
    asked: { subject: string; path: string; command: readonly string[]; reason?: string | undefined },
  ): Promise<Explanation> {
    const [name = '', uid = ''] = asked.subject.split('/');
    const { labels } = await hosts.byName(name);
    const { path, reason } = asked;
    return this.#explain({
      host: name,
      labels,
      uid: Number(uid),
      path,
      program: asked.command[0] ?? '',
      reason,
    });
  }

  async #explain(request: HoldRequest): Promise<Explanation> {
    const { revision, engine } = await this.inForce();
    const decision = engine.decide(request);
    const subject = localUser(request.host, request.uid);
    const { path } = request;
    const { allow, policyIds } = decision;
    if (!decision.allow) {
      // Where a forbid decided, no permit would help.
      if (policyIds.length > 0)
        return { allow, subject, path, revision, policyIds: [...policyIds], why: whyDenied(decision) };
      const next = `permit (principal == LocalUser::"${subject}", action == Action::"hold", resource == Secret::"${path}"); would allow it`;
      return { allow, subject, path, revision, policyIds: [...policyIds], why: whyDenied(decision), next };
    }
    const { ceilingMs, freshness, containment, deliver, onExit } = decision.obligations;
    const why = `permitted by ${policyIds.join(', ')}`;
    const obliged = {
      ceilingMs,
      freshness,
      ...(containment.length === 0 ? {} : { containment: [...containment] }),
      ...(deliver.length === deliveries.length ? {} : { deliver: [...deliver] }),
      ...(onExit === undefined ? {} : { onExit }),
    };
    return { allow, subject, path, revision, policyIds: [...policyIds], ...obliged, why };
  }
}

function whyDenied(decision: Extract<HoldDecision, { allow: false }>): string {
  const errors =
    decision.errors.length === 0 ? '' : `; could not be evaluated: ${decision.errors.join('; ')}`;
  if (decision.policyIds.length > 0) return `forbidden by ${decision.policyIds.join(', ')}${errors}`;
  return `no policy permits it${errors}`;
}

function summary(row: store.PolicyRow): PolicySummary {
  const { revision, text, createdAt, createdBy } = row;
  const policies = parsePolicies(text).map(({ id, effect, line }) => ({ id, effect, line }));
  return { revision, sha256: sha256(text), policies, createdAt: createdAt.toISOString(), createdBy };
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
