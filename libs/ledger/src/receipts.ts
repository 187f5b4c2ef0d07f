// Owns the control plane's signed statement that it durably holds a host's ledger up to a head. Spec: docs/spec/ledger.md.
import { CryptoError } from '@custody/crypto/errors';
import { signJws, verifyJws } from '@custody/crypto/jws';
import { isPlainObject } from './canonical.ts';
import { isHash, isHostId, isInstant, isOrdinal } from './entry.ts';
import { LedgerError } from './errors.ts';

/** A `Head` of the host's chain, and who held it when. */
export interface LedgerReceipt {
  readonly host: string;
  readonly epoch: number;
  readonly seq: number;
  readonly hash: string;
  /** RFC 3339, UTC, milliseconds. */
  readonly at: string;
}

export const ledgerReceiptTyp = 'custody-ledger-receipt';

/** Sign it after COMMIT only. `seed` is the control plane's. Throws `bad_argument` for a receipt out of range. */
export async function signLedgerReceipt(seed: Uint8Array, receipt: LedgerReceipt): Promise<string> {
  const { host, epoch, seq, hash, at } = receipt;
  if (!isReceipt(receipt))
    throw new LedgerError('bad_argument', 'sign ledger receipt: a member is out of range');
  return await signJws(seed, ledgerReceiptTyp, { v: 1, host, epoch, seq, hash, at });
}

/** Throws `bad_receipt` unless `token` is such a statement, signed by the control plane's key. */
export async function verifyLedgerReceipt(publicKey: string, token: string): Promise<LedgerReceipt> {
  const claims = await verifyJws(publicKey, ledgerReceiptTyp, token).catch((cause: unknown) => {
    if (!(cause instanceof CryptoError)) throw cause;
    throw new LedgerError('bad_receipt', `verify ledger receipt: ${cause.publicMessage}`, { cause });
  });
  if (!isPlainObject(claims) || claims['v'] !== 1 || !isReceipt(claims)) {
    throw new LedgerError('bad_receipt', 'verify ledger receipt: a claim is missing or out of range');
  }
  const { host, epoch, seq, hash, at } = claims;
  return { host, epoch, seq, hash, at };
}

function isReceipt(value: object): value is LedgerReceipt {
  const claims = value as Partial<Record<keyof LedgerReceipt, unknown>>;
  return (
    isHostId(claims.host) &&
    isOrdinal(claims.epoch) &&
    isOrdinal(claims.seq) &&
    isHash(claims.hash) &&
    isInstant(claims.at)
  );
}
