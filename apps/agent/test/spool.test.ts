// Owns the proof that a host's ledger is durable before it is believed, keeps one sound chain, and fails closed.
import { signLedgerReceipt } from '@custody/ledger/receipts';
import { emptyHead, type Head } from '@custody/ledger/chain';
import { parseLine, type LedgerEntry } from '@custody/ledger/entry';
import { verifyChain } from '@custody/ledger/verify';
import fc from 'fast-check';
import {
  appendFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Spool, type Place, type SpoolOptions } from '../src/spool.ts';
import {
  at,
  Clock,
  controlKey,
  controlSeed,
  folder,
  hostId,
  hostKey,
  settle,
  strangerSeed,
} from './support.ts';

const clock = new Clock();

function optionsOf(dir: string, more: Partial<SpoolOptions> = {}): SpoolOptions {
  const { wallClock, bootMs } = clock;
  const keys = { signingKey: hostKey, controlPlaneKey: controlKey };
  return { dir, hostId, ...keys, wallClock, bootMs, receiptKeepMs: 0, ...more };
}

async function openSpool(
  dir: string,
  more: Partial<SpoolOptions> = {},
): Promise<{ spool: Spool; replayed: LedgerEntry[] }> {
  const replayed: LedgerEntry[] = [];
  const spool = await Spool.open(optionsOf(dir, more), (entry) => void replayed.push(entry));
  onTestFinished(() => spool[Symbol.asyncDispose]());
  return { spool, replayed };
}

const note = (spool: Spool, openRuns = 0): Promise<number> =>
  spool.append('agent_started', { version: '0.1.0', openRuns });

async function fill(spool: Spool, count: number): Promise<void> {
  for (let index = 0; index < count; index += 1) await note(spool, index);
}

const segmentsOf = (dir: string): string[] =>
  readdirSync(dir)
    .filter((name) => name.endsWith('.ledger'))
    .toSorted();
const linesOf = (dir: string): string[] =>
  segmentsOf(dir).flatMap((name) => readFileSync(join(dir, name), 'utf8').split('\n').slice(0, -1));

/** Everything that a shipper would send after `place`. */
async function shipped(spool: Spool, from: Place): Promise<string[]> {
  const lines: string[] = [];
  let place = from;
  for (;;) {
    const batch = await spool.read(place);
    if (batch === undefined) return lines;
    lines.push(...Buffer.from(batch.bytes).toString().split('\n').slice(0, -1));
    place = batch.through;
  }
}

function receiptFor(head: Head, more: { host?: string; seed?: Uint8Array } = {}): Promise<string> {
  return signLedgerReceipt(more.seed ?? controlSeed, { host: more.host ?? hostId, ...head, at });
}

const headAt = (line: string): Head => {
  const { entry, hash } = parseLine(line);
  return { epoch: entry.epoch, seq: entry.seq, hash };
};

const atIndex = <T>(list: readonly T[], index: number): T => {
  const item = list.at(index);
  if (item === undefined) throw new Error(`no item ${index}`);
  return item;
};

/** Every file's datasync goes through here until the test ends. */
async function watchSync(dir: string, before: () => Promise<void>): Promise<{ count: () => number }> {
  const probe = await open(join(dir, 'probe'), 'w');
  const kind = Object.getPrototypeOf(probe) as { datasync: (this: unknown) => Promise<void> };
  await probe.close();
  const original = kind.datasync;
  let count = 0;
  kind.datasync = async function datasync(this: unknown): Promise<void> {
    count += 1;
    await before();
    await original.call(this);
  };
  onTestFinished(() => void (kind.datasync = original));
  return { count: () => count };
}

describe('an append', () => {
  it('resolves only after the disk has said that it has the line', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    const [asked, answered] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    await watchSync(dir, () => {
      asked.resolve();
      return answered.promise;
    });
    let resolved = false;
    const appended = note(spool).then((seq) => {
      resolved = true;
      return seq;
    });
    await asked.promise;
    await settle();
    expect(linesOf(dir)).toHaveLength(1);
    expect(resolved).toBe(false);
    answered.resolve();
    expect(await appended).toBe(1);
  });

  it('is in the file, whole, in the moment it resolves', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    for (let seq = 1; seq <= 5; seq += 1) {
      expect(await note(spool)).toBe(seq);
      expect(headAt(atIndex(linesOf(dir), -1))).toEqual(spool.head);
    }
    expect(statSync(join(dir, atIndex(segmentsOf(dir), 0))).mode & 0o777).toBe(0o600);
  });

  it('keeps the order of the calls when many come at once, with few syncs for all of them', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    const syncs = await watchSync(dir, async () => {});
    const order: number[] = [];
    const all = await Promise.all(
      Array.from({ length: 100 }, (_, index) =>
        note(spool, index).then((seq) => {
          order.push(seq);
          return seq;
        }),
      ),
    );
    const expected = Array.from({ length: 100 }, (_, index) => index + 1);
    expect(all).toEqual(expected);
    expect(order).toEqual(expected);
    expect(linesOf(dir).map((line) => parseLine(line).entry.body['openRuns'])).toEqual(
      expected.map((seq) => seq - 1),
    );
    expect(syncs.count()).toBeLessThan(10);
    expect(await verifyChain(linesOf(dir), { host: hostId, publicKey: hostKey.publicKey })).toMatchObject({
      ok: true,
    });
  });

  it('that could not be written fails, and every later one too: nothing may be released any more', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    // The first segment's name is taken: the segment cannot be made.
    mkdirSync(join(dir, '000001-000000000001.ledger'));
    const refusal = {
      code: 'unavailable',
      publicMessage: 'the ledger of this host cannot be written',
      next: expect.stringContaining(dir),
    };
    const group = await Promise.allSettled([note(spool), note(spool)]);
    expect(group.map((each) => each.status)).toEqual(['rejected', 'rejected']);
    rmSync(join(dir, '000001-000000000001.ledger'), { recursive: true });
    for (let count = 0; count < 3; count += 1) await expect(note(spool)).rejects.toMatchObject(refusal);
    expect(linesOf(dir)).toEqual([]);
  });

  it('whose sync failed is not acknowledged, and the ledger is closed for good', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    await note(spool);
    let broken = true;
    await watchSync(dir, async () => {
      if (broken) throw new Error('EIO');
    });
    await expect(note(spool)).rejects.toMatchObject({ code: 'unavailable' });
    broken = false;
    await expect(note(spool)).rejects.toMatchObject({ code: 'unavailable' });
    // What the next agent finds is a sound chain, with or without the entry that nobody was promised.
    const { replayed } = await openSpool(dir);
    expect(replayed.length).toBeGreaterThanOrEqual(1);
  });
});

describe('opening', () => {
  it('cuts a last line torn at any byte, and goes on where the whole lines end', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    await fill(spool, 3);
    const path = join(dir, atIndex(segmentsOf(dir), 0));
    const whole = readFileSync(path);
    const lastStart = whole.lastIndexOf(0x0a, whole.byteLength - 2) + 1;
    const cuts = fc.integer({ min: lastStart, max: whole.byteLength - 1 });
    await fc.assert(
      fc.asyncProperty(cuts, async (cut) => {
        writeFileSync(path, whole.subarray(0, cut));
        const torn = await openSpool(dir);
        expect(torn.replayed.map(({ seq }) => seq)).toEqual([1, 2]);
        expect(statSync(path).size).toBe(lastStart);
        expect(await note(torn.spool)).toBe(3);
        const verdict = await verifyChain(linesOf(dir), { host: hostId, publicKey: hostKey.publicKey });
        expect(verdict).toMatchObject({ ok: true, entries: 3 });
      }),
      { numRuns: 25, examples: [[lastStart], [lastStart + 1], [whole.byteLength - 1]] },
    );
  });

  it('goes on after a crash that left nothing but a torn first line', async () => {
    const dir = folder();
    writeFileSync(join(dir, '000001-000000000001.ledger'), '{"v":1,"ho');
    const { spool, replayed } = await openSpool(dir);
    expect(replayed).toEqual([]);
    expect(await note(spool)).toBe(1);
  });

  it('refuses damage before the last line, names the file, and leaves it as evidence', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    await fill(spool, 4);
    const path = join(dir, atIndex(segmentsOf(dir), 0));
    const whole = readFileSync(path);
    const lastStart = whole.lastIndexOf(0x0a, whole.byteLength - 2) + 1;
    await fc.assert(
      fc.asyncProperty(
        fc.nat({ max: lastStart - 1 }),
        fc.integer({ min: 1, max: 255 }),
        async (place, change) => {
          const damaged = Uint8Array.from(whole);
          damaged[place] = (damaged[place] ?? 0) ^ change;
          // A signature is not checked here: whoever verifies the chain finds it.
          fc.pre(!/^ [A-Za-z0-9_-]*$/.test(signaturePart(whole, place)));
          writeFileSync(path, damaged);
          await expect(Spool.open(optionsOf(dir), () => {})).rejects.toMatchObject({
            name: 'CustodyError',
            code: 'ledger_rejected',
            publicMessage: expect.stringContaining(path),
            next: expect.stringContaining('custody ledger verify --file'),
          });
          expect(readFileSync(path)).toEqual(Buffer.from(damaged));
        },
      ),
      { numRuns: 150 },
    );
  });

  it('refuses a ledger whose middle segment is missing or torn', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir, { segmentBytesMax: 1 });
    await fill(spool, 3);
    const middle = join(dir, atIndex(segmentsOf(dir), 1));
    const bytes = readFileSync(middle);
    writeFileSync(middle, bytes.subarray(0, -9));
    await expect(openSpool(dir)).rejects.toMatchObject({ code: 'ledger_rejected', publicMessage: /torn/ });
    rmSync(middle);
    await expect(openSpool(dir)).rejects.toMatchObject({
      code: 'ledger_rejected',
      publicMessage: /does not follow/,
    });
  });

  it('gives every entry on disk to replay, in order', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir, { segmentBytesMax: 700 });
    await fill(spool, 9);
    const { replayed, spool: again } = await openSpool(dir);
    expect(replayed.map(({ seq, body }) => [seq, body['openRuns']])).toEqual(
      Array.from({ length: 9 }, (_, index) => [index + 1, index]),
    );
    expect(again.head).toEqual(spool.head);
    expect(segmentsOf(dir).length).toBeGreaterThan(2);
  });

  it('of a ledger that was lost starts the next epoch of its chain, after what the control plane holds', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    await fill(spool, 3);
    const held = headAt(atIndex(linesOf(dir), 1));
    await spool.confirm(await receiptFor(held));
    for (const name of segmentsOf(dir)) rmSync(join(dir, name));
    const { spool: next, replayed } = await openSpool(dir);
    expect(replayed).toEqual([]);
    expect(await note(next)).toBe(1);
    expect(parseLine(atIndex(linesOf(dir), 0)).entry).toMatchObject({ epoch: 2, seq: 1, prev: held.hash });
    const verdict = await verifyChain(linesOf(dir), {
      host: hostId,
      publicKey: hostKey.publicKey,
      from: held,
    });
    expect(verdict).toMatchObject({ ok: true, newEpochs: 1 });
  });

  it('of a ledger that lost what the control plane holds never uses a number twice', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    await fill(spool, 5);
    const lines = linesOf(dir);
    await spool.confirm(await receiptFor(headAt(atIndex(lines, 3))));
    const path = join(dir, atIndex(segmentsOf(dir), 0));
    writeFileSync(path, `${lines.slice(0, 2).join('\n')}\n`);
    const { spool: next } = await openSpool(dir);
    expect(await note(next)).toBe(1);
    expect(next.head).toMatchObject({ epoch: 2, seq: 1 });
    expect(await shipped(next, next.confirmed)).toHaveLength(1);
    const { replayed } = await openSpool(dir);
    expect(replayed.map(({ epoch, seq }) => [epoch, seq])).toEqual([
      [1, 1],
      [1, 2],
      [2, 1],
    ]);
  });
});

/** The part of a line from its last space to `place`, when `place` lies in its signature; else the line's text. */
function signaturePart(whole: Buffer, place: number): string {
  const start = whole.lastIndexOf(0x0a, place === 0 ? 0 : place - 1) + 1;
  const end = whole.indexOf(0x0a, place);
  const cut = end - 87;
  return place > cut && place < end
    ? whole.toString('latin1', cut, place)
    : whole.toString('latin1', start, place + 1);
}

describe('a receipt', () => {
  it('frees whole segments that it covers, and never the newest', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir, { segmentBytesMax: 1 });
    await fill(spool, 5);
    const lines = linesOf(dir);
    expect(segmentsOf(dir)).toHaveLength(5);
    await spool.confirm(await receiptFor(headAt(atIndex(lines, 2))));
    expect(linesOf(dir)).toEqual(lines.slice(3));
    await spool.confirm(await receiptFor(headAt(atIndex(lines, 4))));
    expect(linesOf(dir)).toEqual(lines.slice(4));
    expect(spool.unconfirmed).toBe(0);
    const { spool: again } = await openSpool(dir);
    expect(again.confirmed.seq).toBe(5);
    expect(await note(again)).toBe(6);
  });

  it('frees nothing from where an open run stands, until that run is closed', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir, { segmentBytesMax: 1 });
    let lowest = 2;
    spool.pinFrom(() => lowest);
    await fill(spool, 5);
    const lines = linesOf(dir);
    await spool.confirm(await receiptFor(headAt(atIndex(lines, 3))));
    expect(linesOf(dir)).toEqual(lines.slice(1));
    lowest = Number.POSITIVE_INFINITY;
    await spool.confirm(await receiptFor(headAt(atIndex(lines, 4))));
    expect(linesOf(dir)).toEqual(lines.slice(4));
  });

  it('that is old or comes again changes nothing', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    await fill(spool, 3);
    const lines = linesOf(dir);
    await spool.confirm(await receiptFor(headAt(atIndex(lines, 2))));
    expect(await spool.confirm(await receiptFor(headAt(atIndex(lines, 0))))).toMatchObject({
      held: { seq: 1 },
      confirmed: { seq: 3 },
    });
    expect(await spool.confirm(await receiptFor(headAt(atIndex(lines, 2))))).toMatchObject({
      confirmed: { seq: 3 },
    });
  });

  it.each<[string, (lines: string[]) => Promise<string>]>([
    ['signed by a stranger', (lines) => receiptFor(headAt(atIndex(lines, 1)), { seed: strangerSeed })],
    ['for another host', (lines) => receiptFor(headAt(atIndex(lines, 1)), { host: 'h_0000000000000002' })],
    [
      'of another entry at the head',
      (lines) => receiptFor({ ...headAt(atIndex(lines, 3)), hash: 'a'.repeat(64) }),
    ],
    [
      'of another entry below the head',
      (lines) => receiptFor({ ...headAt(atIndex(lines, 1)), hash: 'a'.repeat(64) }),
    ],
    [
      'of an entry that this host has not written',
      (lines) => receiptFor({ ...headAt(atIndex(lines, 3)), seq: 9 }),
    ],
    [
      'of an epoch that this host has not begun',
      (lines) => receiptFor({ ...headAt(atIndex(lines, 3)), epoch: 2 }),
    ],
    ['that is none', async () => 'a.b.c'],
  ])('%s is refused, and frees nothing', async (_, make) => {
    const dir = folder();
    const { spool } = await openSpool(dir, { segmentBytesMax: 1 });
    await fill(spool, 4);
    const before = linesOf(dir);
    await expect(spool.confirm(await make(before))).rejects.toThrow();
    expect(linesOf(dir)).toEqual(before);
    expect(spool.confirmed.seq).toBe(0);
    expect(readdirSync(dir)).not.toContain('receipt');
    // It is a matter of the receipt, not of the ledger.
    expect(await note(spool)).toBe(5);
  });

  it('that was kept and then forged keeps the ledger from opening', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir);
    await fill(spool, 1);
    writeFileSync(
      join(dir, 'receipt'),
      await receiptFor(headAt(atIndex(linesOf(dir), 0)), { seed: strangerSeed }),
    );
    await expect(openSpool(dir)).rejects.toThrow();
  });
});

describe('reading', () => {
  it('pages through segments, at most one batch at a time, from any place', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir, { segmentBytesMax: 4_000 });
    await Promise.all(Array.from({ length: 10 }, (_, index) => note(spool, index)));
    await fill(spool, 20);
    const lines = linesOf(dir);
    expect(segmentsOf(dir).length).toBeGreaterThan(1);
    for (const after of [0, 1, 9, 10, 17, 29, 30]) {
      expect(await shipped(spool, { epoch: 1, seq: after })).toEqual(lines.slice(after));
    }
  });

  it('takes at most 256 entries at once', async () => {
    const { spool } = await openSpool(folder());
    await Promise.all(Array.from({ length: 300 }, () => note(spool)));
    expect((await spool.read(emptyHead))?.through).toEqual({ epoch: 1, seq: 256 });
    expect((await spool.read({ epoch: 1, seq: 256 }))?.through).toEqual({ epoch: 1, seq: 300 });
    expect(await spool.read({ epoch: 1, seq: 300 })).toBeUndefined();
  });

  it('starts again from what is confirmed when it is reset, also in the next agent', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir, { segmentBytesMax: 1 });
    await fill(spool, 4);
    const lines = linesOf(dir);
    await spool.confirm(await receiptFor(headAt(atIndex(lines, 1))));
    expect(await shipped(spool, spool.confirmed)).toEqual(lines.slice(2));
    const { spool: again } = await openSpool(dir);
    expect(await shipped(again, again.confirmed)).toEqual(lines.slice(2));
  });
});

it('any sequence of appends, receipts, crashes and starts keeps one sound chain of everything acknowledged', async () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('append' as const), count: fc.integer({ min: 1, max: 4 }) }),
    fc.record({ kind: fc.constant('confirm' as const), share: fc.double({ min: 0, max: 1, noNaN: true }) }),
    fc.record({ kind: fc.constant('crash' as const), torn: fc.uint8Array({ maxLength: 30 }) }),
    fc.record({ kind: fc.constant('reset' as const) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 14 }), async (steps) => {
      const dir = folder();
      const open_ = (): Promise<{ spool: Spool; replayed: LedgerEntry[] }> =>
        openSpool(dir, { segmentBytesMax: 900 });
      let { spool } = await open_();
      const sent: string[] = [];
      let acknowledged = 0;
      for (const one of steps) {
        if (one.kind === 'append') {
          const seqs = await Promise.all(Array.from({ length: one.count }, () => note(spool)));
          expect(seqs).toEqual(seqs.map((_, index) => acknowledged + 1 + index));
          acknowledged += one.count;
        } else if (one.kind === 'confirm') {
          sent.push(...(await shipped(spool, { epoch: 1, seq: sent.length })));
          const line = sent[Math.floor(one.share * (sent.length - 1))];
          if (line !== undefined) await spool.confirm(await receiptFor(headAt(line)));
        } else if (one.kind === 'crash') {
          await spool[Symbol.asyncDispose]();
          const last = segmentsOf(dir).at(-1);
          const torn = one.torn.map((byte) => (byte === 0x0a ? 0x20 : byte));
          if (last !== undefined) appendFileSync(join(dir, last), torn);
          const opened = await open_();
          spool = opened.spool;
          expect(opened.replayed.at(-1)?.seq ?? acknowledged).toBe(acknowledged);
        } else {
          expect((await shipped(spool, spool.confirmed)).length).toBe(spool.unconfirmed);
        }
        expect(spool.head?.seq ?? 0).toBe(acknowledged);
      }
      sent.push(...(await shipped(spool, { epoch: 1, seq: sent.length })));
      const verdict = await verifyChain(sent, { host: hostId, publicKey: hostKey.publicKey });
      expect(verdict).toMatchObject({ ok: true, entries: acknowledged });
    }),
    { numRuns: 25 },
  );
});

describe('a receipt that may wait', () => {
  it('is on disk when the spool was closed', async () => {
    const dir = folder();
    const { spool } = await openSpool(dir, { receiptKeepMs: 60_000 });
    await fill(spool, 2);
    const shippedLines = await shipped(spool, spool.confirmed);
    await spool.confirm(await receiptFor(headAt(atIndex(shippedLines, 1))));
    expect(readdirSync(dir)).not.toContain('receipt');
    await spool[Symbol.asyncDispose]();
    expect((await openSpool(dir)).spool.confirmed.seq).toBe(2);
  });
});
