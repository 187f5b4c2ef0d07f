// Owns the control plane's own key: what it signs for hosts, and its own chain in the ledger.
import { signJws } from '@custody/crypto/jws';
import { signingKeyFromSeed, type SigningKey } from '@custody/crypto/keys';
import { appendEntry } from '@custody/ledger/chain';
import type { JsonObject } from '@custody/ledger/canonical';
import { parseLine } from '@custody/ledger/entry';
import { signLedgerReceipt, type LedgerReceipt } from '@custody/ledger/receipts';
import type { ChainHead, LedgerRow, NextEntry } from '@custody/store/ledger';
import { controlPlaneAuthor, type ControlPlaneBody, type ControlPlaneKind } from '@custody/wire/ledger';
import {
  signedTypes,
  type AccountClaims,
  type BeaconClaims,
  type GrantClaims,
  type HeadClaims,
  type PolicyClaims,
  type RevocationClaims,
} from '@custody/wire/messages';
import type { LedgerLine } from '@custody/ledger/entry';

export class Authority {
  readonly author = controlPlaneAuthor;
  readonly #seed: Uint8Array;
  readonly #key: SigningKey;
  readonly #bootMs: () => number;

  constructor(seed: Uint8Array, bootMs: () => number) {
    this.#seed = seed;
    this.#key = signingKeyFromSeed(seed);
    this.#bootMs = bootMs;
  }

  get publicKey(): string {
    return this.#key.publicKey;
  }

  signGrant(claims: GrantClaims): Promise<string> {
    return signJws(this.#seed, signedTypes.grant, claims);
  }

  signRevocation(claims: RevocationClaims): Promise<string> {
    return signJws(this.#seed, signedTypes.revocation, claims);
  }

  signBeacon(claims: BeaconClaims): Promise<string> {
    return signJws(this.#seed, signedTypes.beacon, claims);
  }

  signHead(claims: HeadClaims): Promise<string> {
    return signJws(this.#seed, signedTypes.head, claims);
  }

  signAccount(claims: AccountClaims): Promise<string> {
    return signJws(this.#seed, signedTypes.account, claims);
  }

  signPolicy(claims: PolicyClaims): Promise<string> {
    return signJws(this.#seed, signedTypes.policy, claims);
  }

  signReceipt(receipt: LedgerReceipt): Promise<string> {
    return signLedgerReceipt(this.#seed, receipt);
  }

  /** The next entry of the control plane's own chain, to be written in the transaction of what it records. */
  entry<Kind extends ControlPlaneKind>(kind: Kind, at: Date, body: ControlPlaneBody<Kind>): NextEntry {
    return (head: ChainHead | undefined) => {
      const { line } = appendEntry(
        head,
        {
          host: this.author,
          at: at.toISOString(),
          boot_ms: Math.floor(this.#bootMs()),
          kind,
          body: body as unknown as JsonObject,
        },
        this.#key,
      );
      return toRow(parseLine(line.subarray(0, -1)));
    };
  }
}

/** A parsed line as the store keeps it. */
export function toRow({ entry, bytes, hash, signature }: LedgerLine): LedgerRow {
  const grantId = entry.body['grantId'];
  return {
    author: entry.host,
    chainEpoch: entry.epoch,
    seq: entry.seq,
    kind: entry.kind,
    grantId: typeof grantId === 'string' ? grantId : undefined,
    at: new Date(entry.at),
    bootMs: entry.boot_ms,
    prev: entry.prev,
    hash,
    bytes,
    signature,
    body: entry.body,
  };
}
