// Owns the proof of freshness on the wire: only a true beacon, in time, proves anything; a log that was set back is noticed.
import { signJws } from '@custody/crypto/jws';
import { anchorIntervalMs, beaconIntervalMs } from '@custody/core/limits';
import { signedTypes, type HeadClaims, type RevocationClaims } from '@custody/wire/messages';
import { encodeJson } from '@custody/wire/schema';
import { fleet } from '@custody/wire/subjects';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { Link, type LogChange } from '../src/link.ts';
import {
  at,
  captureLog,
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
  readonly clock: Clock;
  readonly applied: number[];
  /** What was said to be proven, in order. */
  readonly proven: number[];
  readonly changes: LogChange[];
  readonly cursorFile: string;
  readonly log: () => string;
  /** How often it has caught up. */
  readonly served: () => number;
}

/** `cursor`: the file that an earlier agent left. `openRuns`: what the host holds when the log changes. */
async function open(more: { cp?: ControlPlane; cursor?: string; openRuns?: number } = {}): Promise<Opened> {
  const cp = more.cp ?? (await ControlPlane.open());
  const cursorFile = join(folder(), 'cursor');
  if (more.cursor !== undefined) writeFileSync(cursorFile, more.cursor);
  const clock = new Clock();
  const { log, text } = captureLog();
  const [applied, proven, changes]: [number[], number[], LogChange[]] = [[], [], []];
  let nonces = 0;
  const link = new Link({
    ...{ hostId, controlPlaneKey: controlKey, cursorFile, log },
    ...{ bootMs: clock.bootMs, wallClock: clock.wallClock },
    ...{ settled: async () => {}, openSince: () => Number.POSITIVE_INFINITY },
    onRevocation: ({ epoch }) => void applied.push(epoch),
    onFresh: (provenBootMs) => void proven.push(provenBootMs),
    onLogChange: async (change) => {
      changes.push(change);
      return more.openRuns ?? 0;
    },
    newNonce: () => `n_${String((nonces += 1)).padStart(32, '0')}`,
  });
  onTestFinished(() => link[Symbol.asyncDispose]());
  let served = 0;
  await link.start(cp.hostBus, () => void (served += 1));
  await link.whenReady();
  await settle();
  return { cp, link, clock, applied, proven, changes, cursorFile, log: text, served: () => served };
}

/** Both clocks go on. */
function pass({ cp, clock }: Opened, ms: number): void {
  cp.atMs += ms;
  clock.advance(ms);
}

const asked = ({ cp }: Opened): number => cp.asked.filter((what) => what.startsWith('revocations')).length;

describe('what is proven', () => {
  it('is the instant of asking, then that of each beacon, by the host’s own clock', async () => {
    const o = await open();
    const from = o.clock.bootMs();
    expect(o.link.provenBootMs).toBe(from);
    pass(o, 5_000);
    await o.cp.beacon();
    await until(() => o.link.provenBootMs === from + 5_000);
    expect(o.link.beaconBootMs).toBe(from + 5_000);
    expect(asked(o)).toBe(1);
  });

  it('of a beacon that was held back is when it was made', async () => {
    const o = await open();
    const from = o.clock.bootMs();
    const held = await signJws(controlSeed, signedTypes.beacon, o.cp.stands({ at: atOf(o, 5_000) }));
    pass(o, 60_000);
    o.cp.send(held);
    await until(() => o.link.provenBootMs === from + 5_000);
  });

  it.each<[string, string, (o: Opened, true_: string) => Promise<void>]>([
    ['forged', 'refused', async (o) => void (await o.cp.beacon({ at: atOf(o, 5_000) }, strangerSeed))],
    ['changed on the way', 'refused', async (o, token) => o.cp.send(changed(token))],
    [
      'that is another kind of statement',
      'refused',
      async (o) => {
        const claims: HeadClaims = { ...o.cp.stands({ at: atOf(o, 5_000) }), nonce: 'n_00000000' };
        o.cp.send(await signJws(controlSeed, signedTypes.head, claims));
      },
    ],
    ['that is no JSON', 'refused', async (o) => o.cp.bus.publish(fleet('beacon'), Buffer.from('{'))],
    ['of another log', 'other_log', async (o) => void (await o.cp.beacon({ log: 'log_00000009' }))],
    ['from the future', 'future', async (o) => void (await o.cp.beacon({ at: atOf(o, 60_000) }))],
  ])('is not moved by a beacon %s, which is told', async (_, verdict, send) => {
    const o = await open();
    const token = await signJws(controlSeed, signedTypes.beacon, o.cp.stands());
    const before = o.proven.length;
    await send(o, token);
    await send(o, token);
    await until(() => o.log().includes(`"verdict":"${verdict}"`));
    await settle();
    // A question of the host's own, asked because of it, may prove this very instant again.
    expect(o.proven.slice(before).every((each) => each === o.clock.bootMs())).toBe(true);
    expect(o.link.beaconBootMs).toBeUndefined();
    expect(o.link.state).toBe('ready');
    expect(o.log().split('does not count').length).toBe(2);
  });

  it('is not moved by beacons sent again or out of order', async () => {
    const o = await open();
    const from = o.clock.bootMs();
    const early = await signJws(controlSeed, signedTypes.beacon, o.cp.stands({ at: atOf(o, 5_000) }));
    pass(o, 10_000);
    const late = await o.cp.beacon();
    await until(() => o.link.provenBootMs === from + 10_000);
    pass(o, 200_000);
    for (const each of [early, late, early, late]) o.cp.send(each);
    await settle();
    expect(o.link.provenBootMs).toBe(from + 10_000);
    expect(o.link.beaconBootMs).toBe(from + 10_000);
  });

  it('does not grow while the host is behind, though beacons come', async () => {
    const o = await open();
    const from = o.clock.bootMs();
    o.cp.pulled = () => ({ entries: [], head: 1 });
    await o.cp.revoke(grantId(1));
    pass(o, 5_000);
    await o.cp.beacon();
    await until(() => o.link.state === 'down');
    expect(o.link.provenBootMs).toBe(from);
    expect(o.applied).toEqual([]);
  });

  it('waits for what was broadcast before a beacon', async () => {
    const o = await open();
    o.cp.broadcast(await o.cp.revoke(grantId(1)));
    pass(o, 5_000);
    await o.cp.beacon();
    await until(() => o.link.provenBootMs === o.clock.bootMs());
    expect(o.applied).toEqual([1]);
    expect(asked(o)).toBe(1);
  });

  it('tells of a revocation whose broadcast was lost, and the host pulls it', async () => {
    const o = await open();
    await o.cp.revoke(grantId(1));
    pass(o, 5_000);
    await o.cp.beacon();
    await until(() => o.applied.length === 1);
    await until(() => o.link.provenBootMs === o.clock.bootMs());
  });

  it('can be asked for', async () => {
    const o = await open();
    pass(o, 60_000);
    expect(await o.link.prove(o.clock.bootMs() - 60_000)).toBe(o.clock.bootMs() - 60_000);
    expect(await o.link.prove(o.clock.bootMs() - 59_999)).toBe(o.clock.bootMs());
  });
});

describe('an answer', () => {
  it.each<[string, (claims: HeadClaims) => Promise<string>]>([
    [
      'to another question',
      (claims) => signJws(controlSeed, signedTypes.head, { ...claims, nonce: 'n_00000000' }),
    ],
    ['of a stranger', (claims) => signJws(strangerSeed, signedTypes.head, claims)],
    ['that is a beacon', ({ log, epoch }) => signJws(controlSeed, signedTypes.beacon, { log, epoch, at })],
  ])('%s proves nothing, and nothing is served on it', async (_, proven) => {
    const o = await open();
    const before = o.link.provenBootMs;
    pass(o, 5_000);
    o.cp.proven = proven;
    o.link.catchUp();
    await until(() => o.link.state === 'down');
    await expect(o.link.prove(o.clock.bootMs())).rejects.toThrow();
    expect(o.link.provenBootMs).toBe(before);
  });
});

describe('a host asks by itself', () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] }));
  afterEach(() => void vi.useRealTimers());

  const tick = async (o: Opened, beacon: boolean): Promise<void> => {
    pass(o, beaconIntervalMs);
    if (beacon) {
      await o.cp.beacon();
      await until(() => o.link.beaconBootMs === o.clock.bootMs());
    }
    vi.advanceTimersByTime(beaconIntervalMs);
    await settle();
  };

  it('once a minute while beacons come, and after two that did not', async () => {
    const o = await open();
    for (let ticks = 1; ticks < anchorIntervalMs / beaconIntervalMs; ticks += 1) await tick(o, true);
    expect(asked(o)).toBe(1);
    await tick(o, true);
    await until(() => asked(o) === 2 && o.served() === 2); // and has taken in the answer
    await tick(o, false);
    await tick(o, false);
    expect(asked(o)).toBe(2);
    await tick(o, false);
    await until(() => asked(o) === 3);
  });
});

describe('a log that was set back', () => {
  it('is told by its name: what was proven stays, and a host that holds nothing begins at its head', async () => {
    const o = await open({ cursor: '7 log_00000001 first\n', cp: await grown(7) });
    o.cp.identity = { log: 'log_00000002', since: 3 };
    o.cp.log.splice(3);
    pass(o, 5_000);
    await o.cp.beacon();
    await until(() => o.changes.length === 1);
    await until(() => o.link.provenBootMs === o.clock.bootMs());
    expect(o.changes).toEqual([
      { from: { log: 'log_00000001', epoch: 7 }, to: { log: 'log_00000002', epoch: 3 } },
    ]);
    expect([o.link.cursor, o.applied]).toEqual([3, []]);
    expect(readFileSync(o.cursorFile, 'utf8')).toBe('3 log_00000002 3\n');
    expect(o.log()).toContain('the revocation log was set back');
    o.cp.broadcast(await o.cp.revoke(grantId(9)));
    await until(() => o.applied.length === 1);
  });

  it('is told by its head, where it kept its name; a host with open runs follows it from its start', async () => {
    const o = await open({ cursor: '7 log_00000001 first\n', cp: await grown(7), openRuns: 1 });
    o.cp.log.splice(3);
    o.link.catchUp();
    await until(() => o.link.cursor === 3);
    expect(o.changes).toMatchObject([{ from: { epoch: 7 }, to: { epoch: 3 } }]);
    expect(o.applied).toEqual([1, 2, 3]);
    o.link.catchUp();
    await settle();
    expect(o.changes).toHaveLength(1);
  });

  it('is not told by a beacon that is merely old', async () => {
    const o = await open({ cursor: '0 log_00000001 first\n' });
    const old = await signJws(controlSeed, signedTypes.beacon, o.cp.stands());
    o.cp.broadcast(await o.cp.revoke(grantId(1)));
    await until(() => o.link.cursor === 1);
    o.cp.send(old);
    await settle();
    expect(o.changes).toEqual([]);
  });

  it('is followed from its start with what it kept of its former life', async () => {
    const cp = await grown(3);
    cp.identity = { log: 'log_00000002', since: 3 };
    await cp.revoke(grantId(9));
    const o = await open({ cursor: '7 log_00000001 first\n', cp, openRuns: 1 });
    expect(o.applied).toEqual([1, 2, 3, 4]);
    expect(readFileSync(o.cursorFile, 'utf8')).toBe('4 log_00000002 3\n');
    const next = await open({ cursor: '4 log_00000002 3\n', cp });
    next.cp.broadcast(await next.cp.revoke(grantId(9)));
    await until(() => next.applied.length === 1);
  });

  it.each<[string, number | undefined, Partial<RevocationClaims>]>([
    ['the first log, that names another', undefined, { log: 'log_00000002' }],
    ['a renewed log, that names none', 0, {}],
    ['a renewed log, that names the one before', 0, { log: 'log_00000000' }],
  ])('leaves no entry behind that could stand for a new one: of %s is refused', async (_, since, more) => {
    const cp = await ControlPlane.open();
    cp.identity = { log: 'log_00000001', ...(since === undefined ? {} : { since }) };
    const o = await open({ cp });
    const claims = { epoch: 1, target: { kind: 'grant', id: grantId(1) }, reason: 'leaked', at, ...more };
    const entry = await signJws(controlSeed, signedTypes.revocation, claims);
    o.cp.bus.publish(fleet('revocation'), encodeJson({ entry }));
    await until(() => asked(o) > 1);
    expect([o.applied, o.link.cursor]).toEqual([[], 0]);
    o.cp.broadcast(await o.cp.revoke(grantId(2)));
    await until(() => o.applied.length === 1);
  });

  it('serves nothing while it cannot be put on record', async () => {
    const cp = await grown(2);
    cp.identity = { log: 'log_00000002', since: 2 };
    const cursorFile = join(folder(), 'cursor');
    writeFileSync(cursorFile, '2 log_00000001 first\n');
    const { log } = captureLog();
    const clock = new Clock();
    const link = new Link({
      ...{ hostId, controlPlaneKey: controlKey, cursorFile, log, onRevocation: () => {}, onFresh: () => {} },
      ...{ bootMs: clock.bootMs, wallClock: clock.wallClock, newNonce: () => 'n_00000001' },
      ...{ settled: async () => {}, openSince: () => Number.POSITIVE_INFINITY },
      onLogChange: async () => {
        throw new Error('the disk is full');
      },
    });
    onTestFinished(() => link[Symbol.asyncDispose]());
    await link.start(cp.hostBus, () => {});
    await expect(link.whenReady()).rejects.toThrow('the disk is full');
    expect(link.provenBootMs).toBeUndefined();
    expect(readFileSync(cursorFile, 'utf8')).toBe('2 log_00000001 first\n');
  });

  it('and an agent that was here before logs had names are told apart', async () => {
    const o = await open({ cursor: '2\n', cp: await grown(3) });
    expect([o.applied, o.changes]).toEqual([[3], []]);
    await until(
      () => existsSync(o.cursorFile) && readFileSync(o.cursorFile, 'utf8') === '3 log_00000001 first\n',
    );
  });
});

/** That many milliseconds after the control plane's present, as it says it. */
function atOf({ cp }: Opened, ms: number): string {
  return new Date(cp.atMs + ms).toISOString();
}

async function grown(epochs: number): Promise<ControlPlane> {
  const cp = await ControlPlane.open();
  for (let n = 1; n <= epochs; n += 1) await cp.revoke(grantId(n));
  return cp;
}

/** The same statement, a minute later. */
function changed(token: string): string {
  const [head = '', payload = '', signature = ''] = token.split('.');
  const text = Buffer.from(payload, 'base64url').toString().replace(':30:00', ':31:00');
  return [head, Buffer.from(text).toString('base64url'), signature].join('.');
}
