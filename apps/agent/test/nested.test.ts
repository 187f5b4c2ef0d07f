// Owns the proof that a run inside a run only narrows, ends with each of those around it, and has a receipt of its own.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ask, ended, FakeKeeper, peer, reborn, revocation, running, scene } from './fakes.ts';
import { grantId, settle } from './support.ts';

// Timers stand still; everything else is real.
beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

describe('a run inside a run', () => {
  it('ends when any grant around it is revoked, with a receipt of its own, also after a restart', async () => {
    const s = await scene();
    const keepers = [await running(s)];
    for (const [n, parent] of [
      [2, 1],
      [3, 2],
    ] as const) {
      s.link.claims = { grantId: grantId(n), parent: grantId(parent) };
      const { grantId: id } = await s.runs.admit(ask({ parent: grantId(parent) }), peer);
      const keeper = new FakeKeeper();
      s.runs.attach(id, keeper);
      keepers.push(keeper);
    }
    const next = await reborn(s);
    for (const each of [s, next])
      each.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    for (const keeper of keepers) expect(keeper.told).toEqual([{ cause: 'revoked', graceMs: 0 }]);
    for (const n of [3, 2, 1]) s.runs.ended(grantId(n), ended(s.clock, { cause: 'revoked' }));
    await settle();
    expect(s.spool.of('receipt').map(({ grantId: id }) => id)).toEqual([3, 2, 1].map(grantId));
    expect(next.swept.toSorted((a, b) => a.localeCompare(b))).toEqual([1, 2, 3].map(grantId));
    expect(next.spool.of('receipt')).toHaveLength(3);
  });

  it('that is still there when the outer one is over ends as well', async () => {
    const s = await scene();
    await running(s);
    s.link.claims = { grantId: grantId(2), parent: grantId(1) };
    await s.runs.admit(ask({ parent: grantId(1) }), peer);
    const inner = new FakeKeeper();
    s.runs.attach(grantId(2), inner);
    s.runs.ended(grantId(1), ended(s.clock));
    await settle();
    expect(inner.told).toEqual([{ cause: 'agent', graceMs: 0 }]);
  });
});

describe('a run inside a run', () => {
  it('tells the control plane what the outer one has left, and never lasts longer', async () => {
    const s = await scene();
    await running(s);
    s.clock.advance(20_000);
    s.link.claims = { ceilingMs: 900_000, parent: grantId(1) };
    const child = await s.runs.admit(ask({ parent: grantId(1) }), { ...peer, pid: 4343 });
    expect(s.link.asked[1]?.parent).toEqual({ grantId: grantId(1), remainingMs: 40_000 });
    expect(child.ceilingBootMs).toBe(s.clock.bootMs() + 40_000);
    expect(s.spool.of('released')[1]).toMatchObject({ parent: grantId(1) });
  });

  it.each([
    ['is not open here', grantId(7), 1000],
    ["is another user's", grantId(1), 1001],
  ])('is refused when the outer one %s', async (_, parent, uid) => {
    const s = await scene();
    await running(s);
    await expect(s.runs.admit(ask({ parent }), { ...peer, uid })).rejects.toMatchObject({
      code: 'run_unacceptable',
    });
    expect(s.link.asked).toHaveLength(1);
  });

  it('is refused when the outer one was revoked and is still being ended', async () => {
    const s = await scene();
    await running(s);
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    await expect(s.runs.admit(ask({ parent: grantId(1) }), peer)).rejects.toMatchObject({
      code: 'run_unacceptable',
    });
    expect(s.link.asked).toHaveLength(1);
  });

  it('is refused when the outer one has ended while it was asked for', async () => {
    const s = await scene();
    await running(s);
    s.link.underWay = () => s.runs.ended(grantId(1), ended(s.clock));
    s.link.claims = { ceilingMs: 900_000, parent: grantId(1) };
    await expect(s.runs.admit(ask({ parent: grantId(1) }), peer)).rejects.toMatchObject({
      code: 'run_unacceptable',
    });
    await settle();
    expect(s.spool.of('released')).toHaveLength(1);
  });
});
