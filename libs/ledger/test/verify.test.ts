// Tests that any single damage to any chain is found, and named with the right first bad number.
import { describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { appendEntry, nextEpoch, type Head } from '../src/chain.ts';
import type { JsonObject } from '../src/canonical.ts';
import { LedgerError } from '../src/errors.ts';
import { readLines } from '../src/lines.ts';
import {
  rememberedEntriesMax,
  verifyChain,
  type BrokenChain,
  type LedgerLines,
  type SoundChain,
} from '../src/verify.ts';
import { at, fieldsOf, grow, host, key } from './support.ts';

const options = { host, publicKey: key.publicKey };
const damageKinds = ['edited', 'bad_signature', 'malformed', 'wrong_host'];

interface Made {
  readonly lines: Buffer[];
  readonly heads: Head[];
}

const anyJson = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 3 },
    fc.maxSafeInteger(),
    fc.string({ unit: 'grapheme' }),
    fc.boolean(),
    fc.constant(null),
    fc.array(tie('value'), { maxLength: 3 }),
    fc.dictionary(fc.string({ unit: 'grapheme' }), tie('value'), { maxKeys: 4 }),
  ),
})).value;
const anyBody = fc.dictionary(fc.string(), anyJson, { maxKeys: 4 }) as fc.Arbitrary<JsonObject>;

/** Chains of 1 to 8 entries in one epoch. */
const anyChain = fc.array(anyBody, { minLength: 1, maxLength: 8 }).map((bodies) => make(bodies, []));
/** Chains of 2 to 10 entries over several epochs. */
const anyEpochs = fc
  .tuple(
    fc.array(anyBody, { minLength: 2, maxLength: 10 }),
    fc.array(fc.nat(9), { minLength: 1, maxLength: 3 }),
  )
  .map(([bodies, breaks]) => make(bodies, breaks));

function make(bodies: readonly JsonObject[], breaksAfter: readonly number[]): Made {
  const lines: Buffer[] = [];
  const heads: Head[] = [];
  let head: Head | undefined;
  for (const [index, body] of bodies.entries()) {
    if (head && breaksAfter.includes(index)) head = nextEpoch(head);
    const appended = appendEntry(head, fieldsOf(index, { body }), key);
    lines.push(Buffer.from(appended.line));
    head = appended.head;
    heads.push(head);
  }
  return { lines, heads };
}

async function broken(lines: LedgerLines, more: { from?: Head; expect?: Head } = {}): Promise<BrokenChain> {
  const verdict = await verifyChain(lines, { ...options, ...more });
  if (verdict.ok) throw new Error('the damage was not found');
  return verdict;
}

async function sound(lines: LedgerLines, more: { from?: Head; expect?: Head } = {}): Promise<SoundChain> {
  const verdict = await verifyChain(lines, { ...options, ...more });
  if (!verdict.ok) throw new Error(`${verdict.problem} at ${verdict.seq}: ${verdict.detail}`);
  return verdict;
}

const placeOf = ({ epoch, seq }: { epoch: number; seq: number }): object => ({ epoch, seq });
/** The place after the first `count` entries, as the verifier sees it: it cannot know of a new epoch. */
const placeAfter = (chain: Made, count: number): object => {
  const head = count === 0 ? { epoch: 1, seq: 0 } : at(chain.heads, count - 1);
  return { epoch: head.epoch, seq: head.seq + 1 };
};

test('a chain is sound from every head and through every head', async () => {
  await fc.assert(
    fc.asyncProperty(anyEpochs, fc.nat(), fc.nat(), async (chain, a, b) => {
      const start = a % chain.lines.length;
      const seen = start + (b % (chain.lines.length - start));
      const from = start === 0 ? {} : { from: at(chain.heads, start - 1) };
      const verdict = await sound(chain.lines.slice(start), { ...from, expect: at(chain.heads, seen) });
      expect(verdict.head).toEqual(at(chain.heads, -1));
      expect(verdict.entries).toBe(chain.lines.length - start);
    }),
  );
});

describe('bytes', () => {
  test('any changed byte is found in its line', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(anyChain, anyEpochs),
        fc.nat(),
        fc.integer({ min: 1, max: 255 }),
        async (chain, where, flip) => {
          const bytes = Buffer.concat(chain.lines);
          const offset = where % bytes.byteLength;
          bytes[offset] = (bytes[offset] ?? 0) ^ flip;
          const index = lineAt(chain, offset);
          const verdict = await broken(readLines([bytes]));
          expect(damageKinds).toContain(verdict.problem);
          expect(placeOf(verdict)).toEqual(placeAfter(chain, index));
          expect(verdict.entriesBefore).toBe(index);
        },
      ),
      { numRuns: 400 },
    );
  });

  test('any byte taken out or put in is found in its line', async () => {
    await fc.assert(
      fc.asyncProperty(anyChain, fc.nat(), fc.option(fc.nat(255)), async (chain, where, added) => {
        fc.pre(added !== 0x0a); // A line feed put in is a line put in.
        const bytes = Buffer.concat(chain.lines);
        const offset = where % bytes.byteLength;
        const middle = added === null ? [] : [added];
        const rest = bytes.subarray(added === null ? offset + 1 : offset);
        const damaged = Buffer.concat([bytes.subarray(0, offset), Buffer.from(middle), rest]);
        const verdict = await broken(readLines([damaged]));
        expect(placeOf(verdict)).toEqual(placeAfter(chain, lineAt(chain, offset)));
      }),
      { numRuns: 300 },
    );
  });
});

describe('lines', () => {
  test('any run of lines taken out before the end is deleted', async () => {
    await fc.assert(
      fc.asyncProperty(anyChain, fc.nat(), fc.nat(), async (chain, a, b) => {
        fc.pre(chain.lines.length > 1);
        const start = a % (chain.lines.length - 1);
        const count = 1 + (b % (chain.lines.length - 1 - start));
        const verdict = await broken(chain.lines.toSpliced(start, count));
        expect(verdict).toMatchObject({ problem: 'deleted', epoch: 1, seq: start + 1, entriesBefore: start });
      }),
    );
  });

  test('any line taken out is found across epochs, at its number or at the start of the epoch it opened', async () => {
    await fc.assert(
      fc.asyncProperty(anyEpochs, fc.nat(), async (chain, a) => {
        const index = a % (chain.lines.length - 1);
        const verdict = await broken(chain.lines.toSpliced(index, 1));
        const gone = at(chain.heads, index);
        const opened = gone.seq === 1 && index > 0;
        const last = at(chain.heads, index + 1).epoch !== gone.epoch;
        // An epoch that vanished whole leaves only a jump.
        if (opened && last) expect(verdict.problem).toBe('wrong_epoch');
        else expect(verdict).toMatchObject({ problem: 'deleted', epoch: gone.epoch, seq: gone.seq });
      }),
    );
  });

  test('any copy of a line put anywhere is inserted', async () => {
    await fc.assert(
      fc.asyncProperty(anyChain, fc.nat(), fc.nat(), async (chain, a, b) => {
        const copied = a % chain.lines.length;
        const where = b % (chain.lines.length + 1);
        const verdict = await broken(chain.lines.toSpliced(where, 0, at(chain.lines, copied)));
        // A copy right before its original is the same bytes as one right after it.
        const index = where === copied ? where + 1 : where;
        expect(verdict).toMatchObject({ problem: 'inserted', seq: index + 1, entriesBefore: index });
      }),
    );
  });

  test('any two lines exchanged are swapped, across epochs too', async () => {
    await fc.assert(
      fc.asyncProperty(fc.oneof(anyChain, anyEpochs), fc.nat(), fc.nat(), async (chain, a, b) => {
        const [i, j] = [a % chain.lines.length, b % chain.lines.length].toSorted((x, y) => x - y);
        fc.pre(i !== undefined && j !== undefined && i !== j);
        const lines = chain.lines.with(i, at(chain.lines, j)).with(j, at(chain.lines, i));
        const verdict = await broken(lines);
        expect(verdict).toMatchObject({ problem: 'swapped', entriesBefore: i, ...placeAfter(chain, i) });
      }),
    );
  });

  test('any cut at the end is truncated, once somebody has seen further', async () => {
    await fc.assert(
      fc.asyncProperty(fc.oneof(anyChain, anyEpochs), fc.nat(), fc.nat(), async (chain, a, b) => {
        const kept = a % chain.lines.length;
        const seen = kept + (b % (chain.lines.length - kept));
        const lines = chain.lines.slice(0, kept);
        const verdict = await broken(lines, { expect: at(chain.heads, seen) });
        expect(verdict).toMatchObject({
          problem: 'truncated',
          entriesBefore: kept,
          ...placeAfter(chain, kept),
        });
        expect((await sound(lines)).entries).toBe(kept);
      }),
    );
  });

  test('an entry that the host itself wrote anew is found by the entry after it', async () => {
    await fc.assert(
      fc.asyncProperty(anyChain, fc.nat(), async (chain, a) => {
        fc.pre(chain.lines.length > 1);
        const index = a % (chain.lines.length - 1);
        const before = index === 0 ? undefined : at(chain.heads, index - 1);
        const anew = appendEntry(before, fieldsOf(index, { kind: 'written.anew' }), key);
        const verdict = await broken(chain.lines.with(index, Buffer.from(anew.line)));
        expect(verdict).toMatchObject({ problem: 'edited', seq: index + 1, entriesBefore: index });
      }),
    );
  });

  test('a history that parts anywhere is a split view to whoever saw the other', async () => {
    await fc.assert(
      fc.asyncProperty(anyChain, fc.nat(), async (chain, a) => {
        const parted = a % chain.lines.length;
        const before = parted === 0 ? undefined : at(chain.heads, parted - 1);
        const other = grow(before, 10, { kind: 'written.anew' });
        const seen = at(chain.heads, -1);
        const whole = [...chain.lines.slice(0, parted), ...other.lines];
        expect(await broken(whole, { expect: seen })).toMatchObject({ problem: 'split_view', seq: seen.seq });
        const after = other.lines.slice(chain.lines.length - parted);
        expect(await broken(after, { from: seen })).toMatchObject({
          problem: 'split_view',
          seq: seen.seq,
          entriesBefore: 0,
        });
        const goesBack = await broken([...chain.lines, ...other.lines]);
        expect(goesBack).toMatchObject({ problem: 'rolled_back', seq: parted + 1, entriesBefore: parted });
      }),
    );
  });
});

describe('beyond what is remembered', () => {
  const long = grow(undefined, rememberedEntriesMax + 50);

  test('a sound long chain is sound, and an old line repeated in it is inserted', async () => {
    expect((await sound(long.lines)).entries).toBe(long.lines.length);
    const copy = long.lines.toSpliced(rememberedEntriesMax + 20, 0, at(long.lines, 2));
    expect(await broken(copy)).toMatchObject({ problem: 'inserted', seq: rememberedEntriesMax + 21 });
  });

  test('a host that goes back further is rolled back', async () => {
    const other = grow(at(long.heads, 2), 3, { kind: 'written.anew' });
    expect(await broken([...long.lines, ...other.lines])).toMatchObject({ problem: 'rolled_back', seq: 4 });
  });
});

describe('the verifier', () => {
  const chain = grow(undefined, 3);

  test('takes strings with and without their line feed', async () => {
    expect((await sound(chain.lines.map((line) => line.trimEnd()))).entries).toBe(3);
  });

  test('closes its source when it stops early', async () => {
    let closed = false;
    const source = function* (): Generator<string> {
      try {
        yield 'no line';
        yield* chain.lines;
      } finally {
        closed = true;
      }
    };
    await broken(source());
    expect(closed).toBe(true);
  });

  test('lets the errors of its source through', async () => {
    const source = function* (): Generator<string> {
      yield at(chain.lines, 0);
      throw new Error('disk is gone');
    };
    await expect(verifyChain(source(), options)).rejects.toThrow('disk is gone');
  });

  test('says nothing out of a body', async () => {
    const lines = chain.lines.map((line) => line.replace('"run":"r2"', '"run":"CANARY"'));
    expect(JSON.stringify(await broken(lines))).not.toContain('CANARY');
    expect(JSON.stringify(await broken(['{"v":CANARY} x']))).not.toContain('CANARY');
  });

  test('refuses to judge by a host, key or head that is none', async () => {
    const bad = [
      { ...options, host: '' },
      { ...options, from: { epoch: 0, seq: 1, hash: 'x' } },
      { ...options, from: at(chain.heads, 2), expect: at(chain.heads, 1) },
    ];
    for (const wrong of bad) await expect(verifyChain([], wrong)).rejects.toThrow(LedgerError);
    await expect(verifyChain([], { ...options, publicKey: 'x' })).rejects.toMatchObject({
      code: 'bad_public_key',
    });
  });
});

/** The index of the line that holds this byte. */
function lineAt(chain: Made, offset: number): number {
  let end = 0;
  return chain.lines.findIndex((line) => offset < (end += line.byteLength));
}
