// Tests the vectors of docs/spec/ledger.md both ways: written byte for byte, and read with the right verdict.
import { createHash, createPrivateKey, sign } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { appendEntry } from '../src/chain.ts';
import { parseLine } from '../src/entry.ts';
import { readLines } from '../src/lines.ts';
import { verifyChain } from '../src/verify.ts';
import { bytesOf, cases, type Result, type Vector } from './cases.ts';
import { at, key } from './support.ts';

const folder = new URL('vectors/', import.meta.url);
if (process.env['CUSTODY_GOLDEN'] === 'write') {
  for (const vector of cases) {
    writeFileSync(new URL(`${vector.name}.json`, folder), `${JSON.stringify(vector, undefined, 2)}\n`);
  }
}

const files = readdirSync(folder).map((name) => name.replace(/\.json$/, ''));
const read = (name: string): Vector =>
  JSON.parse(readFileSync(new URL(`${name}.json`, folder), 'utf8')) as Vector;

test('there is one file for each case, and no other', () => {
  expect(files.toSorted()).toEqual(cases.map(({ name }) => name).toSorted());
});

describe.each(files)('%s', (name) => {
  const vector = read(name);

  test('the encoder writes these bytes; if they changed, so did the format', () => {
    expect(vector).toEqual(JSON.parse(JSON.stringify(cases.find((made) => made.name === name))));
  });

  test.each([1, 7, 65_536])('is judged as it says, in pieces of %d bytes', async (chunkBytes) => {
    const bytes = bytesOf(vector.ledger);
    if (bytes.byteLength > 10_000 && chunkBytes === 1) return;
    expect(await judge(vector, bytes, chunkBytes)).toEqual(vector.result);
  });
});

test('a chain by the words of the spec alone has the same bytes', () => {
  const pkcs8 = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.alloc(32, 1)]);
  const privateKey = createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' });
  let prev = '0'.repeat(64);
  const vector = read('chain');
  for (const [index, line] of vector.ledger.entries()) {
    const seq = index + 1;
    const kind = seq % 2 === 0 ? 'grant.released' : 'run.ended';
    const entry =
      `{"v":1,"host":"host-1","epoch":1,"seq":${seq},"at":"2026-11-21T09:30:00.00${seq}Z","boot_ms":${1_000 + seq},` +
      `"kind":"${kind}","prev":"${prev}","body":{"n":${seq},"run":"r${seq}"}}`;
    const hash = createHash('sha256').update(`custody-ledger-entry-v1\n${entry}`).digest();
    const input = Buffer.concat([Buffer.from('custody-ledger-sign-v1\n'), hash]);
    expect(line).toBe(`${entry} ${sign(null, input, privateKey).toString('base64url')}\n`);
    prev = hash.toString('hex');
    expect(at(vector.hashes ?? [], index)).toBe(prev);
  }
});

test.each(['chain', 'body-of-every-shape'])(
  '%s: reading an entry and appending it anew gives the same line',
  (name) => {
    let head;
    for (const line of read(name).ledger) {
      const { host, at: written, boot_ms, kind, body } = parseLine(line as string).entry;
      const appended = appendEntry(head, { host, at: written, boot_ms, kind, body }, key);
      expect(Buffer.from(appended.line).toString('utf8')).toBe(line);
      head = appended.head;
    }
  },
);

async function judge(vector: Vector, bytes: Uint8Array, chunkBytes: number): Promise<Result> {
  const chunks = function* (): Generator<Uint8Array> {
    for (let from = 0; from < bytes.byteLength; from += chunkBytes)
      yield bytes.subarray(from, from + chunkBytes);
  };
  const verdict = await verifyChain(readLines(chunks()), {
    host: vector.host,
    publicKey: vector.public_key,
    ...(vector.from && { from: vector.from }),
    ...(vector.expect && { expect: vector.expect }),
  });
  if (verdict.ok)
    return { ok: true, entries: verdict.entries, new_epochs: verdict.newEpochs, head: verdict.head };
  const { epoch, seq, problem, entriesBefore } = verdict;
  expect(verdict.detail).toMatch(/^[a-z].*[^.]$/);
  return { ok: false, epoch, seq, problem, entries_before: entriesBefore };
}
