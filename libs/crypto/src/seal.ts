// Owns sealing to a host: anyone may seal, only the host opens. Spec: docs/spec/sealing.md.
import { fromBase64url } from './base64url.ts';
import { CryptoError } from './errors.ts';
import { publicKeyBytes } from './keys.ts';
import { loadedSodium } from './sodium.ts';

/** What a sealed box is longer than its plaintext by. */
export const sealOverheadBytes = 48;

/**
 * `crypto_box_seal` to an X25519 public key (43 characters of base64url). Needs `sodiumReady`. It does not say
 * who sealed: carry the box in a signed message. The caller wipes `plaintext`. Throws `bad_public_key`.
 */
export function sealTo(publicKey: string, plaintext: Uint8Array): Uint8Array {
  const sodium = loadedSodium();
  const key = publicKey.length === 43 ? fromBase64url(publicKey, publicKeyBytes) : undefined;
  try {
    if (key) return sodium.crypto_box_seal(plaintext, key);
  } catch (cause) {
    throw new CryptoError('bad_public_key', 'seal to host: its public key is of small order', { cause });
  }
  throw new CryptoError('bad_public_key', 'seal to host: its key is not 43 characters of base64url');
}
