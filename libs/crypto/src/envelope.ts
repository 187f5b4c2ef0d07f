// Owns a secret version at rest: its data key, and the wrapping of that key. Spec: docs/spec/sealing.md.
import { createHash, randomFillSync } from 'node:crypto';
import { Secret } from '@custody/core/secret';
import { secretPathBytesMax } from '@custody/core/limits';
import { toBase64url } from './base64url.ts';
import { CryptoError } from './errors.ts';
import { payloadBytesMax } from './payload.ts';
import { loadedSodium } from './sodium.ts';

export const kekBytes = 32;
const nonceBytes = 24;
const tagBytes = 16;
const dataKeyBytes = 32;

/** Where a sealed version belongs; authenticated, so that it opens nowhere else. */
export interface VersionPlace {
  /** `prod/stripe` */
  readonly path: string;
  /** From 1. */
  readonly version: number;
}

export interface SealedVersion {
  /** 72 bytes: nonce and wrapped data key. */
  readonly wrappedKey: Uint8Array;
  /** 24 bytes. */
  readonly nonce: Uint8Array;
  /** The plaintext's length + 16. */
  readonly ciphertext: Uint8Array;
  /** Which key-encryption key wrapped it: 22 characters, not secret. */
  readonly keyId: string;
}

/** The public name of a key-encryption key. Throws `bad_argument` unless it is 32 bytes. */
export function keyIdOf(kek: Uint8Array): string {
  if (kek.byteLength !== kekBytes) {
    throw new CryptoError(
      'bad_argument',
      `read key-encryption key: it has ${kek.byteLength} bytes, not ${kekBytes}`,
    );
  }
  const digest = createHash('sha256').update('custody-kek-id-v1\n').update(kek).digest();
  return toBase64url(digest.subarray(0, 16));
}

/**
 * Seals under a data key drawn for this version alone. Needs `sodiumReady`. The caller keeps and wipes
 * `plaintext`. Throws `too_large`, and `bad_argument` for a kek or a place that is none.
 */
export function sealVersion(kek: Uint8Array, plaintext: Secret, place: VersionPlace): SealedVersion {
  const keyId = keyIdOf(kek);
  const at = encodePlace(place);
  if (plaintext.byteLength > payloadBytesMax) {
    throw new CryptoError('too_large', `seal secret version: it has more than ${payloadBytesMax} bytes`);
  }
  const dataKey = draw(dataKeyBytes);
  try {
    const nonce = draw(nonceBytes);
    const ciphertext = encrypt(dataKey, nonce, plaintext.reveal(), versionAad(at));
    const wrapNonce = draw(nonceBytes);
    const wrapped = encrypt(kek, wrapNonce, dataKey, dataKeyAad(at));
    const wrappedKey = new Uint8Array(nonceBytes + wrapped.byteLength);
    wrappedKey.set(wrapNonce);
    wrappedKey.set(wrapped, nonceBytes);
    return { wrappedKey, nonce, ciphertext, keyId };
  } finally {
    dataKey.fill(0);
  }
}

/**
 * Needs `sodiumReady`. The caller wipes the answer. Throws `wrong_key` when another kek wrapped it, `cannot_open`
 * when it is damaged or belongs to another path or version.
 */
export function openVersion(kek: Uint8Array, sealed: SealedVersion, place: VersionPlace): Secret {
  const keyId = keyIdOf(kek);
  if (sealed.keyId !== keyId) {
    throw new CryptoError(
      'wrong_key',
      `open secret version: it was wrapped by key ${sealed.keyId.slice(0, 22)}, this is ${keyId}; load that key`,
    );
  }
  const at = encodePlace(place);
  if (sealed.wrappedKey.byteLength !== nonceBytes + dataKeyBytes + tagBytes) throw cannotOpen(place);
  const wrapNonce = sealed.wrappedKey.subarray(0, nonceBytes);
  const dataKey = decrypt(kek, wrapNonce, sealed.wrappedKey.subarray(nonceBytes), dataKeyAad(at));
  if (!dataKey) throw cannotOpen(place);
  try {
    const plaintext = decrypt(dataKey, sealed.nonce, sealed.ciphertext, versionAad(at));
    if (!plaintext) throw cannotOpen(place);
    return new Secret(plaintext);
  } finally {
    dataKey.fill(0);
  }
}

function encodePlace({ path, version }: VersionPlace): Uint8Array {
  const text = Buffer.from(path, 'utf8');
  const pathOk = path.isWellFormed() && text.byteLength > 0 && text.byteLength <= secretPathBytesMax;
  if (!pathOk || !Number.isSafeInteger(version) || version < 1) {
    throw new CryptoError('bad_argument', 'seal or open secret version: its path or version is out of range');
  }
  const bytes = new Uint8Array(12 + text.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, text.byteLength);
  bytes.set(text, 4);
  view.setBigUint64(4 + text.byteLength, BigInt(version));
  return bytes;
}

function versionAad(place: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from('custody-secret-version-v1\n'), place]);
}

function dataKeyAad(place: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from('custody-data-key-v1\n'), place]);
}

function encrypt(key: Uint8Array, nonce: Uint8Array, plaintext: Uint8Array, aad: Uint8Array): Uint8Array {
  return loadedSodium().crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, aad, null, nonce, key);
}

function decrypt(
  key: Uint8Array,
  nonce: Uint8Array,
  box: Uint8Array,
  aad: Uint8Array,
): Uint8Array | undefined {
  const sodium = loadedSodium();
  if (nonce.byteLength !== nonceBytes || box.byteLength < tagBytes) return undefined;
  try {
    return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(null, box, aad, nonce, key);
  } catch {
    return undefined; // The tag does not fit; libsodium says no more.
  }
}

function draw(sizeBytes: number): Uint8Array {
  return randomFillSync(new Uint8Array(sizeBytes));
}

function cannotOpen(place: VersionPlace): CryptoError {
  return new CryptoError(
    'cannot_open',
    `open secret version ${place.version} of ${JSON.stringify(place.path)}: it is damaged or belongs to another path or version`,
  );
}
