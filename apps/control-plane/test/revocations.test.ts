// Owns the proof of what stands and is lifted, of every state a receipt can have, of accounts asked for, and of bans.
import { accountAfterMs, banGraceMs, unreachableAfterMs } from '@custody/core/limits';
import { verifyJws } from '@custody/crypto/jws';
import { withDatabase } from '@custody/testkit/database';
import type { HostBody } from '@custody/wire/ledger';
import {
  accountClaims,
  accountMessage,
  grantClaims,
  signedTypes,
  type GrantRequest,
  type NamedTarget,
} from '@custody/wire/messages';
import { parseJson } from '@custody/wire/schema';
import { hostUp, inboxPrefix } from '@custody/wire/subjects';
import { createFakeBroker } from '@custody/bus/fake-bus';
import type { Bus } from '@custody/bus/bus';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { askForAccounts } from '../src/accounts.ts';
import { enforceBans } from '../src/bans.ts';
import { openDesk } from '../src/desk.ts';
import {
  captureLog,
  enrol,
  enrolmentBody,
  grantRequest,
  issuePolicy,
  ownEntries,
  sceneOf,
  until,
  type Scene,
  type TestHost,
} from './support.ts';

const t = withDatabase();
let s: Scene;
let host: TestHost;
let other: TestHost;
const start = new Date('2026-11-22T09:30:00.000Z');

beforeAll(async () => {
  s = await sceneOf(t.database);
  await s.policies.apply('operator', issuePolicy);
  await s.secrets.put('operator', 'prod/stripe', 'utf8', { api_key: 'v1' });
  await s.secrets.put('operator', 'prod/other', 'utf8', { api_key: 'v1' });
  host = await enrol(s, 'host-a');
  other = await enrol(s, 'host-b');
});
beforeEach(() => void (s.time = start));
afterEach(async () => {
  for (const { epoch, target } of await s.revocations.list(true))
    if (target.kind !== 'host' || target.ban !== true)
      await s.revocations.lift('operator', { epoch }, 'test');
});

async function decide(more: Partial<GrantRequest> = {}, on = host) {
  const { grant } = await s.grants.decide(on.row, grantRequest(more));
  return grantClaims.parse(await verifyJws(s.authority.publicKey, signedTypes.grant, grant));
}

const revoke = (target: NamedTarget) => s.revocations.revoke('operator', target, 'leaked');
const stripe = { kind: 'secret', path: 'prod/stripe' } as const;
const holding = (path: string): Partial<GrantRequest> => ({
  credentials: [{ name: 'KEY', path, field: 'api_key' }],
});

/** Ships lines as the host's own. */
async function ship(on: TestHost, ...lines: string[]): Promise<void> {
  const broker = createFakeBroker();
  const bus: Bus = broker.connect();
  const consumer = await s.ledgers.consume(bus);
  const acked = Promise.withResolvers<void>();
  const subject = hostUp(on.row.id, 'ledger');
  const sub = await bus.subscribe(`custody.v1.host.${on.row.id}.down.ledger`, () => acked.resolve());
  await bus.publishDurable(subject, Buffer.from(lines.join('')), { timeoutMs: 1_000 });
  await acked.promise;
  await sub[Symbol.asyncDispose]();
  await consumer[Symbol.asyncDispose]();
  await bus[Symbol.asyncDispose]();
}

const heardAt = '2026-11-22T09:30:01.000Z';
const receiptOf = (
  { grantId, runId }: { grantId: string; runId: string },
  epoch: number,
  more: Partial<HostBody<'receipt'>> = {},
): HostBody<'receipt'> => ({
  ...{
    grantId,
    runId,
    epoch,
    outcome: 'killed',
    heardAt,
    survivors: 0,
    processes: 1,
    containment: 'subreaper',
  },
  ...more,
});
const endedOf = (
  { grantId, runId }: { grantId: string; runId: string },
  cause: HostBody<'ended'>['cause'],
): HostBody<'ended'> => ({
  ...{ grantId, runId, cause, emptyBootMs: 1, survivors: 0, processes: 0, rows: [] },
  ...{ proof: 'keeper', containment: 'subreaper' },
});
const releasedOf = (claims: Awaited<ReturnType<typeof decide>>): HostBody<'released'> => {
  const { grantId, runId, subject, credentials, ceilingMs, policyRevision, policyIds, containment } = claims;
  return {
    ...{ grantId, runId, uid: 1000, pid: 1, subject, command: ['x'], cwd: '/', credentials, ceilingMs },
    ...{ ceilingBootMs: 1, policyRevision, policyIds, containment },
  };
};

describe('a standing revocation', () => {
  it.each<[string, NamedTarget, Partial<GrantRequest>, () => TestHost]>([
    ['a secret', stripe, holding('prod/other'), () => host],
    ['a version', { ...stripe, version: 1 }, holding('prod/other'), () => host],
    ['a subject', { kind: 'subject', subject: 'host-a/1000' }, { uid: 1001 }, () => host],
    ['a host', { kind: 'host', name: 'host-a' }, {}, () => other],
  ])('of %s refuses what it names and nothing else, until it is lifted', async (_, target, apart, on) => {
    const { epoch, standing } = await revoke(target);
    expect(standing).toBe(true);
    await expect(decide()).rejects.toMatchObject({
      code: 'revoked',
      publicMessage: expect.stringContaining(`(revocation ${epoch}: leaked)`),
      next: expect.stringContaining(`custody lift --epoch ${epoch}`),
    });
    await decide(apart, on());
    expect((await s.revocations.list(true)).map((each) => each.epoch)).toEqual([epoch]);
    const lifted = await s.revocations.lift('security', { target }, 'rotated');
    expect(lifted).toMatchObject([{ epoch, lifted: { by: 'security', reason: 'rotated' } }]);
    await decide();
    expect(await s.revocations.list(true)).toEqual([]);
    const own = await ownEntries(s);
    expect(own.findLast(({ kind }) => kind === 'lifted')?.body).toMatchObject({ epoch, by: 'security' });
    expect(own.findLast(({ kind }) => kind === 'denied')?.body).toMatchObject({ error: { code: 'revoked' } });
  });

  it('of a version lets the next version pass', async () => {
    await revoke({ ...stripe, version: 1 });
    await s.secrets.put('operator', 'prod/stripe', 'utf8', { api_key: 'v2' });
    expect((await decide()).credentials).toMatchObject([{ version: 2 }]);
  });

  it('stands until the last of several of one target is lifted; a second lift finds nothing', async () => {
    const first = await revoke(stripe);
    await revoke(stripe);
    await s.revocations.lift('operator', { epoch: first.epoch }, 'one');
    await expect(decide()).rejects.toMatchObject({ code: 'revoked' });
    expect(await s.revocations.lift('operator', { target: stripe }, 'rest')).toHaveLength(1);
    await decide();
    await expect(s.revocations.lift('operator', { target: stripe }, 'x')).rejects.toMatchObject({
      code: 'not_found',
    });
    await expect(s.revocations.lift('operator', { epoch: first.epoch }, 'x')).rejects.toMatchObject({
      code: 'not_found',
    });
  });

  it('lets no grant slip between: each is hit and expected, or refused', async () => {
    const asked = Array.from({ length: 40 }, () => decide().catch((error: unknown) => error));
    const [made, ...granted] = await Promise.all([revoke(stripe), ...asked]);
    const given = granted.flatMap((each) =>
      each instanceof Error ? [] : [each as { grantId: string; epoch: number }],
    );
    const expected = new Set((await s.revocations.get(made.epoch, 0)).receipts.map(({ grantId }) => grantId));
    for (const { grantId, epoch } of given) {
      expect(epoch).toBeLessThan(made.epoch);
      expect(expected.has(grantId)).toBe(true);
    }
    for (const each of granted) if (each instanceof Error) expect(each).toMatchObject({ code: 'revoked' });
    await expect(decide()).rejects.toMatchObject({ code: 'revoked' });
  });

  it.each<NamedTarget>([
    { kind: 'prefix', path: 'prod' },
    { kind: 'policy_revision', revision: 1 },
    { kind: 'all' },
  ])('is not what %j makes: it ends what there is', async (target) => {
    const { grantId } = await decide();
    const made = await revoke(target);
    expect(made.standing).toBe(false);
    expect(made.receipts.map((each) => each.grantId)).toContain(grantId);
    await decide();
    await expect(s.revocations.lift('operator', { epoch: made.epoch }, 'x')).rejects.toMatchObject({
      code: 'not_found',
    });
  });

  it('never again lets a run begin inside a run that anything has hit, lifted or not', async () => {
    const outer = await decide();
    const parent = { grantId: outer.grantId, remainingMs: 5_000 };
    const inner = await decide({ parent });
    await revoke(stripe);
    await s.revocations.lift('operator', { target: stripe }, 'rotated');
    for (const grantId of [outer.grantId, inner.grantId]) {
      await expect(decide({ parent: { ...parent, grantId } })).rejects.toMatchObject({
        code: 'run_unacceptable',
      });
    }
  });

  it.each<NamedTarget>([
    { kind: 'run', id: 'r_none0000' },
    { kind: 'host', name: 'none' },
    { kind: 'secret', path: 'prod/none' },
    { ...stripe, version: 99 },
    { kind: 'policy_revision', revision: 99 },
  ])('of what is not there, %j, is refused, and so is a look at it', async (target) => {
    const head = await s.revocations.head();
    await expect(revoke(target)).rejects.toMatchObject({ code: 'not_found' });
    await expect(s.revocations.preview(target)).rejects.toMatchObject({ code: 'not_found' });
    expect(await s.revocations.head()).toBe(head);
  });
});

describe('a receipt', () => {
  const one = async (grantId: string, epoch: number) => {
    const view = await s.revocations.get(epoch, 0);
    return { view, receipt: view.receipts.find((each) => each.grantId === grantId) };
  };

  it('is pending, then unreachable with its bound, then late; and proven whenever it comes', async () => {
    const claims = await decide({ ttlMs: 60_000 });
    const { epoch } = await revoke({ kind: 'grant', id: claims.grantId });
    expect((await one(claims.grantId, epoch)).receipt?.state).toBe('pending');
    s.time = new Date(start.getTime() + unreachableAfterMs);
    const away = await one(claims.grantId, epoch);
    expect(away.receipt).toMatchObject({ state: 'unreachable', proven: false });
    const bound = new Date(away.receipt?.boundAt ?? 0);
    expect(bound.getTime()).toBeGreaterThan(start.getTime() + 60_000);
    s.time = new Date(bound.getTime() + 1);
    expect(await one(claims.grantId, epoch)).toMatchObject({
      view: { proven: false, counts: { expected: 1, proven: 0, late: 1 } },
      receipt: { state: 'late', proven: false },
    });
    await ship(
      host,
      host.write('released', releasedOf(claims)),
      host.write('receipt', receiptOf(claims, epoch)),
    );
    expect(await one(claims.grantId, epoch)).toMatchObject({
      view: { proven: true },
      receipt: { state: 'late', proven: true, receivedAt: s.time.toISOString() },
    });
  });

  it.each<[string, (claims: Awaited<ReturnType<typeof decide>>, epoch: number) => string[], object]>([
    [
      'killed',
      (claims, epoch) => [
        host.write('released', releasedOf(claims)),
        host.write('receipt', receiptOf(claims, epoch, { signalledMicros: 5, emptyMicros: 9, escapes: 1 })),
      ],
      { state: 'killed', signalledMicros: 5, emptyMicros: 9, escapes: 1 },
    ],
    [
      'killed for an earlier revocation',
      (claims, epoch) => [
        host.write('released', releasedOf(claims)),
        host.write('receipt', receiptOf(claims, epoch - 1)),
      ],
      { state: 'killed' },
    ],
    [
      'ended before the host heard',
      (claims, epoch) => [
        host.write('released', releasedOf(claims)),
        host.write('ended', endedOf(claims, 'exit')),
        host.write('receipt', receiptOf(claims, epoch, { outcome: 'already_ended' })),
      ],
      { state: 'ended' },
    ],
    [
      'ended on record, of which the host had nothing more to say',
      (claims) => [host.write('released', releasedOf(claims)), host.write('ended', endedOf(claims, 'exit'))],
      { state: 'ended' },
    ],
    [
      'still being decided',
      (claims, epoch) => [
        host.write('ended', endedOf(claims, 'not_started')),
        host.write('receipt', receiptOf(claims, epoch, { outcome: 'already_ended' })),
      ],
      { state: 'never_released' },
    ],
    [
      'never known to the host',
      (claims, epoch) => {
        const { containment: _, ...body } = receiptOf(claims, epoch, { outcome: 'not_here' });
        return [host.write('receipt', body)];
      },
      { state: 'never_released' },
    ],
  ])('of a run that was %s says so', async (_, lines, expected) => {
    const claims = await decide();
    const { epoch } = await revoke({ kind: 'grant', id: claims.grantId });
    await ship(host, ...lines(claims, epoch));
    expect(await one(claims.grantId, epoch)).toMatchObject({
      view: { proven: true },
      receipt: { ...expected, proven: true },
    });
  });

  it('that says why it is not empty proves nothing, and gives way to the one that does', async () => {
    const claims = await decide();
    const { epoch } = await revoke({ kind: 'grant', id: claims.grantId });
    await ship(
      host,
      host.write('released', releasedOf(claims)),
      host.write('receipt', receiptOf(claims, epoch, { outcome: 'not_empty', why: 'stuck in the kernel' })),
    );
    expect((await one(claims.grantId, epoch)).receipt).toMatchObject({
      ...{ state: 'pending', proven: false, why: 'stuck in the kernel' },
    });
    await ship(host, host.write('receipt', receiptOf(claims, epoch)));
    const { receipt } = await one(claims.grantId, epoch);
    expect([receipt?.state, receipt?.why]).toEqual(['killed', undefined]);
  });

  it('of another host proves nothing, and ends no grant', async () => {
    const claims = await decide();
    const { epoch } = await revoke({ kind: 'grant', id: claims.grantId });
    await ship(
      other,
      other.write('receipt', receiptOf(claims, epoch)),
      other.write('ended', endedOf(claims, 'exit')),
    );
    expect((await one(claims.grantId, epoch)).receipt).toMatchObject({ state: 'pending', proven: false });
    expect((await s.grants.list({ active: true })).map(({ grantId }) => grantId)).toContain(claims.grantId);
  });

  it('is not expected of what had ended; a list once made never gets shorter', async () => {
    const [over, alive] = [await decide(), await decide()];
    await ship(host, host.write('released', releasedOf(over)), host.write('ended', endedOf(over, 'exit')));
    const made = await revoke({ kind: 'host', name: 'host-a' });
    const list = made.receipts.map(({ grantId }) => grantId);
    expect([list.includes(over.grantId), list.includes(alive.grantId)]).toEqual([false, true]);
    await ship(host, host.write('ended', endedOf(alive, 'exit')));
    s.time = new Date(start.getTime() + 30 * 24 * 3_600_000);
    expect((await s.revocations.get(made.epoch, 0)).counts.expected).toBe(list.length);
    const own = await ownEntries(s);
    expect(own.findLast(({ kind }) => kind === 'revoked')?.body).toMatchObject({ expected: list.length });
  });
});

describe('an account', () => {
  it('is asked of a host that owes a receipt and is there, signed, for its own grants alone', async () => {
    const [mine, theirs] = [await decide(), await decide({}, other)];
    const { epoch } = await revoke({ kind: 'prefix', path: 'prod' });
    await t.database.prisma.host.update({ where: { id: host.row.id }, data: { lastSeenAt: start } });
    const said: { subject: string; data: Uint8Array }[] = [];
    const options = {
      ...{ db: s.db, authority: s.authority, log: captureLog().log, now: () => s.time },
      bus: () => ({
        connected: true,
        publish: (subject: string, data: Uint8Array) => void said.push({ subject, data }),
      }),
    };
    {
      await using early = askForAccounts(options);
      early.nudge();
    }
    expect(said).toEqual([]);
    s.time = new Date(start.getTime() + accountAfterMs + 1);
    {
      await using asking = askForAccounts(options);
      asking.nudge();
    }
    expect(new Set(said.map(({ subject }) => subject))).toEqual(
      new Set([`custody.v1.host.${host.row.id}.down.account`]),
    );
    const { account } = parseJson(accountMessage, said[0]?.data ?? new Uint8Array(), 'test');
    const claims = accountClaims.parse(await verifyJws(s.authority.publicKey, signedTypes.account, account));
    expect(claims).toMatchObject({ hostId: host.row.id, epoch });
    const asked = claims.grants.map(({ grantId }) => grantId);
    expect([asked.includes(mine.grantId), asked.includes(theirs.grantId)]).toEqual([true, false]);
  });
});

describe('a ban', () => {
  it('marks the host, ends its join tokens, refuses it, is pushed when it has had its time, and frees the name', async () => {
    const banned = await enrol(s, 'host-z');
    const { token } = await s.hosts.createToken('operator', { name: 'host-z' });
    await decide({}, banned);
    const pushed: Record<string, number>[] = [];
    const bans = () =>
      enforceBans({
        ...{ db: s.db, now: () => s.time, log: captureLog().log, joined: () => true },
        push: async (revocations) => void pushed.push({ ...revocations }),
      });
    const made = await s.revocations.ban('security', 'host-z', 'stolen');
    expect(made).toMatchObject({
      target: { kind: 'host', id: banned.row.id, ban: true },
      counts: { expected: 1 },
    });
    await expect(s.revocations.ban('security', 'host-z', 'again')).rejects.toMatchObject({
      code: 'conflict',
    });
    await expect(s.revocations.lift('security', { epoch: made.epoch }, 'x')).rejects.toMatchObject({
      code: 'conflict',
    });
    await expect(decide({}, banned)).rejects.toMatchObject({
      code: 'revoked',
      next: expect.stringContaining('enrolled again'),
    });
    await expect(s.hosts.enroll(enrolmentBody(token, undefined).body)).rejects.toMatchObject({
      code: 'join_token_expired',
    });
    {
      await using working = bans();
      working.nudge();
    }
    expect(pushed).toEqual([]);
    // Its last entry is as good as its time.
    s.time = new Date(start.getTime() + 5);
    await ship(banned, banned.write('banned', { epoch: made.epoch, openRuns: 0, wiped: [] }));
    {
      await using working = bans();
      working.nudge();
    }
    expect(pushed).toEqual([{ [banned.row.busUserKey]: Math.ceil(start.getTime() / 1_000) }]);
    const again = await enrol(s, 'host-z');
    expect((await s.hosts.get('host-z')).hostId).toBe(again.row.id);
    await decide({}, again);
  });

  it('of a host that says nothing is pushed when its time is over, once, and again after a failure', async () => {
    await enrol(s, 'host-y');
    await s.revocations.ban('security', 'host-y', 'lost');
    const { busUserKey } = await s.hosts.byName('host-y');
    const pushed: Record<string, number>[] = [];
    let failing = true;
    let looks = 0;
    await using working = enforceBans({
      ...{ db: s.db, now: () => s.time, log: captureLog().log },
      joined: () => (looks += 1) > 0,
      push: async (revocations) => {
        if (failing) throw new Error('the server is away');
        pushed.push({ ...revocations });
      },
    });
    s.time = new Date(start.getTime() + banGraceMs);
    working.nudge();
    await new Promise((resolve) => setImmediate(resolve));
    failing = false;
    await until(() => {
      working.nudge();
      return pushed.length > 0;
    });
    // When it looks for the second time from here, it has come to the end of the first.
    const looked = looks;
    await until(() => {
      working.nudge();
      return looks > looked + 1;
    });
    expect(pushed).toHaveLength(1);
    expect(pushed[0]).toHaveProperty(busUserKey);
  });

  it('leaves a host the log and its ledger, and nothing else', async () => {
    const banned = await enrol(s, 'host-x');
    await s.revocations.ban('security', 'host-x', 'lost');
    const broker = createFakeBroker();
    const bus = broker.connect({ inboxPrefix: inboxPrefix(banned.row.id) });
    await using _desk = await openDesk(broker.connect(), { ...s, now: () => s.time, log: captureLog().log });
    const ask = async (what: 'policy' | 'revocations' | 'grant', body: object): Promise<unknown> => {
      const sent = Buffer.from(JSON.stringify(body));
      const { data } = await bus.request(hostUp(banned.row.id, what), sent, { timeoutMs: 1_000 });
      return JSON.parse(Buffer.from(data).toString());
    };
    expect(await ask('policy', { have: 0 })).toMatchObject({ ok: false, error: { code: 'revoked' } });
    expect(await ask('grant', grantRequest())).toMatchObject({ ok: false, error: { code: 'revoked' } });
    expect(await ask('revocations', { after: 0 })).toMatchObject({ ok: true });
  });
});
