// Owns revocation: one transaction, one broadcast, and the receipts that prove what every host did.
import { CustodyError } from '@custody/core/errors';
import { revokedBound } from '@custody/core/freshness';
import { revocationPageMax } from '@custody/core/limits';
import type { Database } from '@custody/store/database';
import { logHead } from '@custody/store/revocation-log';
import * as store from '@custody/store/revocations';
import { counter } from '@custody/telemetry/telemetry';
import { hostKinds } from '@custody/wire/ledger';
import type { ReceiptView, RevocationView } from '@custody/wire/http';
import type { RevocationsAnswer } from '@custody/wire/messages';
import { encodeJson } from '@custody/wire/schema';
import { fleet } from '@custody/wire/subjects';
import type { Authority } from './authority.ts';
import { headStatement } from './beacon.ts';
import type { Grants } from './grants.ts';
import type { News } from './news.ts';

export interface RevocationsOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly grants: Grants;
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

  async revoke(by: string, target: { kind: 'grant'; id: string }, reason: string): Promise<RevocationView> {
    const { db, authority, now, nudgeOutbox } = this.#options;
    const row = await store.revoke(
      db,
      authority.author,
      { targetKind: target.kind, target: target.id, reason, createdBy: by },
      {
        now,
        sign: (epoch, createdAt, log) =>
          authority.signRevocation({
            ...{ epoch, target, reason, at: createdAt.toISOString() },
            ...(log.since === undefined ? {} : { log: log.id }),
          }),
        entryFor: (epoch, createdAt) => authority.entry('revoked', createdAt, { by, epoch, target, reason }),
        broadcastOf: (entry) => ({ subject: fleet('revocation'), payload: encodeJson({ entry }) }),
      },
    );
    nudgeOutbox();
    revocationsMade.add(1);
    return this.#view(row);
  }

  /** The receipts so far. With `waitMs`: where some are pending, waits for news of the ledger, at most that long. */
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

  async #view(row: store.RevocationRow): Promise<RevocationView> {
    const receipt = await this.#receipt(row);
    return {
      epoch: row.epoch,
      target: { kind: 'grant', id: row.target },
      reason: row.reason,
      createdAt: row.createdAt.toISOString(),
      createdBy: row.createdBy,
      receipts: [receipt],
      proven: receipt.state === 'killed' || receipt.state === 'already_ended',
    };
  }

  async #receipt(row: store.RevocationRow): Promise<ReceiptView> {
    const { db, grants, now } = this.#options;
    const grant = await grants.story(row.target);
    const bound = revokedBound(grant, row.createdAt);
    const base = { host: grant.host, grantId: grant.id, boundAt: bound.toISOString() };
    const body = hostKinds.receipt.safeParse(
      await store.receiptBody(db, grant.id, grant.hostId, row.epoch),
    ).data;
    if (body !== undefined) {
      const { outcome, heardAt, signalledMicros, emptyMicros, survivors, processes, containment } = body;
      return {
        ...base,
        state: outcome,
        heardAt,
        ...(signalledMicros === undefined ? {} : { signalledMicros }),
        ...(emptyMicros === undefined ? {} : { emptyMicros }),
        survivors,
        processes,
        containment,
      };
    }
    if (grant.ended !== undefined) return { ...base, state: 'already_ended' };
    return { ...base, state: bound < now() ? 'bounded' : 'pending' };
  }
}
