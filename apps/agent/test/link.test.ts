// Owns the proof of the link: subscribe, catch up, serve; each revocation once and in order, whatever the bus brings.
import type { RevocableGrant } from '@custody/core/revocation';
import { signJws } from '@custody/crypto/jws';
import { linkJoinMsMax, revocationsKeptMax } from '@custody/core/limits';
import { signedTypes, type GrantRequest, type RevocationClaims } from '@custody/wire/messages';
import { encodeJson } from '@custody/wire/schema';
import { fleet } from '@custody/wire/subjects';
import fc from 'fast-check';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { CustodyError } from '@custody/core/errors';
import { Link } from '../src/link.ts';
import {
  at,
  captureLog,
  claimsOf,
  Clock,
  ControlPlane,
  controlKey,
  controlSeed,
  folder,
  grantId,
  hostId,
  settle,
  strangerSeed,
  until,
} from './support.ts';

interface Opened {
  readonly cp: ControlPlane;
  readonly link: Link;
  readonly applied: RevocationClaims[];
  readonly served: () => number;
  readonly cursorFile: string;
  readonly log: () => string;
}

/** A link that has been started. `cursor`: what an earlier agent left. */
async function openLink(
  options: { cp?: ControlPlane; cursor?: number; dir?: string; openSince?: number } = {},
): Promise<Opened> {
  const cp = options.cp ?? (await ControlPlane.open());
  const cursorFile = join(options.dir ?? folder(), 'cursor');
  if (options.cursor !== undefined) writeFileSync(cursorFile, `${options.cursor}\n`);
  const clock = new Clock();
  const { log, text } = captureLog();
  const applied: RevocationClaims[] = [];
  let served = 0;
  const link = new Link({
    hostId,
    controlPlaneKey: controlKey,
    cursorFile,
    bootMs: clock.bootMs,
    wallClock: clock.wallClock,
    log,
    onRevocation: (claims) => void applied.push(claims),
    onFresh: () => {},
    onLogChange: async () => 0,
    newNonce: nonces(),
    settled: async () => {},
    openSince: () => options.openSince ?? Number.POSITIVE_INFINITY,
  });
  onTestFinished(() => link[Symbol.asyncDispose]());
  await link.start(cp.hostBus, () => void (served += 1));
  return { cp, link, applied, served: () => served, cursorFile, log: text };
}

async function openReady(options: Parameters<typeof openLink>[0] = {}): Promise<Opened> {
  const opened = await openLink(options);
  await opened.link.whenReady();
  return opened;
}

const nonces = (): (() => string) => {
  let count = 0;
  return () => `n_${String((count += 1)).padStart(32, '0')}`;
};

const epochs = (applied: readonly RevocationClaims[]): number[] => applied.map(({ epoch }) => epoch);

const request: GrantRequest = {
  version: 1,
  requestId: 'q_00000001',
  runId: 'r_00000001',
  uid: 1000,
  gid: 1000,
  pid: 7,
  command: ['node'],
  cwd: '/',
  credentials: [],
  containment: 'subreaper',
};

describe('start', () => {
  it('applies what was missed, then the policy, and only then serves', async () => {
    const cp = await ControlPlane.open();
    for (let n = 1; n <= 3; n += 1) await cp.revoke(grantId(n));
    const { link, applied, served } = await openLink({ cp, cursor: 1 });
    expect(link.state).toBe('catching_up');
    expect(served()).toBe(0);
    await link.whenReady();
    expect(epochs(applied)).toEqual([2, 3]);
    expect(cp.asked).toEqual(['revocations 1', 'policy']);
    expect([link.state, link.cursor, link.policy?.revision, served()]).toEqual(['ready', 3, 1, 1]);
  });

  it('is subscribed before it asks: what is broadcast between the two is not lost', async () => {
    const cp = await ControlPlane.open();
    await cp.revoke(grantId(1));
    let broadcast = false;
    cp.pulled = () => {
      // The log as it was read, and then, before the answer is out, the next entry is broadcast.
      const [first = ''] = cp.log;
      if (!broadcast) {
        broadcast = true;
        void cp.revoke(grantId(2)).then((entry) => cp.broadcast(entry));
      }
      return { entries: cp.log.length === 1 ? [first] : cp.log.slice(0), head: cp.log.length };
    };
    const { link, applied } = await openReady({ cp, cursor: 0 });
    await until(() => link.cursor === 2);
    expect(epochs(applied)).toEqual([1, 2]);
  });

  it('of a fresh host begins at the head: no older entry can hit a grant that it never had', async () => {
    const cp = await ControlPlane.open();
    for (let n = 1; n <= 5; n += 1) await cp.revoke(grantId(n));
    const { link, applied, cursorFile } = await openReady({ cp });
    expect(applied).toEqual([]);
    expect(link.cursor).toBe(5);
    expect(readFileSync(cursorFile, 'utf8')).toBe('5 log_00000001 first\n');
    cp.broadcast(await cp.revoke(grantId(6)));
    await until(() => applied.length === 1);
    expect(epochs(applied)).toEqual([6]);
  });

  it('goes on from the cursor that the last agent left', async () => {
    const dir = folder();
    const cp = await ControlPlane.open();
    const first = await openReady({ cp, dir });
    cp.broadcast(await cp.revoke(grantId(1)));
    await until(
      () =>
        existsSync(first.cursorFile) && readFileSync(first.cursorFile, 'utf8') === '1 log_00000001 first\n',
    );
    await first.link[Symbol.asyncDispose]();
    await cp.revoke(grantId(2));
    const second = await openReady({ cp, dir });
    expect(epochs(second.applied)).toEqual([2]);
    expect(readFileSync(second.cursorFile, 'utf8')).toBe('2 log_00000001 first\n');
  });

  it.each(['', 'abc', '1', '-1\n', '1e3\n', '9'.repeat(17) + '\n'])(
    'refuses a cursor file that holds %j',
    async (text) => {
      const dir = folder();
      writeFileSync(join(dir, 'cursor'), text);
      await expect(openLink({ dir })).rejects.toMatchObject({ code: 'internal' });
    },
  );

  it('pulls page after page until it stands at the head', async () => {
    const cp = await ControlPlane.open();
    cp.pageMax = 2;
    for (let n = 1; n <= 5; n += 1) await cp.revoke(grantId(n));
    const { applied } = await openReady({ cp, cursor: 0 });
    expect(epochs(applied)).toEqual([1, 2, 3, 4, 5]);
    expect(cp.asked.slice(0, 3)).toEqual(['revocations 0', 'revocations 2', 'revocations 4']);
  });
});

describe('a broadcast', () => {
  it('over a gap makes it pull what is missing, in order', async () => {
    const { cp, applied, link } = await openReady({ cursor: 0 });
    await cp.revoke(grantId(1));
    await cp.revoke(grantId(2));
    cp.broadcast(await cp.revoke(grantId(3)));
    await until(() => link.cursor === 3);
    expect(epochs(applied)).toEqual([1, 2, 3]);
  });

  it.each<[string, (cp: ControlPlane) => Promise<Uint8Array>]>([
    [
      'signed by a stranger',
      async () => encodeJson({ entry: await signed(strangerSeed, signedTypes.revocation) }),
    ],
    [
      'that is another kind of statement',
      async () => encodeJson({ entry: await signed(controlSeed, signedTypes.policy) }),
    ],
    [
      'whose claims are no entry',
      async () => encodeJson({ entry: await signJws(controlSeed, signedTypes.revocation, { epoch: 1 }) }),
    ],
    ['that was changed', async (cp) => encodeJson({ entry: changed(await cp.revoke(grantId(1))) })],
    ['that is no JSON', async () => Buffer.from('{"entry":')],
    ['that is no UTF-8', async () => Uint8Array.of(0xff, 0xfe)],
    ['with more than an entry', async (cp) => encodeJson({ entry: await cp.revoke(grantId(1)), and: 1 })],
  ])('%s changes nothing, and the next good one is applied', async (_, make) => {
    const { cp, link, applied } = await openReady({ cursor: 0 });
    cp.bus.publish(fleet('revocation'), await make(cp));
    await settle();
    expect(applied).toEqual([]);
    expect(link.cursor).toBe(0);
    const good = cp.log[0] ?? (await cp.revoke(grantId(1)));
    cp.broadcast(good);
    await until(() => applied.length === 1);
    expect(link.state).toBe('ready');
  });

  it('replayed, reordered, doubled or forged: every entry is applied exactly once, in order', async () => {
    const heard = fc.array(fc.record({ epoch: fc.integer({ min: 1, max: 6 }), forged: fc.boolean() }), {
      maxLength: 20,
    });
    await fc.assert(
      fc.asyncProperty(heard, async (broadcasts) => {
        const { cp, link, applied } = await openReady({ cursor: 0 });
        for (let n = 1; n <= 6; n += 1) await cp.revoke(grantId(n));
        for (const { epoch, forged } of broadcasts) {
          const entry = cp.log[epoch - 1] ?? '';
          cp.broadcast(forged ? changed(entry) : entry);
        }
        link.catchUp();
        await until(() => link.cursor === 6 && link.state === 'ready');
        expect(epochs(applied)).toEqual([1, 2, 3, 4, 5, 6]);
        await link[Symbol.asyncDispose]();
      }),
      { numRuns: 20 },
    );
  });
});

describe('a log that cannot be followed', () => {
  it.each<[string, (cp: ControlPlane) => { entries: string[]; head: number }]>([
    ['whose entries begin after a gap', (cp) => ({ entries: cp.log.slice(1), head: 3 })],
    ['whose entries are forged', (cp) => ({ entries: cp.log.map(changed), head: 3 })],
    ['that gives no entries', () => ({ entries: [], head: 3 })],
    ['that gives the same page again', (cp) => ({ entries: cp.log.slice(0, 1), head: 3 })],
  ])('%s is an error, not a loop, and nothing is served', async (_, answer) => {
    const cp = await ControlPlane.open();
    for (let n = 1; n <= 3; n += 1) await cp.revoke(grantId(n));
    cp.pulled = () => answer(cp);
    const { link, served } = await openLink({ cp, cursor: 0 });
    await expect(link.whenReady()).rejects.toMatchObject({ code: 'control_plane_unreachable' });
    await settle();
    expect(link.state).toBe('down');
    expect(served()).toBe(0);
    expect(cp.asked.length).toBeLessThan(6);
    cp.pulled = undefined;
    await link.whenReady();
    expect([link.state, link.cursor]).toEqual(['ready', 3]);
  });
});

describe('whenReady', () => {
  it('fails at once while the bus is down, and says that nothing was released', async () => {
    const { cp, link } = await openReady();
    cp.broker.setReachable(false);
    expect(link.state).toBe('down');
    await expect(link.whenReady()).rejects.toMatchObject({
      code: 'control_plane_unreachable',
      publicMessage: expect.stringContaining('its message bus does not answer'),
      next: expect.stringContaining('nothing was released'),
    });
  });

  describe('of an agent that has just started', () => {
    const justOpened = (): { link: Link; clock: Clock } => {
      const { log } = captureLog();
      const clock = new Clock();
      const link = new Link({
        ...{ hostId, controlPlaneKey: controlKey, cursorFile: join(folder(), 'c'), log },
        ...{ bootMs: clock.bootMs, wallClock: clock.wallClock, onRevocation: () => {} },
        ...{ onFresh: () => {}, onLogChange: async () => 0, newNonce: nonces() },
        ...{ settled: async () => {}, openSince: () => Number.POSITIVE_INFINITY },
      });
      onTestFinished(() => link[Symbol.asyncDispose]());
      return { link, clock };
    };
    const unreachable = { code: 'control_plane_unreachable' };

    it('waits until the bus is joined, and what was missed applied', async () => {
      const { link } = justOpened();
      const ready = link.whenReady();
      await settle();
      await link.start((await ControlPlane.open()).hostBus, () => {});
      expect(link.state).not.toBe('ready');
      await ready;
      expect(link.state).toBe('ready');
    });

    it('does not wait longer than an agent may take to join it', async () => {
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
      onTestFinished(() => void vi.useRealTimers());
      const { link, clock } = justOpened();
      const refused = link.whenReady().catch((error: unknown) => error);
      clock.advance(linkJoinMsMax);
      await vi.advanceTimersByTimeAsync(linkJoinMsMax);
      expect(await refused).toMatchObject(unreachable);
      await expect(link.whenReady()).rejects.toMatchObject(unreachable);
    });

    it('fails at once where that time is over, and where it is being closed', async () => {
      const late = justOpened();
      late.clock.advance(linkJoinMsMax);
      await expect(late.link.whenReady()).rejects.toMatchObject(unreachable);
      const closing = justOpened();
      const refused = closing.link.whenReady().catch((error: unknown) => error);
      await closing.link[Symbol.asyncDispose]();
      expect(await refused).toMatchObject(unreachable);
    });
  });

  it('tells a control plane that does not run from a bus that does not', async () => {
    const cp = new ControlPlane();
    const { link } = await openLink({ cp });
    await expect(link.whenReady()).rejects.toMatchObject({
      publicMessage: expect.stringContaining('it is not running'),
    });
  });

  it('after a reconnect waits until what was missed is applied', async () => {
    const { cp, link, applied } = await openReady({ cursor: 0 });
    cp.broker.setReachable(false);
    await cp.revoke(grantId(1));
    cp.broker.setReachable(true);
    expect(link.state).not.toBe('ready');
    await link.whenReady();
    expect(epochs(applied)).toEqual([1]);
  });

  it('after a link that was lost and found again in one breath waits for a new pull', async () => {
    const { cp, link, applied } = await openReady({ cursor: 0 });
    link.catchUp();
    cp.broker.setReachable(false);
    await cp.revoke(grantId(1));
    cp.broker.setReachable(true);
    await link.whenReady();
    expect(epochs(applied)).toEqual([1]);
  });
});

describe('the policy copy', () => {
  it('is fetched when a notice tells of a newer one, and only then', async () => {
    const { cp, link } = await openReady();
    const before = cp.asked.length;
    const notify = (revision: number): void => cp.bus.publish(fleet('policy'), encodeJson({ revision }));
    notify(1);
    await settle();
    expect(cp.asked).toHaveLength(before);
    cp.policy = { ...cp.policy, revision: 2, text: '@id("two") permit (principal, action, resource);' };
    notify(2);
    await until(() => link.policy?.revision === 2);
    expect(link.policy?.engine.policies.map(({ id }) => id)).toEqual(['two']);
  });

  it('does not go back: an older revision is kept out', async () => {
    const { cp, link } = await openReady();
    cp.policy = { ...cp.policy, revision: 5 };
    await link.refreshPolicy();
    cp.policy = { ...cp.policy, revision: 4 };
    await link.refreshPolicy();
    expect(link.policy?.revision).toBe(5);
  });

  it('of another host is refused', async () => {
    const { cp, link } = await openReady();
    cp.policy = { revision: 9, text: '', hostId: 'h_0000000000000002' };
    await link.refreshPolicy();
    expect(link.policy?.revision).toBe(1);
  });

  it('stays what it is without a network, and a notice that is garbage is passed over', async () => {
    const { cp, link } = await openReady();
    cp.bus.publish(fleet('policy'), Buffer.from('{'));
    cp.bus.publish(fleet('policy'), encodeJson({ revision: -1 }));
    await settle();
    expect(link.state).toBe('ready');
    cp.broker.setReachable(false);
    await link.refreshPolicy();
    expect(link.policy?.revision).toBe(1);
  });
});

describe('a grant', () => {
  it('that answers the request comes with its sealed values and notes', async () => {
    const { cp, link } = await openReady();
    cp.grant = async (asked) => ({
      ok: true,
      grant: await grantJws(asked, {}),
      sealed: 'AQI=',
      notes: ['clamped'],
    });
    expect(await link.requestGrant(request)).toMatchObject({
      claims: { grantId: grantId(1), requestId: request.requestId },
      sealed: Buffer.from([1, 2]),
      notes: ['clamped'],
    });
  });

  it.each<[string, Parameters<typeof grantJws>[1], Uint8Array | undefined, string]>([
    ['for another request', { requestId: 'q_00000002' }, undefined, 'internal'],
    ['for another host', { hostId: 'h_0000000000000002' }, undefined, 'internal'],
    ['by a stranger', {}, strangerSeed, ''],
  ])('%s is refused', async (_, more, seed, code) => {
    const { cp, link } = await openReady();
    cp.grant = async (asked) => ({
      ok: true,
      grant: await grantJws(asked, more, seed),
      sealed: 'AQI=',
      notes: [],
    });
    const error = await link.requestGrant(request).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(Error);
    if (code !== '') expect(error).toMatchObject({ code });
  });

  it("refused keeps the control plane's words", async () => {
    const { cp, link } = await openReady();
    cp.grant = async () => {
      throw new CustodyError('denied_by_policy', 'no policy permits it', { next: 'ask' });
    };
    await expect(link.requestGrant(request)).rejects.toMatchObject({
      code: 'denied_by_policy',
      publicMessage: 'no policy permits it',
      next: 'ask',
    });
  });
});

describe('a link of an agent that died while it killed', () => {
  it('begins at the epoch of its oldest open run, though the cursor stands behind the kill', async () => {
    const cp = await ControlPlane.open();
    for (let n = 1; n <= 4; n += 1) await cp.revoke(grantId(n));
    const { applied, link } = await openReady({ cp, cursor: 4, openSince: 2 });
    expect(applied.map(({ epoch }) => epoch)).toEqual([3, 4]);
    expect(link.cursor).toBe(4);
  });

  it('begins at its cursor where that is less', async () => {
    const cp = await ControlPlane.open();
    for (let n = 1; n <= 4; n += 1) await cp.revoke(grantId(n));
    const { applied } = await openReady({ cp, cursor: 3, openSince: 9 });
    expect(applied.map(({ epoch }) => epoch)).toEqual([4]);
  });
});

it('a bus that refuses this host is said so, and to whoever asks for a run', async () => {
  const { link, log } = await openReady({ cursor: 0 });
  link.refused('user: User Authentication Revoked');
  link.refused('user: User Authentication Revoked');
  expect(log().match(/the bus refuses this host/g)).toHaveLength(1);
  expect(link.refusal).toContain('Revoked');
});

const revocable = (n: number): RevocableGrant => ({
  ...{ grantId: grantId(n), runId: `r_${n}`, hostId, subject: 'host-a/1000', credentials: [] },
  ...{ policyRevision: 1, within: [] },
});

describe('a grant that was revoked while it was under way', () => {
  const held = revocable(1);

  it('is found, whether the revocation was heard before or must be pulled', async () => {
    const { cp, link } = await openReady({ cursor: 0 });
    cp.broadcast(await cp.revoke(grantId(1)));
    await until(() => link.cursor === 1);
    expect(await link.standing(held, 0)).toMatchObject({ epoch: 1 });
    // Decided at or after the revocation: the control plane knew of it.
    expect(await link.standing(held, 1)).toBeUndefined();
    await cp.revoke(grantId(7));
    expect(await link.standing(held, 2)).toBeUndefined();
    expect(link.cursor).toBe(2);
    expect(link.revokedSince(revocable(7), 1)).toMatchObject({ epoch: 2 });
    expect(link.revokedSince(revocable(8), 0)).toBeUndefined();
  });

  it('cannot be judged by a host that stays behind the decision', async () => {
    const { link } = await openReady({ cursor: 0 });
    await expect(link.standing(held, 5)).rejects.toMatchObject({ code: 'host_behind' });
  });

  it('cannot be judged by a host that began after the decision', async () => {
    const cp = await ControlPlane.open();
    for (let n = 1; n <= 3; n += 1) await cp.revoke(grantId(n));
    const { link } = await openReady({ cp, cursor: 3 });
    expect(() => link.revokedSince(held, 1)).toThrow(/too many revocations/);
    expect(link.revokedSince(held, 3)).toBeUndefined();
  });

  it('cannot be judged when more revocations came than are remembered', async () => {
    const cp = await ControlPlane.open();
    const count = revocationsKeptMax + 1;
    const one = (epoch: number): Promise<string> =>
      signJws(controlSeed, signedTypes.revocation, {
        epoch,
        target: { kind: 'grant', id: grantId(9) },
        reason: 'r',
        at,
      });
    cp.log.push(...(await Promise.all(Array.from({ length: count }, (_, index) => one(index + 1)))));
    const { link } = await openReady({ cp, cursor: 0 });
    expect(link.cursor).toBe(count);
    expect(() => link.revokedSince(held, 0)).toThrow(
      expect.objectContaining({ code: 'host_behind' }) as Error,
    );
    expect(link.revokedSince(held, 1)).toBeUndefined();
  });
});

function signed(seed: Uint8Array, typ: string): Promise<string> {
  return signJws(seed, typ, { epoch: 1, target: { kind: 'grant', id: grantId(1) }, reason: 'r', at });
}

function grantJws(
  asked: GrantRequest,
  more: Parameters<typeof claimsOf>[1],
  seed: Uint8Array = controlSeed,
): Promise<string> {
  return signJws(seed, signedTypes.grant, claimsOf(asked, more));
}

/** The same statement with one claim's byte changed. */
function changed(token: string): string {
  const [head = '', payload = '', signature = ''] = token.split('.');
  const text = Buffer.from(payload, 'base64url').toString().replace('leaked', 'lEaked');
  return [head, Buffer.from(text).toString('base64url'), signature].join('.');
}
