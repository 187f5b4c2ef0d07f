// Tests that base64url has one spelling per value.
import { expect, test } from 'vitest';
import fc from 'fast-check';
import { fromBase64url, toBase64url } from '../src/base64url.ts';

test('every value has exactly the spelling it is written with', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      expect(fromBase64url(toBase64url(bytes), bytes.byteLength)).toEqual(bytes);
    }),
  );
});

test.each(['QQ==', 'QR', 'Q', 'Q Q', 'QQ\n', '+/+/', 'QÄ', 'QQ.'])(
  'refuses the other spelling %j',
  (text) => {
    expect(fromBase64url(text)).toBeUndefined();
  },
);

test('refuses a value of another length than asked for', () => {
  expect(fromBase64url('AAAA', 4)).toBeUndefined();
});
