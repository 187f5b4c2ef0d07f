// Tests secret versions at rest, with the vectors of docs/spec/sealing.md.
import { readFileSync } from 'node:fs';
import sodium from 'libsodium-wrappers';
import { beforeAll, expect, test } from 'vitest';
import { Secret } from '@custody/core/secret';
import { keyIdOf, openVersion, sealVersion, type SealedVersion } from '../src/envelope.ts';
import { sealingKeyFromSeed } from '../src/keys.ts';
import { sodiumReady } from '../src/sodium.ts';
import { codeOf, hex } from './support.ts';

interface Vectors {
  readonly kek: string;
  readonly key_id: string;
  readonly path: string;
  readonly version: number;
  readonly wrapped_key: string;
  readonly nonce: string;
  readonly ciphertext: string;
  readonly plaintext: string;
  readonly box: {
    readonly seed: string;
    readonly public_key: string;
    readonly box: string;
    readonly plaintext: string;
  };
}
const vectors = JSON.parse(
  readFileSync(new URL('vectors/envelope.json', import.meta.url), 'utf8'),
) as Vectors;

beforeAll(sodiumReady);
const kek = new Uint8Array(32).fill(5);
const place = { path: 'prod/stripe', version: 3 };

test('opens the vector of a version at rest', () => {
  expect(keyIdOf(hex(vectors.kek))).toBe(vectors.key_id);
  const sealed = {
    wrappedKey: hex(vectors.wrapped_key),
    nonce: hex(vectors.nonce),
    ciphertext: hex(vectors.ciphertext),
    keyId: vectors.key_id,
  };
  const opened = openVersion(hex(vectors.kek), sealed, { path: vectors.path, version: vectors.version });
  expect(opened.revealUtf8()).toBe(vectors.plaintext);
});

test("the vector opens by the spec's words alone, without this room's code", () => {
  const kekOfVector = hex(vectors.kek);
  const path = Buffer.from(vectors.path);
  const length = Buffer.from([0, 0, 0, path.byteLength]);
  const placeBytes = Buffer.concat([length, path, Buffer.from([0, 0, 0, 0, 0, 0, 0, vectors.version])]);
  const aad = (domain: string): Uint8Array => Buffer.concat([Buffer.from(domain), placeBytes]);
  const open = (box: Uint8Array, domain: string, nonce: Uint8Array, key: Uint8Array): Uint8Array =>
    sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(null, box, aad(domain), nonce, key);

  const wrapped = hex(vectors.wrapped_key);
  const dataKey = open(wrapped.subarray(24), 'custody-data-key-v1\n', wrapped.subarray(0, 24), kekOfVector);
  const plaintext = open(hex(vectors.ciphertext), 'custody-secret-version-v1\n', hex(vectors.nonce), dataKey);
  expect(new TextDecoder().decode(plaintext)).toBe(vectors.plaintext);
});

test('opens the vector of a box in transit', () => {
  const key = sealingKeyFromSeed(hex(vectors.box.seed));
  expect(key.publicKey).toBe(vectors.box.public_key);
  expect(new TextDecoder().decode(key.open(hex(vectors.box.box)))).toBe(vectors.box.plaintext);
});

test('gives back what was sealed, the empty value too', () => {
  for (const text of ['sk_live_1', '', 'ü\0'.repeat(1_000)]) {
    const sealed = sealVersion(kek, Secret.fromUtf8(text), place);
    expect(openVersion(kek, sealed, place).revealUtf8()).toBe(text);
  }
});

test('two seals of one value share no byte that tells', () => {
  const [a, b] = [0, 1].map(() => sealVersion(kek, Secret.fromUtf8('same'), place));
  expect(a?.wrappedKey).not.toEqual(b?.wrappedKey);
  expect(a?.nonce).not.toEqual(b?.nonce);
  expect(a?.ciphertext).not.toEqual(b?.ciphertext);
});

test('does not open at another path or version', () => {
  const sealed = sealVersion(kek, Secret.fromUtf8('x'), place);
  for (const other of [
    { ...place, version: 4 },
    { ...place, path: 'prod/strip' },
    { ...place, path: 'prod/stripe/' },
  ]) {
    expect(codeOf(() => openVersion(kek, sealed, other))).toBe('cannot_open');
  }
});

test('another key-encryption key is named as such, not as damage', () => {
  const sealed = sealVersion(kek, Secret.fromUtf8('x'), place);
  const other = new Uint8Array(32).fill(6);
  expect(codeOf(() => openVersion(other, sealed, place))).toBe('wrong_key');
  expect(codeOf(() => openVersion(other, { ...sealed, keyId: keyIdOf(other) }, place))).toBe('cannot_open');
});

test('does not open when any byte is changed, cut or added', () => {
  const sealed = sealVersion(kek, Secret.fromUtf8('value'), place);
  for (const part of ['wrappedKey', 'nonce', 'ciphertext'] as const) {
    const bytes = sealed[part];
    const variants = [
      bytes.subarray(1),
      bytes.subarray(0, -1),
      new Uint8Array(0),
      new Uint8Array([...bytes, 0]),
    ];
    for (let index = 0; index < bytes.byteLength; index++) {
      const changed = bytes.slice();
      changed[index] = (changed[index] ?? 0) ^ 0x80;
      variants.push(changed);
    }
    for (const variant of variants) {
      const damaged: SealedVersion = { ...sealed, [part]: variant };
      expect(codeOf(() => openVersion(kek, damaged, place))).toBe('cannot_open');
    }
  }
});

test('the wrapped key of one version does not open another', () => {
  const a = sealVersion(kek, Secret.fromUtf8('a'), place);
  const b = sealVersion(kek, Secret.fromUtf8('b'), place);
  expect(codeOf(() => openVersion(kek, { ...a, wrappedKey: b.wrappedKey }, place))).toBe('cannot_open');
});

test('refuses keys and places out of range', () => {
  const secret = Secret.fromUtf8('x');
  expect(codeOf(() => sealVersion(new Uint8Array(16), secret, place))).toBe('bad_argument');
  for (const bad of [
    { path: '', version: 1 },
    { path: 'a', version: 0 },
    { path: 'a', version: 1.5 },
    { path: '\ud800', version: 1 },
  ]) {
    expect(codeOf(() => sealVersion(kek, secret, bad))).toBe('bad_argument');
  }
});
