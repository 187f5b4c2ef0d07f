// Owns the proof that the agent keeps a ceiling where the keeper does not, on the boot-time clock alone.
import { keeperLagMsMax } from '@custody/core/limits';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ask, pass, peer, running, scene } from './fakes.ts';
import { grantId, settle } from './support.ts';

// Timers stand still until a test moves them; everything else is real.
beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

describe('a ceiling', () => {
  const ceilingMs = 60_000;

  it('that the keeper does not keep is kept by the agent, after grace and lag', async () => {
    const s = await scene();
    await running(s);
    await pass(s, ceilingMs + 2_000 + keeperLagMsMax - 10);
    expect(s.swept).toEqual([]);
    await pass(s, 20);
    expect(s.swept).toEqual([grantId(1)]);
    expect(s.spool.of('ended')).toMatchObject([{ proof: 'sweep' }]);
  });

  it('is on the boot-time clock: a timer that fires early is set again', async () => {
    const s = await scene();
    await running(s);
    // The timers run ahead of the boot-time clock.
    await vi.advanceTimersByTimeAsync(ceilingMs + 3_000);
    await settle();
    expect(s.swept).toEqual([]);
    s.clock.advance(ceilingMs + 3_000);
    await vi.advanceTimersByTimeAsync(ceilingMs + 3_000);
    await settle();
    expect(s.swept).toEqual([grantId(1)]);
  });

  it.each([1, -1])('stays where it is when the wall clock moves by %i h', async (hours) => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] });
    const s = await scene();
    await running(s);
    const before = Date.now();
    vi.setSystemTime(before + hours * 3_600_000);
    expect(Date.now() - before).toBe(hours * 3_600_000);
    await pass(s, ceilingMs + 2_000 - 10);
    expect(s.swept).toEqual([]);
    vi.setSystemTime(Date.now() + hours * 3_600_000);
    await pass(s, keeperLagMsMax + 20);
    expect(s.swept).toEqual([grantId(1)]);
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'ceiling' }]);
  });

  it('of a keeper that somebody stops over and over is kept without the lag', async () => {
    let looks = 0;
    // Its own alarm continues it: not stopped at the first look.
    const s = await scene({ stopped: () => ++looks > 1 });
    await running(s);
    await pass(s, ceilingMs + 2_000);
    expect(s.swept).toEqual([]);
    await pass(s, keeperLagMsMax / 10);
    expect(s.swept).toEqual([grantId(1)]);
  });

  it('counts from the instant of asking, not from the answer', async () => {
    const s = await scene();
    s.link.underWay = () => s.clock.advance(700);
    const askedBootMs = s.clock.bootMs();
    expect((await s.runs.admit(ask(), peer)).ceilingBootMs).toBe(askedBootMs + ceilingMs);
  });

  it('is never more than was asked for, whatever the grant says', async () => {
    const s = await scene();
    s.link.claims = { ceilingMs: 900_000 };
    const release = await s.runs.admit(ask({ ttlMs: 5_000 }), peer);
    expect(release.ceilingBootMs).toBe(s.clock.bootMs() + 5_000);
  });
});
