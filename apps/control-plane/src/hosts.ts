// Owns enrolment: join tokens out, hosts in, each with a NATS user that can reach only its own subjects.
import { mintHostUser, type Trust } from '@custody/bus/trust';
import { CustodyError } from '@custody/core/errors';
import { joinTokenTtlMsDefault } from '@custody/core/limits';
import { fromBase64url } from '@custody/crypto/base64url';
import { verifySignature } from '@custody/crypto/keys';
import { hashToken, isToken, newToken } from '@custody/crypto/tokens';
import type { Database } from '@custody/store/database';
import * as store from '@custody/store/hosts';
import { lastProofs, lastVerdict, type LastProof } from '@custody/store/canaries';
import { ledgerAuthors } from '@custody/store/ledger';
import { enrolmentStatement } from '@custody/wire/enrolment';
import type { BodyOf, HostView, ReplyOf } from '@custody/wire/http';
import { controlPlaneKinds, type ControlPlaneBody } from '@custody/wire/ledger';
import type { Authority } from './authority.ts';

export interface HostsOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly trust: Trust;
  readonly busServers: readonly string[];
  readonly now: () => Date;
  readonly newId: (prefix: string) => string;
}

export class Hosts {
  readonly #options: HostsOptions;

  constructor(options: HostsOptions) {
    this.#options = options;
  }

  async createToken(
    by: string,
    asked: {
      ttlMs?: number | undefined;
      name?: string | undefined;
      labels?: Record<string, string> | undefined;
    },
  ): Promise<ReplyOf<'host.token'>> {
    const { db, authority, now, newId } = this.#options;
    const token = newToken('cjt');
    const tokenId = newId('t');
    const createdAt = now();
    const { ttlMs = joinTokenTtlMsDefault, name, labels = {} } = asked;
    const expiresAt = new Date(createdAt.getTime() + ttlMs);
    await store.createJoinToken(
      db,
      authority.author,
      { id: tokenId, hash: hashToken(token), name, labels, createdAt, expiresAt },
      authority.entry('join_token_created', createdAt, {
        by,
        tokenId,
        ttlMs,
        ...(name === undefined ? {} : { name }),
      }),
    );
    return { tokenId, token, expiresAt: expiresAt.toISOString() };
  }

  /** Throws what docs/spec/enrolment.md lists, in its order. */
  async enroll(asked: BodyOf<'enroll'>): Promise<ReplyOf<'enroll'>> {
    const { db, authority, trust, busServers, now, newId } = this.#options;
    const { token, signingKey, sealingKey, busUserKey } = asked;
    requireProof(asked);
    if (!isToken('cjt', token)) {
      throw new CustodyError('join_token_unknown', 'that is not a join token', {
        next: 'make one with custody host token create',
      });
    }
    const at = now();
    const id = newId('h');
    const host = await store.enrollHost(
      db,
      authority.author,
      hashToken(token),
      {
        id,
        name: asked.name,
        signingKey,
        sealingKey,
        busUserKey,
        agentVersion: asked.agentVersion,
        containment: asked.containment,
      },
      at,
      (name) => authority.entry('host_enrolled', at, { hostId: id, name, signingKey, sealingKey }),
    );
    const busJwt = await mintHostUser(trust, { host: id, publicKey: busUserKey });
    const { publicKey: controlPlaneKey } = authority;
    return { hostId: id, name: host.name, busJwt, busServers: [...busServers], controlPlaneKey };
  }

  async list(): Promise<HostView[]> {
    const { db } = this.#options;
    const [rows, facts] = await Promise.all([store.listHosts(db), this.#facts()]);
    return rows.map((row) => view(row, facts));
  }

  async get(name: string): Promise<HostView> {
    const row = await this.byName(name);
    return view(row, await this.#facts());
  }

  async byName(name: string): Promise<store.HostRow> {
    const row = await store.hostByName(this.#options.db, name);
    if (row !== undefined) return row;
    throw new CustodyError('not_found', `there is no host ${name}`, { next: 'custody host list shows them' });
  }

  async #facts(): Promise<Facts> {
    const { db } = this.#options;
    const [authors, proofs, verdict] = await Promise.all([
      ledgerAuthors(db),
      lastProofs(db),
      lastVerdict(db),
    ]);
    return {
      chains: new Map(authors.map((row) => [row.author, row])),
      proofs: new Map(proofs.map((proof) => [proof.hostId, proof])),
      verdict: controlPlaneKinds.canary_judged.safeParse(verdict).data,
    };
  }
}

/** What other rooms of the database say of hosts. */
interface Facts {
  readonly chains: ReadonlyMap<string, Awaited<ReturnType<typeof ledgerAuthors>>[number]>;
  readonly proofs: ReadonlyMap<string, LastProof>;
  readonly verdict: ControlPlaneBody<'canary_judged'> | undefined;
}

function requireProof(asked: BodyOf<'enroll'>): void {
  const proof = fromBase64url(asked.proof, 64);
  const key = fromBase64url(asked.signingKey, 32);
  const sealing = fromBase64url(asked.sealingKey, 32);
  if (proof === undefined || key === undefined || sealing === undefined) {
    throw new CustodyError('bad_request', 'enrol: a key or the proof is not base64url of its length');
  }
  if (!verifySignature(asked.signingKey, enrolmentStatement(asked), proof)) {
    throw new CustodyError('bad_request', 'enrol: the proof does not verify under the signing key');
  }
}

function view(row: store.HostRow, facts: Facts): HostView {
  const chain = facts.chains.get(row.id);
  return {
    hostId: row.id,
    name: row.name,
    labels: { ...row.labels },
    signingKey: row.signingKey,
    enrolledAt: row.enrolledAt.toISOString(),
    ...(row.lastSeenAt === undefined ? {} : { lastSeenAt: row.lastSeenAt.toISOString() }),
    ...(row.containment === undefined
      ? {}
      : { containment: row.containment as NonNullable<HostView['containment']> }),
    ...(chain === undefined ? {} : { ledger: { ...chain.head, forked: chain.forked } }),
    ...(row.bannedAt === undefined ? {} : { bannedAt: row.bannedAt.toISOString() }),
    canary: canaryOf(row, facts),
  };
}

function canaryOf({ id, name }: store.HostRow, { proofs, verdict }: Facts): HostView['canary'] {
  const proof = proofs.get(id);
  const state = (): HostView['canary']['state'] => {
    if (verdict?.failed.some(({ host }) => host === name) === true) return 'failed';
    if (verdict?.absent.includes(name) === true) return 'absent';
    return proof === undefined ? 'waiting' : 'proven';
  };
  return {
    state: state(),
    ...(proof === undefined ? {} : { provedAt: proof.at.toISOString(), emptyMicros: proof.emptyMicros }),
  };
}
