// Tests that an entry has one spelling, and which entries are none.
import { describe, expect, test } from 'vitest';
import { Secret } from '@custody/core/secret';
import { canonicalObject, type JsonObject } from '../src/canonical.ts';
import { appendEntry, emptyHead, nextEpoch } from '../src/chain.ts';
import { encodeEntry, noHash, parseLine, type LedgerEntry } from '../src/entry.ts';
import { LedgerError } from '../src/errors.ts';
import { at, codeOf, fieldsOf, grow, key } from './support.ts';

const entry: LedgerEntry = { v: 1, epoch: 1, seq: 1, prev: noHash, ...fieldsOf(1) };

test.each<[string, Partial<Record<keyof LedgerEntry, unknown>>]>([
  ['v', { v: 2 }],
  ['host', { host: 'a b' }],
  ['host', { host: '-a' }],
  ['host', { host: 'a'.repeat(129) }],
  ['epoch', { epoch: 0 }],
  ['seq', { seq: 1.5 }],
  ['at', { at: '2026-11-21T09:30:00Z' }],
  ['at', { at: '2026-02-30T09:30:00.000Z' }],
  ['boot_ms', { boot_ms: -1 }],
  ['boot_ms', { boot_ms: -0 }],
  ['kind', { kind: 'Grant' }],
  ['kind', { kind: 'a"b' }],
  ['prev', { prev: 'AB'.repeat(32) }],
  ['prev', { prev: 'ab'.repeat(32) }],
  ['prev', { seq: 2 }],
  ['body', { body: [] }],
])('refuses an entry whose %s is out of range: %j', (member, change) => {
  const wrong = { ...entry, ...change } as LedgerEntry;
  expect(() => encodeEntry(wrong)).toThrow(`encode ledger entry: ${member} is out of range`);
});

describe('a body', () => {
  test.each([
    ['a fraction', { a: 0.5 }],
    ['a number that is not exact', { a: 2 ** 53 }],
    ['not a number', { a: NaN }],
    ['undefined', { a: undefined }],
    ['a hole', { a: Object.assign([], { length: 1 }) }],
    ['a date', { a: new Date(0) }],
    ['a secret', { a: Secret.fromUtf8('x') }],
    ['a function', { a: () => 1 }],
    ['a bigint', { a: 1n }],
    ['an unpaired surrogate', { a: '\ud800' }],
    ['an unpaired surrogate in a name', { '\udc00': 1 }],
  ])('cannot hold %s', (_, body) => {
    expect(codeOf(() => canonicalObject(body as JsonObject))).toBe('bad_entry');
  });

  test('cannot be deeper than its bound, nor go round in a circle', () => {
    const circle: Record<string, unknown> = {};
    circle['a'] = circle;
    expect(codeOf(() => canonicalObject(circle as JsonObject))).toBe('bad_entry');
    const nested = (depth: number): JsonObject => (depth === 1 ? {} : { a: nested(depth - 1) });
    expect(canonicalObject(nested(32))).toMatch(/^(\{"a":){31}\{\}\}+$/);
    expect(codeOf(() => canonicalObject(nested(33)))).toBe('bad_entry');
  });

  test('is spelled as RFC 8785 sorts it, whatever order it was made in', () => {
    // The names of RFC 8785 section 3.2.3.
    const body = { '\u20ac': 1, '\r': 2, '\ufb33': 3, '1': 4, '\u{1f600}': 5, '\u0080': 6, '\u00f6': 7 };
    expect(canonicalObject(body)).toBe(
      '{"\\r":2,"1":4,"\u0080":6,"\u00f6":7,"\u20ac":1,"\u{1f600}":5,"\ufb33":3}',
    );
    expect(canonicalObject(JSON.parse('{"__proto__":{"b":-0,"a":1}}') as JsonObject)).toBe(
      '{"__proto__":{"a":1,"b":0}}',
    );
  });
});

test('an entry is at most 65,536 bytes, and one of that size is read back', () => {
  const spare = 65_536 - encodeEntry({ ...entry, body: { t: '' } }).byteLength;
  const appended = appendEntry(undefined, fieldsOf(1, { body: { t: 'x'.repeat(spare) } }), key);
  expect(parseLine(appended.line).bytes.byteLength).toBe(65_536);
  const longer = fieldsOf(1, { body: { t: 'x'.repeat(spare + 1) } });
  expect(codeOf(() => appendEntry(undefined, longer, key))).toBe('entry_too_large');
});

test('bytes that are not UTF-8 are no entry, though they decode to one', () => {
  const [line = ''] = grow(undefined, 1, { body: { t: '\uFFFD' } }).lines;
  const bytes = Buffer.from(line);
  expect(parseLine(bytes).entry.body).toEqual({ t: '\uFFFD' });
  const where = bytes.indexOf('\uFFFD');
  bytes.set([0xf0, 0x9f, 0x98], where);
  expect(codeOf(() => parseLine(bytes))).toBe('malformed_line');
});

test('a head that is none is refused, and a new epoch keeps the last hash', () => {
  expect(codeOf(() => appendEntry({ epoch: 1, seq: -1, hash: noHash }, fieldsOf(1), key))).toBe(
    'bad_argument',
  );
  expect(codeOf(() => nextEpoch({ epoch: 1, seq: 1, hash: 'x' }))).toBe('bad_argument');
  const head = at(grow(emptyHead, 2).heads, -1);
  const [line = ''] = grow(nextEpoch(head), 1).lines;
  expect(parseLine(line).entry).toMatchObject({ epoch: 2, seq: 1, prev: head.hash });
});

test('no error quotes a body', () => {
  for (const line of ['{"v":CANARY', `{"CANARY":1} ${'A'.repeat(86)}`]) {
    try {
      parseLine(line);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(LedgerError);
      expect(String((error as LedgerError).stack)).not.toContain('CANARY');
    }
  }
});
