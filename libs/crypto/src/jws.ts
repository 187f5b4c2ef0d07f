// Owns signed statements: compact JWS, EdDSA and nothing else, one typ per kind. Spec: docs/spec/sealing.md.
import { CompactSign, compactVerify } from 'jose';
import type { KeyObject } from 'node:crypto';
import { fromBase64url } from './base64url.ts';
import { CryptoError } from './errors.ts';
import { importPublicKey, importSeed } from './keys.ts';

/** The longest token that is signed or read. */
export const jwsBytesMax = 700_000;

const algorithm = 'EdDSA';
const headerMembers = 'alg kid typ';

interface Signer {
  readonly privateKey: KeyObject;
  readonly publicKey: string;
}

/** Keyed by the seed's own array, so that no copy of a seed is kept, and the key goes when the seed goes. */
const signers = new WeakMap<Uint8Array, Signer>();

/**
 * Signs `claims` (as JSON) with the Ed25519 key of `seed`; `kid` is its public key. The key is kept for as long as the
 * seed's array is: give the same array each time and do not change it. Throws `too_large` and `bad_argument`.
 */
export async function signJws(seed: Uint8Array, typ: string, claims: object): Promise<string> {
  const signer = signerOf(seed);
  const payload = Buffer.from(JSON.stringify(claims), 'utf8');
  if (payload.byteLength > jwsBytesMax / 2) {
    throw new CryptoError('too_large', `sign ${typ}: its claims have ${payload.byteLength} bytes`);
  }
  return await new CompactSign(payload)
    .setProtectedHeader({ alg: algorithm, typ, kid: signer.publicKey })
    .sign(signer.privateKey);
}

/**
 * The claims: a JSON object whose members the caller still has to check. Throws `bad_signature` when the token is
 * not one of this typ, signed by this key, or has been changed anywhere; `bad_public_key` when the key is none.
 */
export async function verifyJws(publicKey: string, typ: string, token: string): Promise<unknown> {
  const key = importPublicKey(publicKey);
  if (token.length > jwsBytesMax) throw refuse(typ, 'it is too long');
  if (!hasOneSpelling(token)) throw refuse(typ, 'it is not a compact JWS');
  const { protectedHeader, payload } = await compactVerify(token, key, { algorithms: [algorithm] }).catch(
    (cause: unknown) => {
      throw refuse(typ, 'its signature does not verify', cause);
    },
  );
  if (Object.keys(protectedHeader).toSorted().join(' ') !== headerMembers)
    throw refuse(typ, 'its header is not ours');
  if (protectedHeader.typ !== typ) throw refuse(typ, 'it is a statement of another kind');
  if (protectedHeader.kid !== publicKey) throw refuse(typ, 'it names another key');
  const claims = parse(payload);
  if (typeof claims !== 'object' || claims === null || Array.isArray(claims)) {
    throw refuse(typ, 'its claims are not a JSON object');
  }
  return claims;
}

function signerOf(seed: Uint8Array): Signer {
  const known = signers.get(seed);
  if (known) return known;
  const signer = importSeed(seed);
  signers.set(seed, signer);
  return signer;
}

function hasOneSpelling(token: string): boolean {
  const parts = token.split('.', 4);
  return parts.length === 3 && parts.every((part) => part.length > 0 && fromBase64url(part) !== undefined);
}

function parse(payload: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload));
  } catch {
    return undefined;
  }
}

function refuse(typ: string, why: string, cause?: unknown): CryptoError {
  return new CryptoError('bad_signature', `verify ${typ}: ${why}`, { cause });
}
