// Owns the proof that a strict run ends when its host is cut off, that beacons alone move that, and what is on record of it.
import { CustodyError } from '@custody/core/errors';
import { keeperLagMsMax } from '@custody/core/limits';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ask, ended, FakeKeeper, peer, reborn, running, scene, type Scene } from './fakes.ts';
import { grantId, settle } from './support.ts';

// Timers stand still until a test moves them; everything else is real.
beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

const boundMs = 60_000;
const graceMs = 2_000;

async function pass(s: Scene, ms: number): Promise<void> {
  // In small steps: a timer must find the time it was set for.
  for (let left = ms; left > 0; left -= 250) {
    s.clock.advance(Math.min(left, 250));
    await vi.advanceTimersByTimeAsync(Math.min(left, 250));
  }
  await settle();
}

/** A host that is fresh, and whose grants are strict, with a ceiling far away. */
async function strict(more: Parameters<typeof scene>[0] = {}): Promise<Scene> {
  const s = await scene(more);
  s.link.proof = async () => s.clock.bootMs();
  s.link.claims = { freshness: { kind: 'strict', ms: boundMs }, ceilingMs: 3_600_000 };
  return s;
}

describe('a release', () => {
  it('says until when the grant is fresh, counted from what is proven, and has the bound on record', async () => {
    const s = await strict();
    s.link.proof = async () => s.clock.bootMs() - 7_000.5;
    const release = await s.runs.admit(ask(), peer);
    expect(release.freshUntilBootMs).toBe(Math.floor(s.clock.bootMs() - 7_000.5 + boundMs));
    expect(s.spool.of('released')).toMatchObject([{ freshness: { kind: 'strict', ms: boundMs } }]);
  });

  it('of best effort has no such instant, and asks for no proof', async () => {
    const s = await strict();
    s.link.claims = { ...s.link.claims, freshness: { kind: 'best_effort' } };
    s.link.proof = async () => {
      throw new Error('it was asked for');
    };
    expect((await s.runs.admit(ask(), peer)).freshUntilBootMs).toBe(Infinity);
  });

  it('is refused where nothing can be proven, and nothing is on record as released', async () => {
    const s = await strict();
    s.link.proof = async () => {
      throw new CustodyError('control_plane_unreachable', 'no');
    };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'control_plane_unreachable' });
    expect(s.spool.of('released')).toEqual([]);
  });

  it('whose record took longer than its freshness is refused, and the values are wiped', async () => {
    const s = await strict();
    s.spool.durable = async (kind) => {
      if (kind === 'released') s.clock.advance(boundMs);
    };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'control_plane_unreachable' });
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'not_started' }]);
  });
});

describe('a beacon', () => {
  it('moves every strict run on, in one word to its keeper, and no other', async () => {
    const s = await strict();
    const first = await running(s);
    s.link.claims = { ...s.link.claims, freshness: { kind: 'best_effort' } };
    const second = await running(s);
    await pass(s, 5_000);
    s.runs.renew(s.clock.bootMs());
    expect(first.freshUntil).toEqual([s.clock.bootMs() + boundMs]);
    expect(second.freshUntil).toEqual([]);
    // What is proven again, or was proven before, is no news.
    s.runs.renew(s.clock.bootMs());
    s.runs.renew(s.clock.bootMs() - 1);
    expect(first.freshUntil).toHaveLength(1);
  });

  it('wakes a keeper that is stopped only when half of its time has passed', async () => {
    const s = await strict({ stopped: () => true });
    const keeper = await running(s);
    await pass(s, boundMs / 2 - 1);
    s.runs.renew(s.clock.bootMs());
    expect(keeper.freshUntil).toEqual([]);
    await pass(s, 1);
    s.runs.renew(s.clock.bootMs());
    expect(keeper.freshUntil).toEqual([s.clock.bootMs() + boundMs]);
  });

  it('does not bring back a run whose time has passed', async () => {
    const s = await strict();
    const keeper = await running(s);
    await pass(s, boundMs);
    s.runs.renew(s.clock.bootMs());
    expect(keeper.freshUntil).toEqual([]);
  });
});

describe('a run that no beacon reaches', () => {
  it('is ended by its keeper, and that is on record with until when it was fresh', async () => {
    const s = await strict();
    await running(s);
    const freshUntilBootMs = s.clock.bootMs() + boundMs;
    await pass(s, boundMs + 10);
    s.runs.ended(grantId(1), ended(s.clock, { cause: 'stale', rootStatus: 'signal:15' }));
    await settle();
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'stale', proof: 'keeper', freshUntilBootMs }]);
    expect(s.spool.of('receipt')).toEqual([]);
  });

  it('is ended by the agent where its keeper does nothing, and not before', async () => {
    const s = await strict();
    await running(s);
    await pass(s, 30_000);
    s.runs.renew(s.clock.bootMs());
    await pass(s, boundMs + graceMs + keeperLagMsMax - 1);
    expect(s.swept).toEqual([]);
    await pass(s, 1);
    expect(s.swept).toEqual([grantId(1)]);
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'stale', proof: 'sweep' }]);
  });

  it('is shown: what it will do, and when', async () => {
    const s = await strict();
    await running(s);
    await pass(s, 20_000);
    expect(s.runs.describe()).toMatchObject([
      {
        freshness: { kind: 'strict', ms: boundMs },
        staleInMs: 40_000,
        ceilingInMs: 3_580_000,
        renewable: true,
      },
    ]);
  });
});

describe('an agent that starts again', () => {
  it('takes over what the keeper says, and extends nothing until something is proven', async () => {
    const s = await strict();
    await running(s);
    const kept = s.clock.bootMs() + 40_000;
    const next = await reborn(s, strict);
    const keeper = new FakeKeeper();
    next.runs.resume(grantId(1), peer, keeper, kept);
    await settle();
    expect(keeper.freshUntil).toEqual([]);
    expect(next.runs.describe()).toMatchObject([{ staleInMs: 40_000 }]);
    s.clock.advance(5_000);
    next.runs.renew(s.clock.bootMs());
    expect(keeper.freshUntil).toEqual([s.clock.bootMs() + boundMs]);
  });

  it('that has reached the control plane before the keeper came renews it when it comes', async () => {
    const s = await strict();
    await running(s);
    const next = await reborn(s, strict);
    await pass(s, 1_000);
    next.runs.renew(s.clock.bootMs());
    const keeper = new FakeKeeper();
    next.runs.resume(grantId(1), peer, keeper, s.clock.bootMs() + 10);
    expect(keeper.freshUntil).toEqual([s.clock.bootMs() + boundMs]);
  });

  it.each([
    [
      'more than any proof could have given',
      () => Number.MAX_SAFE_INTEGER,
      boundMs,
      boundMs + graceMs + keeperLagMsMax,
    ],
    ['nothing', () => undefined, 0, keeperLagMsMax],
  ])('believes no keeper that says %s', async (_, said, staleInMs, sweptInMs) => {
    const s = await strict();
    await running(s);
    const next = await reborn(s, strict);
    next.runs.resume(grantId(1), peer, new FakeKeeper(), said());
    expect(next.runs.describe()).toMatchObject([{ staleInMs }]);
    await pass(s, sweptInMs - 1);
    expect(next.swept).toEqual([]);
    await pass(s, 1);
    expect(next.swept).toEqual([grantId(1)]);
  });

  it('leaves alone what was released before freshness was acted on', async () => {
    const s = await strict();
    await running(s);
    for (const each of s.spool.of('released')) delete each.freshness;
    const next = await reborn(s, strict);
    const keeper = new FakeKeeper();
    next.runs.resume(grantId(1), peer, keeper, undefined);
    next.runs.renew(s.clock.bootMs() + 1);
    expect(keeper.freshUntil).toEqual([]);
    await pass(s, boundMs + graceMs + keeperLagMsMax);
    expect(next.swept).toEqual([]);
  });
});

describe('a revocation log that was set back', () => {
  const change = { from: { log: 'log_00000001', epoch: 7 }, to: { log: 'log_00000002', epoch: 3 } };

  it('is on record before anything else, and renews no run of before, in the agent’s next life neither', async () => {
    const s = await strict();
    const keeper = await running(s);
    expect(await s.runs.logChanged(change)).toBe(1);
    expect(s.spool.of('log_changed')).toEqual([{ ...change, openRuns: 1 }]);
    s.clock.advance(1_000);
    s.runs.renew(s.clock.bootMs());
    expect(keeper.freshUntil).toEqual([]);
    expect(s.runs.describe()).toMatchObject([{ renewable: false }]);

    const next = await reborn(s, strict);
    const again = new FakeKeeper();
    next.runs.resume(grantId(1), peer, again, s.clock.bootMs() + 30_000);
    next.runs.renew(s.clock.bootMs());
    expect(again.freshUntil).toEqual([]);
  });

  it('says nothing to runs that come after it', async () => {
    const s = await strict();
    await s.runs.logChanged(change);
    const keeper = await running(s);
    s.clock.advance(1_000);
    s.runs.renew(s.clock.bootMs());
    expect(keeper.freshUntil).toHaveLength(1);
  });
});
