// Owns the proof of accounts: what no run here holds is swept for and answered once, and nothing is said too early.
import { createFakeBroker } from '@custody/bus/fake-bus';
import { signJws } from '@custody/crypto/jws';
import type { SweepResult } from '@custody/keeper/sweep';
import { signedTypes, type AccountClaims } from '@custody/wire/messages';
import { encodeJson } from '@custody/wire/schema';
import { hostDown } from '@custody/wire/subjects';
import { expect, it, onTestFinished } from 'vitest';
import { Accounts } from '../src/accounts.ts';
import { FakeSpool } from './fakes.ts';
import {
  at,
  captureLog,
  Clock,
  controlKey,
  controlSeed,
  grantId,
  hostId,
  settle,
  strangerSeed,
  until,
} from './support.ts';

async function opened() {
  const broker = createFakeBroker();
  const [spool, clock] = [new FakeSpool(), new Clock()];
  const { log, text } = captureLog();
  const scene = {
    ...{ spool, log: text, swept: [] as string[], open: new Set<string>(), cursor: 7, caughtUp: 0, looks: 0 },
    found: async (): Promise<SweepResult> => ({
      processes: [],
      emptyBootMs: clock.bootMs() + 2,
      complaints: [],
    }),
    say: async (
      claims: Partial<AccountClaims> = {},
      seed: Uint8Array<ArrayBuffer> = controlSeed,
    ): Promise<void> => {
      const grants = [{ grantId: grantId(1), runId: 'r_00000001' }];
      const account = await signJws(seed, signedTypes.account, { hostId, epoch: 7, grants, at, ...claims });
      broker.connect().publish(hostDown(hostId, 'account'), encodeJson({ account }));
      await settle();
    },
  };
  const accounts = new Accounts({
    ...{ hostId, controlPlaneKey: controlKey, bootMs: clock.bootMs, wallClock: clock.wallClock, log },
    runs: () => ({ accountsFor: (id) => (scene.looks += 1) > 0 && scene.open.has(id) }),
    link: () => ({ cursor: scene.cursor, catchUp: () => void (scene.caughtUp += 1) }),
    spool: () => spool,
    sweep: async (id) => {
      scene.swept.push(id);
      return scene.found();
    },
  });
  const answering = await accounts.start(broker.connect());
  onTestFinished(() => answering[Symbol.asyncDispose]());
  return scene;
}

it('a grant that no run here holds is swept for, then answered, once', async () => {
  const s = await opened();
  await s.say();
  await until(() => s.spool.written.length === 1);
  await settle();
  await s.say({ grants: [1, 2].map((n) => ({ grantId: grantId(n), runId: 'r_00000001' })) });
  await until(() => s.spool.written.length === 2);
  expect(s.swept).toEqual([grantId(1), grantId(2)]);
  expect(s.spool.of('receipt').slice(0, 1)).toMatchObject([
    {
      grantId: grantId(1),
      runId: 'r_00000001',
      epoch: 7,
      outcome: 'not_here',
      emptyMicros: 2_000,
      survivors: 0,
    },
  ]);
});

it('what a sweep finds is counted, and what it cannot end is not answered', async () => {
  const s = await opened();
  const how = { kind: 'killed', number: 9 } as const;
  const row = {
    ...{ pid: 9, ppid: 1, startTicks: '7', how, name: 'x', endedBootUs: undefined, survivor: true },
  };
  s.found = async () => ({ processes: [row], emptyBootMs: undefined, complaints: ['stuck'] });
  await s.say();
  await until(() => s.log().includes('could not be ended'));
  await settle();
  expect(s.spool.written).toEqual([]);
  s.found = async () => ({ processes: [row], emptyBootMs: 2_000_000, complaints: [] });
  await s.say();
  await until(() => s.spool.written.length === 1);
  expect(s.spool.of('receipt')).toMatchObject([{ outcome: 'not_here', survivors: 1, processes: 1 }]);
});

it('a run that is open answers for itself, also when it is released during the sweep', async () => {
  const s = await opened();
  s.open.add(grantId(1));
  await s.say();
  await until(() => s.looks === 1);
  await settle();
  expect(s.swept).toEqual([]);
  s.open.clear();
  s.found = async () => {
    s.open.add(grantId(1));
    return { processes: [], emptyBootMs: 1, complaints: [] };
  };
  await s.say();
  await until(() => s.looks === 3);
  await settle();
  expect(s.spool.written).toEqual([]);
});

it('a host that has not applied the revocation catches up, and says nothing', async () => {
  const s = await opened();
  s.cursor = 6;
  await s.say();
  await until(() => s.caughtUp === 1);
  await settle();
  expect([s.swept, s.spool.written]).toEqual([[], []]);
  s.cursor = 7;
  await s.say();
  await until(() => s.spool.written.length === 1);
});

it.each<[string, Partial<AccountClaims>, Uint8Array<ArrayBuffer>]>([
  ['signed by a stranger', {}, strangerSeed],
  ['for another host', { hostId: 'h_0000000000000009' }, controlSeed],
])('a question %s is refused', async (_, claims, seed) => {
  const s = await opened();
  await s.say(claims, seed);
  await until(() => s.log().includes('an account could not be given'));
  expect([s.swept, s.spool.written]).toEqual([[], []]);
});
