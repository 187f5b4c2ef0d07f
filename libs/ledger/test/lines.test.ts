// Tests the cutting of bytes into lines: every piece size, the torn end, the oversized line.
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import fc from 'fast-check';
import { ledgerLineBytesMax } from '../src/entry.ts';
import { LedgerError } from '../src/errors.ts';
import { readLines, readLinesOfFile } from '../src/lines.ts';
import { verifyChain } from '../src/verify.ts';
import { grow, host, key } from './support.ts';

async function collect(
  source: AsyncIterable<Uint8Array>,
): Promise<{ lines: string[]; error: LedgerError | undefined }> {
  const lines: string[] = [];
  try {
    for await (const line of source) lines.push(Buffer.from(line).toString('latin1'));
  } catch (error) {
    if (!(error instanceof LedgerError)) throw error;
    return { lines, error };
  }
  return { lines, error: undefined };
}

test('gives the same lines however the bytes arrive', async () => {
  const piece = fc
    .array(fc.constantFrom('a', 'b', '\n'), { maxLength: 6 })
    .map((letters) => letters.join(''));
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 8 }), async (pieces) => {
      const { lines, error } = await collect(readLines(pieces.map((text) => Buffer.from(text))));
      const whole = pieces.join('');
      const end = whole.lastIndexOf('\n') + 1;
      expect(lines).toEqual(whole.slice(0, end).split('\n').slice(0, -1));
      if (end === whole.length) expect(error).toBeUndefined();
      else
        expect(error).toMatchObject({
          code: 'torn_line',
          position: { lineNumber: lines.length + 1, offsetBytes: end },
        });
    }),
  );
});

test('the longest line is given, and one byte more is refused with its place', async () => {
  const longest = 'x'.repeat(ledgerLineBytesMax - 1);
  expect((await collect(readLines([Buffer.from(`${longest}\n`)]))).lines).toEqual([longest]);
  for (const end of ['\n', '']) {
    const { lines, error } = await collect(readLines([Buffer.from(`ab\n${longest}x${end}`)]));
    expect(lines).toEqual(['ab']);
    expect(error).toMatchObject({ code: 'line_too_long', position: { lineNumber: 2, offsetBytes: 3 } });
  }
});

test('stops reading a line without end after its bound', async () => {
  let chunks = 0;
  const endless = function* (): Generator<Uint8Array> {
    for (;;) {
      chunks += 1;
      yield Buffer.alloc(10_000, 0x78);
    }
  };
  expect((await collect(readLines(endless()))).error?.code).toBe('line_too_long');
  expect(chunks).toBeLessThan(10);
});

test('a file torn by a crash is sound again once cut where the error says', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'custody-lines-'));
  try {
    const path = join(folder, 'spool');
    const { lines, heads } = grow(undefined, 4);
    await writeFile(path, lines.join('').slice(0, -10));
    const { error } = await collect(readLinesOfFile(path));
    expect(error?.code).toBe('torn_line');
    await truncate(path, error?.position?.offsetBytes);
    const verdict = await verifyChain(readLinesOfFile(path), { host, publicKey: key.publicKey });
    expect(verdict).toMatchObject({ ok: true, entries: 3, head: heads[2] });
  } finally {
    await rm(folder, { recursive: true });
  }
});
