// Holds the cases behind test/vectors: one sound chain of each shape, one of each kind of damage.
import { appendEntry, emptyHead, nextEpoch, type Head } from '../src/chain.ts';
import { noHash } from '../src/entry.ts';
import { at, fieldsOf, grow, host, key, stranger } from './support.ts';

export type Piece = string | { readonly repeat: string; readonly times: number };

export type Result =
  | { readonly ok: true; readonly entries: number; readonly new_epochs: number; readonly head: Head }
  | {
      readonly ok: false;
      readonly epoch: number;
      readonly seq: number;
      readonly problem: string;
      readonly entries_before: number;
    };

export interface Vector {
  readonly name: string;
  readonly host: string;
  readonly public_key: string;
  readonly from?: Head;
  readonly expect?: Head;
  readonly ledger: readonly Piece[];
  readonly result: Result;
  readonly hashes?: readonly string[];
}

const first = grow(undefined, 6);
const second = grow(nextEpoch(at(first.heads, 5)), 3);
const otherFrom3 = grow(at(first.heads, 2), 5, { body: { other: true } });
const [l1 = '', l2 = '', l3 = '', l4 = '', l5 = '', l6 = ''] = first.lines;
const head6 = at(first.heads, 5);

const rich = appendEntry(
  undefined,
  fieldsOf(1, {
    body: {
      é: 'ü\u2028\u007f\n"\\/',
      '10': [1, -1, 0, Number.MAX_SAFE_INTEGER, true, null],
      '9': {},
      '\u{1F511}': '\u{1F511}',
      '\uFFFD': '\uFFFD',
      A: [],
      a: { b: { a: '', Z: '\u0001' } },
    },
  }),
  key,
);

function good(
  name: string,
  ledger: readonly Piece[],
  entries: number,
  head: Head,
  more: Partial<Vector> = {},
): Vector {
  const newEpochs = head.epoch - (more.from?.epoch ?? 1);
  return vector(name, ledger, { ok: true, entries, new_epochs: newEpochs, head }, more);
}

function bad(
  name: string,
  ledger: readonly Piece[],
  problem: string,
  seq: number,
  entriesBefore: number,
  more: Partial<Vector> & { epoch?: number } = {},
): Vector {
  const { epoch = 1, ...rest } = more;
  return vector(name, ledger, { ok: false, epoch, seq, problem, entries_before: entriesBefore }, rest);
}

function vector(name: string, ledger: readonly Piece[], result: Result, more: Partial<Vector>): Vector {
  return { name, host, public_key: key.publicKey, ...more, ledger, result };
}

const edited4 = l4.replace('"n":4', '"n":5');
/** Entry 4 written anew and signed by the host itself; the old 5 still follows. */
const rewritten4 = at(grow(at(first.heads, 2), 1, { kind: 'run.other' }).lines, 0);
/** Entry 4 of a history that parted before 3. */
const fromAnotherHistory4 = at(
  grow(at(grow(at(first.heads, 1), 1, { kind: 'run.other' }).heads, 0), 1).lines,
  0,
);
/** Entry 2 of another host and key, and this host's own entry 3 upon it. */
const foreign2 = grow(at(first.heads, 0), 1, { host: 'host-2' }, stranger);
const builtOn = [...foreign2.lines, ...grow(at(foreign2.heads, 0), 1).lines];
const flippedSignature = (line: string): string =>
  line.slice(0, -87) + (line.at(-87) === 'A' ? 'B' : 'A') + line.slice(-86);

export const cases: readonly Vector[] = [
  good('chain', first.lines, 6, head6, { hashes: first.heads.map((head) => head.hash) }),
  good('empty', [], 0, emptyHead),
  good('body-of-every-shape', [Buffer.from(rich.line).toString('utf8')], 1, rich.head),
  good('new-epoch', [...first.lines, ...second.lines], 9, at(second.heads, 2)),
  good('from-a-head', [l4, l5, l6], 3, head6, { from: at(first.heads, 2), expect: head6 }),
  good('through-an-expected-head', first.lines, 6, head6, { expect: at(first.heads, 3) }),
  good('cut-at-the-end-without-expect', [l1, l2, l3], 3, at(first.heads, 2)),

  bad('edited', [l1, l2, l3, edited4, l5, l6], 'edited', 4, 3),
  bad('edited-host', [l1, l2, l3, l4.replace('host-1', 'host-2'), l5, l6], 'edited', 4, 3),
  bad('edited-seq', [l1, l2, l3, l4.replace('"seq":4', '"seq":9'), l5, l6], 'edited', 4, 3),
  bad('edited-and-signed-by-the-host', [l1, l2, l3, rewritten4, l5, l6], 'edited', 4, 3),
  bad('edited-last-with-expect', [l1, l2, l3, edited4], 'edited', 4, 3, { expect: at(first.heads, 3) }),
  bad('edited-last-without-expect', [l1, l2, l3, edited4], 'bad_signature', 4, 3),

  bad('deleted', [l1, l2, l3, l5, l6], 'deleted', 4, 3),
  bad('deleted-several', [l1, l2, l6], 'deleted', 3, 2),
  bad('deleted-first', [l2, l3, l4], 'deleted', 1, 0),
  bad('deleted-before-a-new-epoch', [l1, l2, l3, l4, l5, ...second.lines], 'deleted', 6, 5),
  bad('deleted-start-of-an-epoch', [...first.lines, ...second.lines.slice(1)], 'deleted', 1, 6, { epoch: 2 }),

  bad('inserted-copy', [l1, l2, l3, l2, l4, l5, l6], 'inserted', 4, 3),
  bad('inserted-copy-of-a-later-line', [l1, l2, l3, l5, l4, l5, l6], 'inserted', 4, 3),
  bad(
    'inserted-copy-of-an-older-epoch',
    [...first.lines, at(second.lines, 0), l3, ...second.lines.slice(1)],
    'inserted',
    2,
    7,
    { epoch: 2 },
  ),
  bad(
    'inserted-by-a-stranger',
    [l1, l2, l3, at(grow(at(first.heads, 2), 1, {}, stranger).lines, 0), l4, l5],
    'inserted',
    4,
    3,
  ),
  bad('inserted-from-another-history', [l1, l2, l3, fromAnotherHistory4, l4, l5], 'inserted', 4, 3),

  bad('swapped', [l1, l2, l4, l3, l5, l6], 'swapped', 3, 2),
  bad('swapped-far', [l1, l5, l3, l4, l2, l6], 'swapped', 2, 1),

  bad('truncated', [l1, l2, l3], 'truncated', 4, 3, { expect: head6 }),
  bad('truncated-to-nothing', [], 'truncated', 1, 0, { expect: head6 }),
  bad('truncated-by-an-epoch', first.lines, 'truncated', 7, 6, { expect: at(second.heads, 0) }),

  bad('rolled-back', [...first.lines, ...otherFrom3.lines], 'rolled_back', 4, 3),
  bad('rolled-back-before-a-head', otherFrom3.lines, 'rolled_back', 4, 0, { from: head6 }),
  bad(
    'rolled-back-into-a-new-epoch',
    [...first.lines, ...grow(nextEpoch(at(first.heads, 3)), 2).lines],
    'rolled_back',
    5,
    4,
  ),
  bad(
    'rolled-back-past-an-expected-head',
    [l1, l2, l3, l4, ...grow(nextEpoch(at(first.heads, 3)), 2).lines],
    'rolled_back',
    5,
    4,
    {
      expect: head6,
    },
  ),

  bad('split-view', [l1, l2, l3, ...otherFrom3.lines], 'split_view', 6, 5, { expect: head6 }),
  bad(
    'rolled-back-over-an-epoch',
    [...first.lines, ...second.lines, ...grow({ ...at(first.heads, 4), epoch: 3, seq: 0 }, 2).lines],
    'rolled_back',
    6,
    5,
  ),
  bad(
    'rolled-back-to-where-an-epoch-began',
    [...first.lines, ...second.lines, ...grow({ ...head6, epoch: 3, seq: 0 }, 2).lines],
    'rolled_back',
    1,
    6,
    { epoch: 2 },
  ),
  bad('split-view-where-an-epoch-began', [...first.lines, ...second.lines], 'split_view', 1, 6, {
    epoch: 2,
    expect: { ...at(first.heads, 4), epoch: 2, seq: 0 },
  }),
  bad('split-view-after-a-head', otherFrom3.lines.slice(1), 'split_view', 4, 0, { from: at(first.heads, 3) }),

  bad('bad-signature', [l1, l2, l3, flippedSignature(l4), l5, l6], 'bad_signature', 4, 3),
  bad('bad-signature-last', [l1, l2, l3, flippedSignature(l4)], 'bad_signature', 4, 3, {
    expect: at(first.heads, 3),
  }),
  bad('bad-signature-wrong-key', first.lines, 'bad_signature', 1, 0, { public_key: stranger.publicKey }),

  bad('wrong-host', grow(undefined, 3, { host: 'host-2' }, stranger).lines, 'wrong_host', 1, 0),
  bad(
    'wrong-host-in-the-middle',
    [l1, l2, ...grow(undefined, 3, { host: 'host-2' }, stranger).lines.slice(2), l4],
    'wrong_host',
    3,
    2,
  ),
  bad(
    'wrong-host-of-the-same-key',
    [l1, l2, ...grow(at(first.heads, 1), 2, { host: 'host-2' }).lines],
    'wrong_host',
    3,
    2,
  ),

  bad('wrong-host-that-the-host-built-on', [l1, ...builtOn], 'wrong_host', 2, 1),

  bad(
    'wrong-epoch',
    [l1, l2, ...grow({ ...at(first.heads, 1), epoch: 4, seq: 0 }, 2).lines],
    'wrong_epoch',
    3,
    2,
  ),
  bad(
    'wrong-epoch-knows-no-head',
    [l1, l2, ...grow({ epoch: 2, seq: 0, hash: noHash }, 2).lines],
    'wrong_epoch',
    1,
    2,
    { epoch: 2 },
  ),
  bad('wrong-epoch-goes-back', [...first.lines, at(second.lines, 0), l3], 'wrong_epoch', 2, 7, { epoch: 2 }),

  bad('malformed-broken-line', [l1, l2, l3.slice(0, 50) + '\n', l4], 'malformed', 3, 2),
  bad('malformed-empty-line', [l1, l2, '\n', l3], 'malformed', 3, 2),
  bad('malformed-not-canonical', [l1, l2, l3.replace('"n":3', '"n": 3'), l4], 'malformed', 3, 2),
  bad('malformed-name-twice', [l1, l2, l3.replace('"n":3', '"n":3,"n":3'), l4], 'malformed', 3, 2),
  bad(
    'malformed-order-of-names',
    [l1, l2, l3.replace('"n":3,"run":"r3"', '"run":"r3","n":3'), l4],
    'malformed',
    3,
    2,
  ),
  bad('malformed-other-spelling-of-signature', [l1, l2, respell(l3), l4], 'malformed', 3, 2),
  bad('malformed-carriage-return', [l1, l2, l3.replace('\n', '\r\n'), l4], 'malformed', 3, 2),
  bad('malformed-torn-line', [l1, l2, l3.slice(0, -1)], 'malformed', 3, 2),
  bad('malformed-oversized-line', [l1, l2, { repeat: 'x', times: 65_625 }, '\n', l3], 'malformed', 3, 2),
];

/** The same 64 bytes, with an unused bit set in the last character. */
function respell(line: string): string {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  return `${line.slice(0, -2)}${alphabet[alphabet.indexOf(line.at(-2) ?? '') + 1]}\n`;
}

export function bytesOf(ledger: readonly Piece[]): Uint8Array {
  return Buffer.from(
    ledger.map((piece) => (typeof piece === 'string' ? piece : piece.repeat.repeat(piece.times))).join(''),
  );
}
