// Tests the bytes of a list of fields, with the vectors of docs/spec/sealing.md.
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import fc from 'fast-check';
import { decodeFields, encodeFields, payloadFieldsMax } from '../src/payload.ts';
import { codeOf, hex, toHex } from './support.ts';

interface Vectors {
  readonly good: { name: string; fields: [name: string, valueHex: string][]; hex: string }[];
  readonly bad: { name: string; hex: string }[];
}
const vectors = JSON.parse(readFileSync(new URL('vectors/fields.json', import.meta.url), 'utf8')) as Vectors;

test.each(vectors.good)('writes and reads the vector: $name', ({ fields, hex: bytes }) => {
  expect(toHex(encodeFields(new Map(fields.map(([name, value]) => [name, hex(value)]))))).toBe(bytes);
  expect([...decodeFields(hex(bytes))].map(([name, value]) => [name, toHex(value)])).toEqual(fields);
});

test.each(vectors.bad)('refuses the vector: $name', ({ hex: bytes }) => {
  expect(codeOf(() => decodeFields(hex(bytes)))).toBe('bad_payload');
});

const anyName = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 30 });
const anyFields = fc.uniqueArray(fc.tuple(anyName, fc.uint8Array({ maxLength: 300 })), {
  selector: ([name]) => name,
  maxLength: 20,
});

test('gives back any names and any bytes, and one list has one encoding', () => {
  fc.assert(
    fc.property(anyFields, (entries) => {
      const bytes = encodeFields(new Map(entries));
      expect(new Map(decodeFields(bytes))).toEqual(new Map(entries));
      expect(encodeFields(new Map(entries.toReversed()))).toEqual(bytes);
    }),
  );
});

test('reads no bytes but those it writes', () => {
  fc.assert(
    fc.property(anyFields, fc.nat(), fc.integer({ min: 1, max: 255 }), (entries, where, flip) => {
      const bytes = encodeFields(new Map(entries));
      const at = where % bytes.byteLength;
      bytes[at] = (bytes[at] ?? 0) ^ flip;
      let read: Map<string, Uint8Array> | undefined;
      expect([undefined, 'bad_payload']).toContain(codeOf(() => void (read = decodeFields(bytes))));
      if (read) expect(encodeFields(read)).toEqual(bytes);
    }),
  );
});

test('refuses every truncation', () => {
  const bytes = encodeFields(
    new Map([
      ['a', hex('00ff')],
      ['b', hex('')],
    ]),
  );
  for (let end = 0; end < bytes.byteLength; end++) {
    expect(codeOf(() => decodeFields(bytes.subarray(0, end)))).toBe('bad_payload');
  }
});

test('values are copies: wiping the buffer leaves them', () => {
  const bytes = encodeFields(new Map([['a', hex('0102')]]));
  const fields = decodeFields(bytes);
  bytes.fill(0);
  expect(fields.get('a')).toEqual(hex('0102'));
});

test('refuses what is past a bound, and names that are no text', () => {
  expect(codeOf(() => encodeFields(new Map([['a', new Uint8Array(65_537)]])))).toBe('too_large');
  expect(codeOf(() => encodeFields(new Map([['n'.repeat(513), new Uint8Array(1)]])))).toBe('too_large');
  expect(codeOf(() => encodeFields(new Map([['', new Uint8Array(1)]])))).toBe('bad_payload');
  expect(codeOf(() => encodeFields(new Map([['\ud800', new Uint8Array(1)]])))).toBe('bad_payload');
  const many = new Map(
    Array.from({ length: payloadFieldsMax + 1 }, (_, index) => [`f${index}`, new Uint8Array(0)]),
  );
  expect(codeOf(() => encodeFields(many))).toBe('too_large');
  const heavy = new Map(Array.from({ length: 129 }, (_, index) => [`f${index}`, new Uint8Array(65_536)]));
  expect(codeOf(() => encodeFields(heavy))).toBe('too_large');
});
