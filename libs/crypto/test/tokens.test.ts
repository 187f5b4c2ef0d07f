// Tests the shape, hash and comparison of bearer tokens.
import { expect, test } from 'vitest';
import { hashToken, isToken, newToken, sameBytes } from '../src/tokens.ts';
import { toHex } from './support.ts';

test('a token has its prefix and 43 characters, and never comes twice', () => {
  const tokens = Array.from({ length: 100 }, () => newToken('cst'));
  expect(new Set(tokens).size).toBe(100);
  for (const token of tokens) expect(isToken('cst', token)).toBe(true);
  expect(isToken('cjt', newToken('cst'))).toBe(false);
  expect(isToken('cst', `${newToken('cst')}x`)).toBe(false);
  expect(isToken('cst', `cst_${'+'.repeat(43)}`)).toBe(false);
});

test('its hash is the SHA-256 of its characters', () => {
  expect(toHex(hashToken('abc'))).toBe('ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad');
});

test('compares bytes, of any lengths', () => {
  expect(sameBytes(hashToken('a'), hashToken('a'))).toBe(true);
  expect(sameBytes(hashToken('a'), hashToken('b'))).toBe(false);
  expect(sameBytes(hashToken('a'), new Uint8Array(3))).toBe(false);
});
