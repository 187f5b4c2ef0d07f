// Owns the control plane of the simulation: a log, grants in one order with it, beacons, and a table in place of signatures.
import { createHash } from 'node:crypto';
import { revocationPageMax } from '@custody/core/limits';
import type { Freshness } from '@custody/core/policy';
import type { RevocationTarget } from '@custody/core/revocation';
import { generateSealingKeySeed, sealingKeyFromSeed } from '@custody/crypto/keys';
import { encodeFields } from '@custody/crypto/payload';
import { sealTo } from '@custody/crypto/seal';
import {
  grantRequest,
  revocationsRequest,
  signedTypes,
  type GrantClaims,
  type RevocationClaims,
} from '@custody/wire/messages';
import { encodeJson, parseJson } from '@custody/wire/schema';
import type { Chance, Schedule } from './schedule.ts';

/** Virtual time begins here. */
const beganAt = Date.UTC(2026, 10, 22);
const tokensOfBeaconsKept = 240;
export const variable = 'KEY';
export const secret = 'prod/x';
const anyHost = '*';

export interface Issued {
  readonly claims: GrantClaims;
  readonly grantedAtMs: number;
}

export const wallTime = (ms: number): string => new Date(beganAt + Math.floor(ms)).toISOString();

/**
 * What a signature proves is proven by a table: what was signed here verifies, and nothing else does. The real
 * signatures have tests of their own, and would take most of the time of a simulation.
 */
class Seals {
  readonly #sealed = new Map<string, { readonly typ: string; readonly claims: object }>();
  #count = 0;

  sign(typ: string, claims: object): string {
    const token = `e.${(this.#count += 1)}.s`;
    this.#sealed.set(token, { typ, claims });
    return token;
  }

  /** Of what is read once, or not any more. */
  forget(token: string): void {
    this.#sealed.delete(token);
  }

  readonly verify = async (_key: string, typ: string, token: string): Promise<unknown> => {
    const found = this.#sealed.get(token);
    if (found === undefined || found.typ !== typ) throw new Error(`${typ} does not verify`);
    if (typ === signedTypes.head || typ === signedTypes.grant) this.#sealed.delete(token);
    return found.claims;
  };
}

export class ControlPlane {
  readonly seals = new Seals();
  readonly sealingKey = sealingKeyFromSeed(generateSealingKeySeed());
  /** Every grant that was ever issued and whose end is not known. */
  readonly grants = new Map<string, Issued>();
  entries: string[] = [];
  /** The newest; older ones verify no more. */
  readonly beacons: string[] = [];
  up = true;
  onIssued: (issued: Issued) => void = () => {};
  readonly #schedule: Schedule;
  readonly #chance: Chance;
  readonly #policies = new Map<string, string>();
  readonly #sealed: Uint8Array;
  readonly #sealedSha256: string;
  #ids = 0;
  readonly #standing = new Set<string>();
  #log: { readonly log: string; readonly since?: number } = { log: 'l_00000001' };

  constructor(schedule: Schedule, chance: Chance) {
    this.#schedule = schedule;
    this.#chance = chance;
    this.#sealed = sealTo(
      this.sealingKey.publicKey,
      encodeFields(new Map([[variable, Buffer.from('value')]])),
    );
    this.#sealedSha256 = createHash('sha256').update(this.#sealed).digest('hex');
  }

  get head(): number {
    return this.entries.length;
  }

  /** Commits one entry; answers with what is broadcast of it. */
  revoke(target: RevocationTarget): Uint8Array {
    const claims: RevocationClaims = {
      epoch: this.head + 1,
      target,
      reason: 'simulated',
      at: wallTime(this.#schedule.nowMs),
      ...(this.#log.since === undefined ? {} : { log: this.#log.log }),
    };
    const entry = this.seals.sign(signedTypes.revocation, claims);
    this.entries.push(entry);
    return encodeJson({ entry });
  }

  /** Until it is lifted nothing more is granted to these hosts; without a name, to any. */
  stand(hostId = anyHost): void {
    this.#standing.add(hostId);
  }

  lift(hostId = anyHost): void {
    this.#standing.delete(hostId);
  }

  /** An older database is put in the place of this one: what was revoked since is forgotten. */
  restore(entriesLost: number): void {
    this.entries = this.entries.slice(0, Math.max(0, this.head - entriesLost));
    this.#log = { log: `l_${String((this.#ids += 1)).padStart(8, '0')}`, since: this.head };
  }

  beacon(): Uint8Array {
    const beacon = this.seals.sign(signedTypes.beacon, this.#statement());
    this.beacons.push(beacon);
    const gone = this.beacons.length > tokensOfBeaconsKept ? this.beacons.shift() : undefined;
    if (gone !== undefined) this.seals.forget(gone);
    return encodeJson({ beacon });
  }

  /** The answer to a host's question at this instant. */
  answer(hostId: string, what: string, data: Uint8Array): Uint8Array {
    if (what === 'revocations') return encodeJson(this.#revocations(data));
    if (what === 'policy') return encodeJson({ ok: true, signed: this.#policy(hostId) });
    return encodeJson(this.#grant(hostId, data));
  }

  #statement(): { log: string; since?: number; epoch: number; at: string } {
    return { ...this.#log, epoch: this.head, at: wallTime(this.#schedule.nowMs) };
  }

  #revocations(data: Uint8Array): object {
    const { after, nonce } = parseJson(revocationsRequest, data, 'a pull');
    const entries = after >= this.head ? [] : this.entries.slice(after, after + revocationPageMax);
    const proof = this.seals.sign(signedTypes.head, { ...this.#statement(), nonce });
    return { ok: true, entries, head: this.head, proof };
  }

  #policy(hostId: string): string {
    const known = this.#policies.get(hostId);
    if (known !== undefined) return known;
    const text = 'permit (principal, action == Action::"hold", resource);';
    const claims = { revision: 1, text, hostId, labels: {}, at: wallTime(0) };
    const signed = this.seals.sign(signedTypes.policy, claims);
    this.#policies.set(hostId, signed);
    return signed;
  }

  #grant(hostId: string, data: Uint8Array): object {
    const request = parseJson(grantRequest, data, 'a grant');
    if (this.#standing.has(anyHost) || this.#standing.has(hostId))
      return { ok: false, error: { code: 'denied_by_policy', message: 'revoked' } };
    const claims: GrantClaims = {
      grantId: `g_${String((this.#ids += 1)).padStart(8, '0')}`,
      requestId: request.requestId,
      runId: request.runId,
      hostId,
      subject: `${hostId}/${request.uid}`,
      credentials: request.credentials.map((wanted) => ({ ...wanted, version: 1 })),
      ceilingMs: request.ttlMs ?? 900_000,
      graceMs: 2_000,
      freshness: this.#freshness(),
      policyRevision: 1,
      policyIds: ['p'],
      containment: request.containment,
      epoch: this.head,
      sealedSha256: this.#sealedSha256,
      grantedAt: wallTime(this.#schedule.nowMs),
    };
    const issued = { claims, grantedAtMs: this.#schedule.nowMs };
    this.grants.set(claims.grantId, issued);
    this.onIssued(issued);
    return {
      ok: true,
      grant: this.seals.sign(signedTypes.grant, claims),
      sealed: Buffer.from(this.#sealed).toString('base64'),
      notes: [],
    };
  }

  #freshness(): Freshness {
    const ms = this.#chance.one([15_000, 60_000, 60_000, 300_000, undefined]);
    return ms === undefined ? { kind: 'best_effort' } : { kind: 'strict', ms };
  }
}
