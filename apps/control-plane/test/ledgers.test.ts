// Owns the proof of ingestion: exactly once, in order, signed by its host, with gaps answered and forks put on record.
import type { Bus } from '@custody/bus/bus';
import { createFakeBroker, type FakeBroker } from '@custody/bus/fake-bus';
import { verifyLedgerReceipt, type LedgerReceipt } from '@custody/ledger/receipts';
import { parseLine } from '@custody/ledger/entry';
import { verifyChain } from '@custody/ledger/verify';
import { withDatabase } from '@custody/testkit/database';
import { ledgerReceiptMessage } from '@custody/wire/messages';
import { parseJson } from '@custody/wire/schema';
import { hostDown, hostMayPublish, hostMaySubscribe, hostUp, inboxPrefix } from '@custody/wire/subjects';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import {
  enrol,
  grantRequest,
  issuePolicy,
  ownEntries,
  sceneOf,
  until,
  type Scene,
  type TestHost,
} from './support.ts';

const t = withDatabase();
let names = 0;

interface Shipped {
  readonly s: Scene;
  readonly host: TestHost;
  readonly receipts: LedgerReceipt[];
  readonly ship: (...lines: string[]) => Promise<void>;
  /** Ships and waits until the control plane has answered. */
  readonly answered: (...lines: string[]) => Promise<LedgerReceipt>;
  /** Waits until everything up to this number is confirmed. */
  readonly confirmed: (seq: number) => Promise<void>;
  readonly held: () => Promise<string[]>;
}

async function shipping(): Promise<Shipped> {
  const s = await sceneOf(t.database);
  const broker: FakeBroker = createFakeBroker();
  const bus: Bus = broker.connect();
  const consumer = await s.ledgers.consume(bus);
  onTestFinished(() => consumer[Symbol.asyncDispose]());
  names += 1;
  const host = await enrol(s, `host-${names}`);
  const { id } = host.row;
  const up = broker.connect({
    allowPublish: hostMayPublish(id),
    allowSubscribe: hostMaySubscribe(id),
    inboxPrefix: inboxPrefix(id),
  });
  const receipts: LedgerReceipt[] = [];
  const messages: Uint8Array[] = [];
  await up.subscribe(hostDown(id, 'ledger'), ({ data }) => void messages.push(data));
  const verified = async (): Promise<number> => {
    for (const data of messages.splice(0)) {
      const { receipt } = parseJson(ledgerReceiptMessage, data, 'test');
      receipts.push(await verifyLedgerReceipt(s.authority.publicKey, receipt));
    }
    return receipts.length;
  };
  const ship = async (...lines: string[]): Promise<void> => {
    await up.publishDurable(hostUp(id, 'ledger'), Buffer.from(lines.join('')), { timeoutMs: 1_000 });
  };
  return {
    ...{ s, host, receipts, ship },
    answered: async (...lines) => {
      const before = await verified();
      await ship(...lines);
      await until(async () => (await verified()) > before);
      const last = receipts.at(-1);
      if (last === undefined) throw new Error('no receipt');
      return last;
    },
    confirmed: (seq) => until(async () => (await verified()) > 0 && receipts.at(-1)?.seq === seq),
    held: async () => (await s.ledgers.chain(id, 1, 0)).map(({ line }) => `${line}\n`),
  };
}

/** A batch that gets no answer: the next good one shows that it has been taken, and what it left. */
async function refused({ ship, answered, host, held }: Shipped, batch: string): Promise<void> {
  const before = await held();
  await ship(batch);
  const good = host.note(99);
  expect((await answered(good)).seq).toBe(before.length + 1);
  expect(await held()).toEqual([...before, good]);
}

describe('a batch', () => {
  it('is held byte for byte, and confirmed after it is', async () => {
    const it_ = await shipping();
    const lines = [it_.host.note(0), it_.host.note(1), it_.host.note(2)];
    expect(await it_.answered(...lines)).toMatchObject({
      host: it_.host.row.id,
      epoch: 1,
      seq: 3,
      hash: parseLine(lines[2] ?? '').hash,
    });
    expect(await it_.held()).toEqual(lines);
    const verdict = await verifyChain(await it_.held(), {
      host: it_.host.row.id,
      publicKey: it_.host.signing.publicKey,
    });
    expect(verdict).toMatchObject({ ok: true, entries: 3 });
  });

  it('that comes again is confirmed again, and added once', async () => {
    const it_ = await shipping();
    const lines = [it_.host.note(0), it_.host.note(1)];
    for (let times = 0; times < 3; times += 1) expect((await it_.answered(...lines)).seq).toBe(2);
    expect((await it_.answered(...lines, it_.host.note(2))).seq).toBe(3);
    expect(await it_.held()).toHaveLength(3);
  });

  it('sent many times at once is added once', async () => {
    const it_ = await shipping();
    const lines = Array.from({ length: 20 }, (_, index) => it_.host.note(index));
    await Promise.all(Array.from({ length: 6 }, () => it_.ship(...lines)));
    await it_.ship(it_.host.note(20));
    await it_.confirmed(21);
    expect(await it_.held()).toHaveLength(21);
  });

  it('after a gap adds nothing, and the answer is the head that is held', async () => {
    const it_ = await shipping();
    const lines = Array.from({ length: 6 }, (_, index) => it_.host.note(index));
    await it_.answered(...lines.slice(0, 2));
    expect((await it_.answered(...lines.slice(4))).seq).toBe(2);
    expect(await it_.held()).toEqual(lines.slice(0, 2));
    expect((await it_.answered(...lines.slice(2))).seq).toBe(6);
  });

  it('that overtakes the one before is added when that one is, and the host is not asked again', async () => {
    const it_ = await shipping();
    const lines = Array.from({ length: 6 }, (_, index) => it_.host.note(index));
    await it_.answered(...lines.slice(0, 2));
    // Two control planes take batches of one stream: which is kept first is chance.
    await it_.ship(...lines.slice(4));
    await it_.ship(...lines.slice(2, 4));
    await it_.confirmed(6);
    expect(it_.receipts.map(({ seq }) => seq)).toEqual([2, 4, 6]);
  });

  it('whatever batches come in whatever order, what is held is a prefix of the chain, and all of it in the end', async () => {
    const it_ = await shipping();
    const chain = Array.from({ length: 12 }, (_, index) => it_.host.note(index));
    const batch = fc.tuple(fc.nat({ max: 11 }), fc.integer({ min: 1, max: 12 }));
    await fc.assert(
      fc.asyncProperty(fc.array(batch, { minLength: 1, maxLength: 6 }), async (batches) => {
        for (const [from, count] of batches) await it_.ship(...chain.slice(from, from + count));
        const held = await it_.held();
        expect(held).toEqual(chain.slice(0, held.length));
      }),
      { numRuns: 10 },
    );
    await it_.ship(...chain);
    await it_.confirmed(12);
    expect(await it_.held()).toEqual(chain);
  });
});

describe('a batch is refused', () => {
  it("that another host's key signed", async () => {
    const [it_, other] = [await shipping(), await shipping()];
    await refused(it_, other.host.note(0));
  });

  it('that was changed in one byte', async () => {
    const it_ = await shipping();
    await it_.answered(it_.host.note(0));
    await it_.ship(it_.host.note(1).replace('"openRuns":1', '"openRuns":2'));
    // The changed entry had the next number: what follows it is a gap.
    expect((await it_.answered(it_.host.note(2))).seq).toBe(1);
    expect(await it_.held()).toHaveLength(1);
  });

  it.each<[string, string]>([
    ['that does not end with a line feed', '{"v":1}'],
    ['that is empty', '\n'],
    ['of garbage', 'garbage\n'],
    ['of bytes that are no text', '\ufffd\ufffd\n'],
    ['of too many entries', 'x\n'.repeat(300)],
  ])('%s', async (_, batch) => {
    await refused(await shipping(), batch);
  });

  it('of a host that is not enrolled, without stopping the others', async () => {
    const it_ = await shipping();
    await it_.s.db.prisma.joinToken.deleteMany({ where: { usedByHost: it_.host.row.id } });
    await it_.s.db.prisma.host.delete({ where: { id: it_.host.row.id } });
    await it_.ship(it_.host.note(0));
    const next = await shipping();
    expect((await next.answered(next.host.note(0))).seq).toBe(1);
    expect(await it_.held()).toEqual([]);
  });
});

describe('a fork', () => {
  it('is flagged, and on record with both hashes; what was held stays', async () => {
    const it_ = await shipping();
    const first = it_.host.note(0);
    const lines = [first, it_.host.note(1), it_.host.note(2)];
    await it_.answered(...lines);
    it_.host.rewindTo(first);
    const other = it_.host.note(77);
    expect((await it_.answered(other)).seq).toBe(3);
    expect(await it_.held()).toEqual(lines);
    const author = (await it_.s.ledgers.authors()).find((each) => each.author === it_.host.row.id);
    expect(author).toMatchObject({ forked: true, head: { seq: 3 } });
    expect(
      (await ownEntries(it_.s)).filter(({ body }) => body['hostId'] === it_.host.row.id).at(-1),
    ).toMatchObject({
      kind: 'ledger_forked',
      body: { chainEpoch: 1, seq: 2, held: parseLine(lines[1] ?? '').hash, offered: parseLine(other).hash },
    });
    expect((await it_.s.hosts.get(it_.host.row.name)).ledger).toMatchObject({ forked: true });
  });

  it('that is sent again and again is on record once', async () => {
    const it_ = await shipping();
    const lines = [it_.host.note(0), it_.host.note(1)];
    await it_.answered(...lines);
    it_.host.rewindTo(lines[0] ?? '');
    const other = it_.host.note(7);
    for (let times = 0; times < 3; times += 1) await it_.answered(other);
    const forks = (await ownEntries(it_.s)).filter(
      ({ kind, body }) => kind === 'ledger_forked' && body['hostId'] === it_.host.row.id,
    );
    expect(forks).toHaveLength(1);
  });

  it('by another history that goes on from the head is one too', async () => {
    const it_ = await shipping();
    const lines = [it_.host.note(0), it_.host.note(1)];
    await it_.answered(...lines);
    it_.host.rewindTo(lines[0] ?? '');
    it_.host.note(5);
    expect((await it_.answered(it_.host.note(6))).seq).toBe(2);
    expect((await it_.s.ledgers.authors()).find(({ author }) => author === it_.host.row.id)?.forked).toBe(
      true,
    );
  });
});

it('possession, the state of a grant and the receipt of a revocation follow from what the host wrote', async () => {
  const it_ = await shipping();
  const { s, host } = it_;
  await s.policies.apply('operator', issuePolicy);
  await s.secrets.put('operator', 'prod/stripe', 'utf8', { api_key: 'x' });
  const request = grantRequest();
  await s.grants.decide(host.row, request);
  const [grant] = (await s.grants.list({ active: true })).filter(({ runId }) => runId === request.runId);
  if (grant === undefined) throw new Error('no grant');
  const { grantId, runId } = grant;
  const { epoch } = await s.revocations.revoke('operator', { kind: 'grant', id: grantId }, 'leaked');
  const tree = { survivors: 1, processes: 2, containment: 'subreaper' as const };
  const row = { pid: 9, ppid: 1, startTicks: '7', how: 'killed:9', name: 'daemon' };
  await it_.answered(
    host.write('released', {
      ...{ grantId, runId, uid: 1000, pid: 1, subject: grant.subject, command: grant.command, cwd: '/srv' },
      ...{
        credentials: grant.credentials,
        ceilingMs: 1,
        ceilingBootMs: 1,
        policyRevision: 1,
        policyIds: [],
        containment: 'subreaper',
      },
    }),
    host.write('started', { grantId, runId, pid: 5, startTicks: '6' }),
  );
  expect(await s.grants.get(grantId)).toMatchObject({ state: 'running', root: { pid: 5 } });
  const waiting = s.revocations.get(epoch, 5_000);
  await it_.answered(
    host.write('ended', {
      grantId,
      runId,
      cause: 'revoked',
      emptyBootMs: 1,
      rows: [row],
      proof: 'keeper',
      ...tree,
    }),
    host.write('receipt', {
      grantId,
      runId,
      epoch,
      outcome: 'killed',
      heardAt: '2026-11-22T09:30:01.000Z',
      emptyMicros: 900,
      ...tree,
    }),
  );
  expect(await waiting).toMatchObject({
    proven: true,
    receipts: [{ state: 'killed', emptyMicros: 900, survivors: 1 }],
  });
  expect(await s.grants.get(grantId)).toMatchObject({ state: 'ended', ended: { cause: 'revoked' } });
  const rows = await s.ledgers.possession('prod/stripe', undefined, undefined);
  expect(rows.filter((each) => each.grantId === grantId)).toMatchObject([
    {
      host: host.row.name,
      subject: grant.subject,
      cause: 'revoked',
      rootPid: 5,
      processes: [row],
      entry: { epoch: 1, seq: 1 },
    },
  ]);
  expect(await s.ledgers.possession('prod/other', undefined, undefined)).toEqual([]);
});

describe('the tail', () => {
  const seqs = (tail: Awaited<ReturnType<Scene['ledgers']['tail']>>) =>
    tail.lines.map(({ line }) => parseLine(line).entry.seq);

  it('goes on after what was looked at, also where none of it was of the author asked for', async () => {
    const [mine, other] = [await shipping(), await shipping()];
    await mine.answered(mine.host.note(0), mine.host.note(1));
    const asked = { author: mine.host.row.id, waitMs: 0 };
    const newest = await mine.s.ledgers.tail({ ...asked, after: undefined });
    expect(seqs(newest)).toEqual([1, 2]);
    expect(await mine.s.ledgers.tail({ ...asked, after: newest.next })).toEqual({
      lines: [],
      next: newest.next,
    });
    await other.answered(other.host.note(0));
    const quiet = await mine.s.ledgers.tail({ ...asked, after: newest.next });
    expect(quiet).toEqual({ lines: [], next: expect.any(Number) });
    expect(quiet.next).toBeGreaterThan(newest.next);
    const everybody = await mine.s.ledgers.tail({ author: undefined, waitMs: 0, after: newest.next });
    expect(everybody.lines.map(({ author }) => author)).toEqual([other.host.row.id]);
  });

  it('waits for what comes, and skips nothing that commits late', async () => {
    const it_ = await shipping();
    const { ledgers } = it_.s;
    await it_.answered(it_.host.note(0));
    const { next } = await ledgers.tail({ author: undefined, after: undefined, waitMs: 0 });
    const slow = await t.database.pool.connect();
    try {
      // It takes a number and keeps it to itself for a while, as an ingestion does.
      await slow.query('BEGIN');
      await slow.query(
        `INSERT INTO ledger_entries (author, chain_epoch, seq, kind, at, boot_ms, hash, bytes, signature, body, ingested_at)
         SELECT author, chain_epoch, seq + 1, kind, at, boot_ms, hash, bytes, signature, body, ingested_at
           FROM ledger_entries WHERE author = $1`,
        [it_.host.row.id],
      );
      const waiting = ledgers.tail({ author: it_.host.row.id, after: next, waitMs: 20_000 });
      await it_.s.policies.apply('operator', `// late\n${issuePolicy}`);
      await slow.query('COMMIT');
      expect((await waiting).lines.map(({ ordinal }) => ordinal)).toEqual([next + 1]);
    } finally {
      slow.release();
    }
  });
});

it.each([
  ['seven hours fast', 7],
  ['seven hours slow', -7],
])('possession is in the time of the control plane where the clock of a host is %s', async (_, hours) => {
  const it_ = await shipping();
  const { s, host } = it_;
  await s.policies.apply('operator', issuePolicy);
  await s.secrets.put('operator', 'prod/stripe', 'utf8', { api_key: 'x' });
  const request = grantRequest();
  const granted = s.time;
  await s.grants.decide(host.row, request);
  const [grant] = (await s.grants.list({ active: true })).filter(({ runId }) => runId === request.runId);
  if (grant === undefined) throw new Error('no grant');
  const { grantId, runId } = grant;
  const later = (ms: number): Date => new Date(granted.getTime() + ms);
  const wrong = (ms: number, bootMs: number): { at: Date; bootMs: number } => ({
    at: later(ms + hours * 3_600_000),
    bootMs,
  });
  const tree = { survivors: 0, processes: 1, containment: 'subreaper' as const };
  const held = { uid: 1000, pid: 1, subject: grant.subject, command: grant.command, cwd: '/srv' };
  const terms = { ceilingMs: 1, ceilingBootMs: 1, policyRevision: 1, policyIds: [] };
  const { credentials } = grant;
  s.time = later(100);
  await it_.answered(
    host.write(
      'released',
      { grantId, runId, ...held, credentials, ...terms, containment: 'subreaper' },
      wrong(50, 1_000),
    ),
  );
  s.time = later(60_000);
  await it_.answered(
    host.write(
      'ended',
      { grantId, runId, cause: 'exit', emptyBootMs: 1, rows: [], proof: 'keeper', ...tree },
      wrong(30_050, 31_000),
    ),
  );
  const rows = await s.ledgers.possession('prod/stripe', undefined, undefined);
  const row = rows.find((each) => each.grantId === grantId);
  // Between grant and ingestion; and for as long as the boot-time clock of the host says.
  const from = hours < 0 ? granted : later(100);
  expect(row).toMatchObject({
    from: from.toISOString(),
    to: new Date(from.getTime() + 30_000).toISOString(),
  });
  const inWindow = await s.ledgers.possession('prod/stripe', later(1_000), later(2_000));
  expect(inWindow.map((each) => each.grantId)).toContain(grantId);
});
