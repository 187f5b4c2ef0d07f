// Owns revocation: one transaction, one broadcast, what it would hit, its lift, and the receipts that prove what every host did.
import { CustodyError } from '@custody/core/errors';
import { endSlackMs, revokedBound } from '@custody/core/freshness';
import { receiptRowsMax, revocationPageMax } from '@custody/core/limits';
import { stands, type RevocationTarget } from '@custody/core/revocation';
import type { Database } from '@custody/store/database';
import { logHead } from '@custody/store/revocation-log';
import * as store from '@custody/store/revocations';
import { counter } from '@custody/telemetry/telemetry';
import type { RevocationPreview, RevocationSummary, RevocationView } from '@custody/wire/http';
import type { NamedTarget, RevocationsAnswer } from '@custody/wire/messages';
import { encodeJson } from '@custody/wire/schema';
import { fleet } from '@custody/wire/subjects';
import type { Authority } from './authority.ts';
import { headStatement } from './beacon.ts';
import type { Hosts } from './hosts.ts';
import type { News } from './news.ts';
import { revocationSummary, revocationView } from './receipts.ts';

export interface RevocationsOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly hosts: Pick<Hosts, 'byName'>;
  readonly news: News;
  readonly now: () => Date;
  readonly nudgeOutbox: () => void;
}

const revocationsMade = counter('custody.revocations', 'revocations made');

export class Revocations {
  readonly #options: RevocationsOptions;

  constructor(options: RevocationsOptions) {
    this.#options = options;
  }

  async revoke(by: string, named: NamedTarget, reason: string): Promise<RevocationView> {
    return this.#revoke(by, await this.#resolve(named), reason);
  }

  /** The host's keys end too: `Bans` cuts it off once it has had its time. */
  async ban(by: string, name: string, reason: string): Promise<RevocationView> {
    const { id } = await this.#options.hosts.byName(name);
    return this.#revoke(by, { kind: 'host', id, name, ban: true }, reason);
  }

  /** The control plane's own, unless there was one since; of two control planes one makes it. */
  async round(target: RevocationTarget, unlessSince: Date): Promise<void> {
    try {
      await this.#revoke(this.#options.authority.author, target, 'a round of canaries', unlessSince);
    } catch (error) {
      if (!(error instanceof CustodyError) || error.code !== 'conflict') throw error;
    }
  }

  /** What it would hit. Nothing is written. */
  async preview(named: NamedTarget): Promise<RevocationPreview> {
    const { db, now } = this.#options;
    const target = await this.#resolve(named);
    const at = now();
    const { grants, hosts, hits } = await store.previewHits(db, target, {
      now: at,
      slackMs: endSlackMs,
    });
    return {
      ...{ dryRun: true, target, standing: stands(target), grants, hosts },
      hits: hits.map((hit) => {
        const { host, grantId, runId, subject, command, paths } = hit;
        return {
          ...{ host, grantId, runId, subject, command: [...command], paths: [...paths] },
          boundAt: revokedBound(hit, at).toISOString(),
        };
      }),
      more: Math.max(0, grants - receiptRowsMax),
    };
  }

  async lift(
    by: string,
    what: { epoch: number } | { target: NamedTarget },
    reason: string,
  ): Promise<RevocationSummary[]> {
    const { db, authority, news, now } = this.#options;
    const at = now();
    const rows = await store.lift(
      db,
      authority.author,
      'epoch' in what ? what : { target: await this.#resolve(what.target) },
      { at, by, reason },
      ({ epoch, target }) => authority.entry('lifted', at, { by, epoch, target, reason }),
    );
    news.announce();
    return rows.map(revocationSummary);
  }

  async list(standingOnly: boolean): Promise<RevocationSummary[]> {
    return (await store.listRevocations(this.#options.db, standingOnly)).map(revocationSummary);
  }

  /** The receipts so far. With `waitMs`: where some are owed, waits for news of the ledger, at most that long. */
  async get(epoch: number, waitMs: number): Promise<RevocationView> {
    const { db, news } = this.#options;
    const row = await store.revocationByEpoch(db, epoch);
    if (row === undefined) throw new CustodyError('not_found', `there is no revocation ${epoch}`);
    // Listening before looking: a receipt between the two is not missed.
    using heard = news.listen();
    let view = await this.#view(row);
    if (!view.proven && waitMs > 0) {
      await heard.next(waitMs);
      view = await this.#view(row);
    }
    return view;
  }

  /** What a host missed. Where it gave a nonce: with the proof of where the log stood after it had asked. */
  async after(epoch: number, nonce?: string): Promise<Extract<RevocationsAnswer, { ok: true }>> {
    const { db, authority } = this.#options;
    const head = await logHead(db);
    const entries = epoch >= head.epoch ? [] : await store.revocationsAfter(db, epoch, revocationPageMax);
    const proof =
      nonce === undefined ? undefined : await authority.signHead({ ...headStatement(head), nonce });
    return { ok: true, entries, head: head.epoch, ...(proof === undefined ? {} : { proof }) };
  }

  head(): Promise<number> {
    return store.revocationHead(this.#options.db);
  }

  async #revoke(
    by: string,
    target: RevocationTarget,
    reason: string,
    unlessSince?: Date,
  ): Promise<RevocationView> {
    const { db, authority, news, now, nudgeOutbox } = this.#options;
    const row = await store.revoke(
      db,
      authority.author,
      { target, reason, createdBy: by, slackMs: endSlackMs, unlessSince },
      {
        now,
        sign: (epoch, createdAt, log) =>
          authority.signRevocation({
            ...{ epoch, target, reason, at: createdAt.toISOString() },
            ...(log.since === undefined ? {} : { log: log.id }),
          }),
        entryFor: (epoch, createdAt, expected) =>
          authority.entry('revoked', createdAt, { by, epoch, target, reason, expected }),
        broadcastOf: (entry) => ({ subject: fleet('revocation'), payload: encodeJson({ entry }) }),
      },
    );
    nudgeOutbox();
    revocationsMade.add(1);
    news.announce();
    return this.#view(row);
  }

  /** People know a host by its name; what is signed names its id, which no other host will ever have. */
  async #resolve(named: NamedTarget): Promise<RevocationTarget> {
    if (named.kind !== 'host') return named;
    const { id, name } = await this.#options.hosts.byName(named.name);
    return { kind: 'host', id, name };
  }

  async #view(row: store.RevocationRow): Promise<RevocationView> {
    const { db, now } = this.#options;
    return revocationView(row, await store.expectedReceipts(db, row.epoch), now());
  }
}
