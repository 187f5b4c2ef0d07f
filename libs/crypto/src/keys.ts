// Owns the two kinds of key a machine holds: Ed25519 to sign, X25519 to open what is sealed to it.
import { createPrivateKey, createPublicKey, randomBytes, sign, verify, type KeyObject } from 'node:crypto';
import { fromBase64url, toBase64url } from './base64url.ts';
import { CryptoError } from './errors.ts';
import { loadedSodium } from './sodium.ts';

export const seedBytes = 32;
export const publicKeyBytes = 32;
export const signatureBytes = 64;
/** Imported public keys kept for the next verification. */
export const publicKeysCachedMax = 4_096;

/** RFC 8410: what stands before the 32 bytes of an Ed25519 key in PKCS #8 and in SubjectPublicKeyInfo. */
const pkcs8Prefix = Buffer.from('302e020100300506032b657004220420', 'hex');
const spkiPrefix = Buffer.from('302a300506032b6570032100', 'hex');

/** The y coordinates of the points of small order, the sign bit cleared, as libsodium lists them. */
const smallOrder = new Set([
  '0000000000000000000000000000000000000000000000000000000000000000',
  '0100000000000000000000000000000000000000000000000000000000000000',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
]);

export interface SigningKey {
  /** Ed25519, 32 bytes, as 43 characters of base64url. */
  readonly publicKey: string;
  /** 64 bytes, RFC 8032; the same bytes give the same signature. */
  sign(bytes: Uint8Array): Uint8Array;
}

export interface SealingKey {
  /** X25519, 32 bytes, as 43 characters of base64url. */
  readonly publicKey: string;
  /** Opens what `sealTo` sealed to this key. The caller wipes the answer. Throws `cannot_open`. */
  open(box: Uint8Array): Uint8Array;
}

/** 32 random bytes. The caller wipes them. */
export function generateSigningKeySeed(): Uint8Array {
  return drawSeed();
}

/** 32 random bytes. The caller wipes them. */
export function generateSealingKeySeed(): Uint8Array {
  return drawSeed();
}

/** The seed may be wiped afterwards. Throws `bad_argument` unless it is 32 bytes. */
export function signingKeyFromSeed(seed: Uint8Array): SigningKey {
  const { privateKey, publicKey } = importSeed(seed);
  return { publicKey, sign: (bytes) => sign(null, bytes, privateKey) };
}

/** Needs `sodiumReady`. The seed may be wiped afterwards. Throws `bad_argument` unless it is 32 bytes. */
export function sealingKeyFromSeed(seed: Uint8Array): SealingKey {
  requireSeed(seed);
  const sodium = loadedSodium();
  const pair = sodium.crypto_box_seed_keypair(seed);
  return {
    publicKey: toBase64url(pair.publicKey),
    open(box) {
      try {
        return sodium.crypto_box_seal_open(box, pair.publicKey, pair.privateKey);
      } catch (cause) {
        throw new CryptoError('cannot_open', 'open sealed box: it is damaged or was sealed to another key', {
          cause,
        });
      }
    },
  };
}

/**
 * Whether `signature` is that of `bytes` under `publicKey`. False, never an error, for a key or signature
 * that is none; where the key comes from configuration, check it with `requirePublicKey` first.
 */
export function verifySignature(publicKey: string, bytes: Uint8Array, signature: Uint8Array): boolean {
  const key = cachedPublicKey(publicKey);
  return key !== undefined && signature.byteLength === signatureBytes && verify(null, bytes, key, signature);
}

/** Gives back an Ed25519 public key that can be trusted to verify with. Throws `bad_public_key`. */
export function requirePublicKey(publicKey: string): string {
  importPublicKey(publicKey);
  return publicKey;
}

/** The key as node:crypto holds it. Throws `bad_public_key` for another length, spelling or a point of small order. */
export function importPublicKey(publicKey: string): KeyObject {
  const key = cachedPublicKey(publicKey);
  if (key) return key;
  throw new CryptoError(
    'bad_public_key',
    'read public key: it is not an Ed25519 key fit for use; give 32 bytes as 43 characters of base64url',
  );
}

/** The private key as node:crypto holds it, and its public half. Throws `bad_argument` unless the seed is 32 bytes. */
export function importSeed(seed: Uint8Array): { privateKey: KeyObject; publicKey: string } {
  requireSeed(seed);
  const der = Buffer.alloc(pkcs8Prefix.byteLength + seedBytes);
  der.set(pkcs8Prefix);
  der.set(seed, pkcs8Prefix.byteLength);
  try {
    const privateKey = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
    const spki = createPublicKey(privateKey).export({ format: 'der', type: 'spki' });
    return { privateKey, publicKey: toBase64url(spki.subarray(spkiPrefix.byteLength)) };
  } finally {
    der.fill(0);
  }
}

const publicKeys = new Map<string, KeyObject>();

function cachedPublicKey(publicKey: string): KeyObject | undefined {
  const known = publicKeys.get(publicKey);
  if (known) return known;
  const bytes = fromBase64url(publicKey.slice(0, 64), publicKeyBytes);
  if (!bytes || publicKey.length !== 43 || isSmallOrder(bytes)) return undefined;
  const key = createPublicKey({ key: Buffer.concat([spkiPrefix, bytes]), format: 'der', type: 'spki' });
  if (publicKeys.size >= publicKeysCachedMax) {
    const oldest = publicKeys.keys().next();
    if (!oldest.done) publicKeys.delete(oldest.value);
  }
  publicKeys.set(publicKey, key);
  return key;
}

function isSmallOrder(publicKey: Uint8Array): boolean {
  const y = Buffer.from(publicKey);
  y[31] = (y[31] ?? 0) & 0x7f;
  return smallOrder.has(y.toString('hex'));
}

function requireSeed(seed: Uint8Array): void {
  if (seed.byteLength === seedBytes) return;
  throw new CryptoError('bad_argument', `read key seed: it has ${seed.byteLength} bytes, not ${seedBytes}`);
}

function drawSeed(): Uint8Array {
  // Not randomBytes(32) itself: a small Buffer may share its memory with others.
  const seed = new Uint8Array(seedBytes);
  const drawn = randomBytes(seedBytes);
  seed.set(drawn);
  drawn.fill(0);
  return seed;
}
