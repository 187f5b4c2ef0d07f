// Tests signing and sealing keys against RFC 8032, and what they must refuse.
import { beforeAll, describe, expect, test } from 'vitest';
import { toBase64url } from '../src/base64url.ts';
import { CryptoError } from '../src/errors.ts';
import {
  generateSealingKeySeed,
  generateSigningKeySeed,
  publicKeysCachedMax,
  requirePublicKey,
  sealingKeyFromSeed,
  signingKeyFromSeed,
  verifySignature,
} from '../src/keys.ts';
import { sealOverheadBytes, sealTo } from '../src/seal.ts';
import { sodiumReady } from '../src/sodium.ts';
import { codeOf, hex } from './support.ts';

describe('before libsodium is loaded', () => {
  test('sealing says what to await', () => {
    expect(codeOf(() => sealingKeyFromSeed(new Uint8Array(32)))).toBe('not_ready');
    expect(codeOf(() => sealTo('', new Uint8Array(1)))).toBe('not_ready');
  });
});

describe('signing', () => {
  // RFC 8032 section 7.1, TEST 2.
  const key = signingKeyFromSeed(hex('4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb'));
  const message = hex('72');
  const signature = hex(
    '92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da' +
      '085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00',
  );

  test('agrees with RFC 8032', () => {
    expect(key.publicKey).toBe(
      toBase64url(hex('3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c')),
    );
    expect(new Uint8Array(key.sign(message))).toEqual(signature);
    expect(verifySignature(key.publicKey, message, signature)).toBe(true);
  });

  test('refuses another message, a changed signature and another key', () => {
    const changed = signature.slice();
    changed[0] = 0x93;
    expect(verifySignature(key.publicKey, hex('73'), signature)).toBe(false);
    expect(verifySignature(key.publicKey, message, changed)).toBe(false);
    expect(verifySignature(key.publicKey, message, signature.subarray(0, 63))).toBe(false);
    const other = signingKeyFromSeed(generateSigningKeySeed());
    expect(verifySignature(other.publicKey, message, signature)).toBe(false);
  });

  test.each([
    '',
    'AAAA',
    `${key.publicKey}=`,
    'x'.repeat(10_000),
    toBase64url(hex(`01${'00'.repeat(31)}`)),
    toBase64url(hex(`01${'00'.repeat(30)}80`)),
    toBase64url(hex('c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa')),
  ])('refuses %j as a public key', (publicKey) => {
    expect(verifySignature(publicKey, message, signature)).toBe(false);
    expect(codeOf(() => requirePublicKey(publicKey))).toBe('bad_public_key');
  });

  test('refuses the signature that fits every message under the identity point', () => {
    const identity = toBase64url(hex(`01${'00'.repeat(31)}`));
    const forged = hex(`01${'00'.repeat(63)}`);
    expect(verifySignature(identity, message, forged)).toBe(false);
  });

  test('still verifies after more keys than it remembers', () => {
    for (let index = 0; index <= publicKeysCachedMax; index++) {
      const bytes = Buffer.alloc(32, 7);
      bytes.writeUInt32BE(index);
      verifySignature(toBase64url(bytes), message, signature);
    }
    expect(verifySignature(key.publicKey, message, signature)).toBe(true);
  }, 20_000);

  test('lets the seed be wiped once the key is made', () => {
    const seed = generateSigningKeySeed();
    const made = signingKeyFromSeed(seed);
    seed.fill(0);
    expect(verifySignature(made.publicKey, message, made.sign(message))).toBe(true);
  });

  test('refuses a seed of another length', () => {
    expect(codeOf(() => signingKeyFromSeed(new Uint8Array(31)))).toBe('bad_argument');
  });
});

describe('sealing', () => {
  beforeAll(sodiumReady);
  const plaintext = new TextEncoder().encode('a credential');

  test('only the host opens what was sealed to it', () => {
    const seed = generateSealingKeySeed();
    const host = sealingKeyFromSeed(seed);
    const box = sealTo(host.publicKey, plaintext);
    expect(box.byteLength).toBe(plaintext.byteLength + sealOverheadBytes);
    expect(sealingKeyFromSeed(seed).open(box)).toEqual(plaintext);
    expect(codeOf(() => sealingKeyFromSeed(generateSealingKeySeed()).open(box))).toBe('cannot_open');
  });

  test('a box changed in any byte does not open', () => {
    const host = sealingKeyFromSeed(generateSealingKeySeed());
    const box = sealTo(host.publicKey, plaintext);
    for (let index = 0; index < box.byteLength; index++) {
      const changed = box.slice();
      changed[index] = (changed[index] ?? 0) ^ 1;
      expect(codeOf(() => host.open(changed))).toBe('cannot_open');
    }
    expect(codeOf(() => host.open(new Uint8Array(3)))).toBe('cannot_open');
  });

  test('refuses to seal to a key that is none, or of small order', () => {
    for (const publicKey of ['', 'AAAA', 'A'.repeat(43), 'x'.repeat(1_000)]) {
      expect(codeOf(() => sealTo(publicKey, plaintext))).toBe('bad_public_key');
    }
  });

  test('no error carries what was sealed', () => {
    const host = sealingKeyFromSeed(generateSealingKeySeed());
    try {
      host.open(plaintext);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(CryptoError);
      expect(String((error as Error).stack)).not.toContain('a credential');
    }
  });
});
