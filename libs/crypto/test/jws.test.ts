// Tests signed statements: what they carry, and everything that must be refused.
import { createHmac } from 'node:crypto';
import { expect, test } from 'vitest';
import fc from 'fast-check';
import { jwsBytesMax, signJws, verifyJws } from '../src/jws.ts';
import { signingKeyFromSeed } from '../src/keys.ts';
import { codeOfAsync } from './support.ts';

const seed = new Uint8Array(32).fill(9);
const key = signingKeyFromSeed(seed);
const typ = 'custody-test';

test('gives back the claims, and its bytes are those of RFC 8037', async () => {
  const token = await signJws(seed, typ, { epoch: 7, host: 'h1' });
  expect(await verifyJws(key.publicKey, typ, token)).toEqual({ epoch: 7, host: 'h1' });
  const header = { alg: 'EdDSA', typ, kid: key.publicKey };
  expect(token).toBe(forge(header, { epoch: 7, host: 'h1' }));
});

test('refuses another typ and another key', async () => {
  const token = await signJws(seed, typ, {});
  const other = signingKeyFromSeed(new Uint8Array(32).fill(8)).publicKey;
  expect(await codeOfAsync(verifyJws(key.publicKey, 'custody-grant', token))).toBe('bad_signature');
  expect(await codeOfAsync(verifyJws(other, typ, token))).toBe('bad_signature');
  expect(await codeOfAsync(verifyJws('x', typ, token))).toBe('bad_public_key');
});

test('refuses a token changed in any one character', async () => {
  const token = await signJws(seed, typ, { a: 1 });
  const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ '.split('');
  await fc.assert(
    fc.asyncProperty(fc.nat(token.length - 1), fc.constantFrom(...letters), async (at, letter) => {
      fc.pre(token[at] !== letter);
      const changed = token.slice(0, at) + letter + token.slice(at + 1);
      expect(await codeOfAsync(verifyJws(key.publicKey, typ, changed))).toBe('bad_signature');
    }),
    { numRuns: 300 },
  );
});

test.each([
  ['alg none', { alg: 'none', typ, kid: key.publicKey }],
  ['alg HS256', { alg: 'HS256', typ, kid: key.publicKey }],
  ['no typ', { alg: 'EdDSA', kid: key.publicKey }],
  ['no kid', { alg: 'EdDSA', typ }],
  ['the kid of another', { alg: 'EdDSA', typ, kid: 'other' }],
  ['a key of its own', { alg: 'EdDSA', typ, kid: key.publicKey, jwk: { kty: 'OKP' } }],
  ['a critical extension', { alg: 'EdDSA', typ, kid: key.publicKey, crit: ['x'], x: 1 }],
])('refuses a header with %s, even well signed', async (_, header) => {
  expect(await codeOfAsync(verifyJws(key.publicKey, typ, forge(header, {})))).toBe('bad_signature');
});

test('refuses a token made with the public key as an HMAC secret, and one without signature', async () => {
  const input = `${part({ alg: 'HS256', typ, kid: key.publicKey })}.${part({})}`;
  const mac = createHmac('sha256', Buffer.from(key.publicKey, 'base64url')).update(input).digest('base64url');
  for (const token of [`${input}.${mac}`, `${input}.`, input, '', '...', 'a.b.c.d']) {
    expect(await codeOfAsync(verifyJws(key.publicKey, typ, token))).toBe('bad_signature');
  }
});

test('refuses claims that are not an object', async () => {
  const header = { alg: 'EdDSA', typ, kid: key.publicKey };
  for (const claims of [[], 'text', 1, null]) {
    expect(await codeOfAsync(verifyJws(key.publicKey, typ, forge(header, claims)))).toBe('bad_signature');
  }
});

test('neither signs nor reads past its bound', async () => {
  expect(await codeOfAsync(signJws(seed, typ, { text: 'x'.repeat(jwsBytesMax) }))).toBe('too_large');
  expect(await codeOfAsync(verifyJws(key.publicKey, typ, 'x'.repeat(jwsBytesMax + 1)))).toBe('bad_signature');
});

function part(value: unknown): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url');
}

/** A token made without jose, signed by the right key whatever its header says. */
function forge(header: object, claims: unknown): string {
  const input = `${part(header)}.${part(claims)}`;
  return `${input}.${Buffer.from(key.sign(Buffer.from(input))).toString('base64url')}`;
}
