// Owns the proof of which runs a revocation reaches on its host, also in the agent's next life, and that a receipt says why not.
import { CustodyError } from '@custody/core/errors';
import { keeperReturnMsMax } from '@custody/core/limits';
import type { RevocationTarget } from '@custody/core/revocation';
import type { RevocationClaims } from '@custody/wire/messages';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ask, ended, peer, reborn, revocation, running, scene, type Scene } from './fakes.ts';
import { at, grantId, hostId, settle } from './support.ts';

// Timers stand still until a test moves them; everything else is real.
beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

async function pass(s: Scene, ms: number): Promise<void> {
  s.clock.advance(ms);
  await vi.advanceTimersByTimeAsync(ms);
  await settle();
}

describe('a revocation of a running tree', () => {
  it('reaches what was decided before it, and nothing that was decided knowing of it', async () => {
    const s = await scene();
    s.link.claims = { epoch: 5 };
    const keeper = await running(s);
    const everything = (epoch: number): RevocationClaims => ({
      epoch,
      target: { kind: 'all' },
      reason: 'r',
      at,
    });
    s.runs.revoke(everything(5), s.clock.bootMs(), s.clock.wallClock());
    expect(keeper.told).toEqual([]);
    s.runs.revoke(everything(6), s.clock.bootMs(), s.clock.wallClock());
    expect(keeper.told).toEqual([{ cause: 'revoked', graceMs: 0 }]);
  });

  it('of a log that was set back reaches what was decided under the one before, whatever its epoch', async () => {
    const s = await scene();
    s.link.claims = { epoch: 5 };
    await running(s);
    await s.runs.logChanged({ from: { epoch: 5 }, to: { log: 'log_00000002', epoch: 1 } });
    const next = await reborn(s);
    for (const each of [s, next]) {
      expect(each.runs.lowestOpenEpoch()).toBe(Infinity);
      each.runs.revoke(revocation(grantId(1), 2), each.clock.bootMs(), each.clock.wallClock());
    }
    await settle();
    expect(next.swept).toEqual([grantId(1)]);
  });

  it('of any target reaches a run that an earlier agent released', async () => {
    const targets: RevocationTarget[] = [
      { kind: 'grant', id: grantId(1) },
      { kind: 'host', id: hostId, name: 'host-a' },
      { kind: 'subject', subject: 'host-a/1000' },
      { kind: 'secret', path: 'prod/stripe', version: 1 },
      { kind: 'prefix', path: 'prod' },
      { kind: 'policy_revision', revision: 1 },
      { kind: 'all' },
    ];
    for (const target of targets) {
      const s = await scene();
      s.link.claims = { epoch: 3 };
      await running(s);
      const [released] = s.spool.of('released');
      const run = { kind: 'run', id: released?.runId ?? '' } as const;
      for (const each of [target, run]) {
        const next = await reborn(s);
        // The link begins there: whatever came since is applied again.
        expect(next.runs.lowestOpenEpoch()).toBe(3);
        next.runs.revoke(
          { epoch: 3, target: each, reason: 'r', at },
          next.clock.bootMs(),
          next.clock.wallClock(),
        );
        await settle();
        expect([each, next.swept]).toEqual([each, []]);
        next.runs.revoke(
          { epoch: 4, target: each, reason: 'r', at },
          next.clock.bootMs(),
          next.clock.wallClock(),
        );
        await settle();
        expect([each, next.swept]).toEqual([each, [grantId(1)]]);
      }
    }
  });

  it('that cannot be carried out says why, once, and proves it when it can', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.runs.detached(grantId(1), keeper);
    s.found = async () => ({ processes: [], emptyBootMs: undefined, complaints: ['pid 9 is stuck'] });
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    await settle();
    await pass(s, keeperReturnMsMax);
    expect(s.spool.of('receipt')).toMatchObject([{ outcome: 'not_empty', why: 'pid 9 is stuck' }]);
    s.found = async () => ({ processes: [], emptyBootMs: s.clock.bootMs(), complaints: [] });
    await pass(s, keeperReturnMsMax);
    expect(s.spool.of('receipt').map(({ outcome }) => outcome)).toEqual(['not_empty', 'killed']);
    await s.runs.whenNoneOpen();
  });
});

describe('a host that takes no runs', () => {
  it('refuses before anything is asked for, and the refusal goes on record', async () => {
    const refusal = new CustodyError('revoked', 'host-a was banned');
    const s = await scene({ refusal: () => refusal });
    await expect(s.runs.admit(ask(), peer)).rejects.toBe(refusal);
    expect([s.link.asked, s.spool.kinds]).toEqual([[], ['refused']]);
  });
});

it('of a run that is over its own entries tell, in the next life too, and nobody answers for it again', async () => {
  const s = await scene();
  const keeper = await running(s);
  s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
  expect(keeper.told).toHaveLength(1);
  s.runs.ended(grantId(1), ended(s.clock));
  await settle();
  expect(s.spool.of('receipt')).toHaveLength(1);
  expect([s.runs.open, s.runs.accountsFor(grantId(1)), s.runs.accountsFor(grantId(2))]).toEqual([
    0,
    true,
    false,
  ]);
  const next = await reborn(s);
  expect([next.runs.open, next.runs.accountsFor(grantId(1))]).toEqual([0, true]);
});
