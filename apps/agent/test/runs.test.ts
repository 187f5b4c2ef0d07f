// Owns the proof of a run's life on its host: nothing before the record, revoked at any moment, closed exactly once.
import { parsePolicies, PolicyEngine } from '@custody/core/cedar';
import { CustodyError } from '@custody/core/errors';
import { keeperLagMsMax, keeperReturnMsMax } from '@custody/core/limits';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  ask,
  canary,
  ended,
  FakeKeeper,
  noGroups,
  pass,
  peer,
  reborn,
  revocation,
  running,
  scene,
} from './fakes.ts';
import { grantId, settle } from './support.ts';

// Timers stand still until a test moves them; everything else is real.
beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

describe('a release', () => {
  it('gives values, ceiling and notes once its record is durable', async () => {
    const s = await scene();
    s.link.notes = ['ttl clamped'];
    const release = await s.runs.admit(ask(), peer);
    expect(
      Object.fromEntries(release.environment.map(([name, value]) => [name, Buffer.from(value).toString()])),
    ).toEqual({
      MODE: 'test',
      STRIPE_KEY: canary,
    });
    expect(release).toMatchObject({
      grantId: grantId(1),
      ceilingBootMs: s.clock.bootMs() + 60_000,
      notes: ['ttl clamped'],
    });
    expect(s.spool.of('released')).toMatchObject([
      {
        grantId: grantId(1),
        uid: 1000,
        pid: 4242,
        subject: 'host-a/1000',
        command: ['node', 'agent.js'],
        reason: 'a test',
      },
    ]);
    expect(JSON.stringify(s.spool.written) + s.log()).not.toContain(canary);
  });

  it('never comes while the record is not durable', async () => {
    const s = await scene();
    s.spool.durable = () => new Promise(() => {});
    let released = false;
    void s.runs.admit(ask(), peer).then(() => (released = true));
    await settle();
    await pass(s, 60_000);
    expect(s.spool.kinds).toContain('released');
    expect(released).toBe(false);
  });

  it('is refused when the record cannot be made, and the run is not open', async () => {
    const s = await scene();
    s.spool.durable = async () => {
      throw new CustodyError('unavailable', 'the ledger of this host cannot be written');
    };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'unavailable' });
    await settle();
    expect(s.runs.open).toBe(0);
  });

  it('wipes the values when it has been sent', async () => {
    const s = await scene();
    const release = await s.runs.admit(ask(), peer);
    const value = release.environment.find(([name]) => name === 'STRIPE_KEY')?.[1];
    release.wipe();
    expect(value?.every((byte) => byte === 0)).toBe(true);
  });

  it('of a value that no variable can hold is refused, and the grant is closed as never started', async () => {
    const s = await scene();
    s.link.values.set('STRIPE_KEY', Buffer.from('a\0b'));
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'run_unacceptable' });
    await settle();
    expect(s.spool.of('released')).toEqual([]);
    expect(s.spool.of('ended')).toMatchObject([{ grantId: grantId(1), cause: 'not_started', processes: 0 }]);
  });

  it('of credentials that the grant does not name is refused', async () => {
    const s = await scene();
    s.link.claims = { credentials: [] };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'internal' });
    expect(s.spool.of('released')).toEqual([]);
  });

  it('a refusal goes on record with its code, and the command is bounded', async () => {
    const s = await scene();
    s.link.ready = async () => {
      throw new CustodyError('control_plane_unreachable', 'no', { next: 'wait' });
    };
    await expect(s.runs.admit(ask({ command: ['x'.repeat(5_000)] }), peer)).rejects.toThrow('no');
    const [refused] = s.spool.of('refused');
    expect(refused).toMatchObject({ uid: 1000, pid: 4242, error: { code: 'control_plane_unreachable' } });
    expect(refused?.command).toHaveLength(1_024);
    expect(s.link.asked).toEqual([]);
  });
});

describe('the policy copy', () => {
  const copyOf = (text: string, revision: number) => ({
    revision,
    labels: {},
    engine: new PolicyEngine(`runs-${revision}-${text.length}`, parsePolicies(text)),
  });

  it('denies what is clearly denied without a word to the control plane', async () => {
    const s = await scene();
    s.link.policy = copyOf('', 3);
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({
      code: 'denied_by_policy',
      publicMessage: expect.stringContaining('revision 3'),
    });
    expect(s.link.asked).toEqual([]);
  });

  it('is made sure of before it denies: a permit applied a moment ago counts', async () => {
    const s = await scene();
    s.link.policy = copyOf('', 3);
    s.link.refresh = async () => {
      s.link.policy = copyOf('permit (principal, action, resource);', 4);
    };
    await s.runs.admit(ask(), peer);
    expect(s.link.asked).toHaveLength(1);
  });

  it('never permits by itself: the control plane decides', async () => {
    const s = await scene();
    s.link.policy = copyOf('permit (principal, action, resource);', 3);
    s.link.ready = async () => {
      throw new CustodyError('control_plane_unreachable', 'down');
    };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'control_plane_unreachable' });
  });
});

describe('a revocation before the release', () => {
  it('that came while the record was being written refuses, and closes with a receipt', async () => {
    const s = await scene();
    s.spool.durable = async (kind) => {
      if (kind === 'released') s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'denied_by_policy' });
    await settle();
    expect(s.spool.kinds).toEqual(['released', 'ended', 'receipt', 'refused']);
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'not_started', processes: 0 }]);
    expect(s.spool.of('receipt')).toMatchObject([{ epoch: 1, outcome: 'already_ended', survivors: 0 }]);
    expect(s.runs.open).toBe(0);
  });

  it('that came while the grant was judged refuses, records no release, and closes with a receipt', async () => {
    const s = await scene();
    s.link.since = async () => {
      s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
      return undefined;
    };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'denied_by_policy' });
    await settle();
    expect(s.spool.kinds).toEqual(['ended', 'receipt', 'refused']);
    expect(s.runs.open).toBe(0);
  });

  it('that the link heard of before the grant came refuses, and names the reason', async () => {
    const s = await scene();
    s.link.since = async () => revocation(grantId(1));
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({
      publicMessage: expect.stringContaining('leaked'),
    });
    await settle();
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'not_started' }]);
  });

  it('of a host that is behind refuses', async () => {
    const s = await scene();
    s.link.since = async () => {
      throw new CustodyError('host_behind', 'behind');
    };
    await expect(s.runs.admit(ask(), peer)).rejects.toMatchObject({ code: 'host_behind' });
    expect(s.spool.of('released')).toEqual([]);
  });

  it('that came between release and attachment reaches the keeper when it attaches', async () => {
    const s = await scene();
    const { grantId: id } = await s.runs.admit(ask(), peer);
    s.runs.revoke(revocation(id), s.clock.bootMs(), s.clock.wallClock());
    const keeper = new FakeKeeper();
    s.runs.attach(id, keeper);
    expect(keeper.told).toEqual([{ cause: 'revoked', graceMs: 0 }]);
  });
});

describe('a revocation of a running tree', () => {
  it('kills at once, with no grace, and its receipt says in microseconds what was done', async () => {
    const s = await scene();
    const keeper = await running(s);
    const heardBootMs = s.clock.bootMs();
    s.runs.revoke(revocation(grantId(1), 7), heardBootMs, s.clock.wallClock());
    expect(keeper.told).toEqual([{ cause: 'revoked', graceMs: 0 }]);
    s.runs.ended(
      grantId(1),
      ended(s.clock, {
        cause: 'revoked',
        signalledBootMs: heardBootMs + 0.5,
        emptyBootMs: heardBootMs + 1.25,
      }),
    );
    await settle();
    expect(s.spool.of('ended')).toMatchObject([
      { cause: 'revoked', proof: 'keeper', survivors: 1, processes: 3 },
    ]);
    expect(s.spool.of('receipt')).toMatchObject([
      { epoch: 7, outcome: 'killed', signalledMicros: 500, emptyMicros: 1_250, survivors: 1, processes: 3 },
    ]);
  });

  it('that comes again, or names another grant, does nothing more', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.runs.revoke(revocation(grantId(9), 1), s.clock.bootMs(), s.clock.wallClock());
    expect(keeper.told).toEqual([]);
    for (const epoch of [2, 2, 3])
      s.runs.revoke(revocation(grantId(1), epoch), s.clock.bootMs(), s.clock.wallClock());
    expect(keeper.told).toHaveLength(1);
    s.runs.ended(grantId(1), ended(s.clock, { cause: 'revoked' }));
    await settle();
    expect(s.spool.of('receipt').map(({ epoch }) => epoch)).toEqual([2]);
  });

  it('that came too late says that the tree had ended', async () => {
    const s = await scene();
    await running(s);
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    s.runs.ended(grantId(1), ended(s.clock, { cause: 'exit' }));
    await settle();
    expect(s.spool.of('receipt')).toMatchObject([{ outcome: 'already_ended' }]);
  });

  it('whose keeper is gone empties the tree without it', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.runs.detached(grantId(1), keeper);
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    await settle();
    expect(s.swept).toEqual([grantId(1)]);
    expect(s.roots).toEqual([s.spool.of('started')[0]?.pid]); // on macOS it does not die with its keeper
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'revoked', proof: 'sweep' }]);
    expect(s.spool.of('receipt')).toMatchObject([{ outcome: 'killed' }]);
  });
});

describe('the end', () => {
  it('is recorded once, with every process accounted for; a second one is ignored', async () => {
    const s = await scene();
    await running(s);
    s.runs.ended(grantId(1), ended(s.clock));
    s.runs.ended(grantId(1), ended(s.clock));
    s.runs.notStarted(grantId(1));
    s.runs.detached(grantId(1), new FakeKeeper());
    await pass(s, 600_000);
    expect(s.spool.kinds).toEqual(['released', 'started', 'ended']);
    expect(s.spool.of('ended')[0]?.rows).toEqual([
      { pid: 5, ppid: 1, startTicks: '77', how: 'killed:9', name: 'daemon' },
    ]);
    expect(s.swept).toEqual([]);
  });

  it('leaves no escape behind: who holds the marker outside of the tree dies before the end is on record', async () => {
    const s = await scene();
    await running(s);
    const outsider = {
      grantId: grantId(1),
      pid: 9,
      ppid: 1,
      startTicks: '99',
      uid: 0,
      cgroup: '/',
      name: 'at',
    };
    s.outside = async () => [outsider];
    s.found = async () => ({
      processes: [
        {
          pid: 9,
          ppid: 1,
          startTicks: '99',
          how: { kind: 'killed', number: 9 },
          endedBootUs: 5_000,
          survivor: false,
          name: 'at',
        },
      ],
      emptyBootMs: s.clock.bootMs() + 7,
      complaints: [],
    });
    s.runs.ended(grantId(1), ended(s.clock));
    await settle();
    expect(s.swept).toEqual([grantId(1)]);
    const [body] = s.spool.of('ended');
    expect(body).toMatchObject({
      cause: 'exit',
      proof: 'keeper',
      emptyBootMs: Math.floor(s.clock.bootMs() + 7),
    });
    expect(body?.rows.at(-1)).toMatchObject({ pid: 9, how: 'killed:9', name: 'at', endedBootMs: 5 });
  });

  it('is not taken for clean where nobody could look for escapes: it is swept', async () => {
    const s = await scene();
    await running(s);
    s.outside = async () => undefined;
    s.runs.ended(grantId(1), ended(s.clock));
    await settle();
    expect(s.swept).toEqual([grantId(1)]);
    expect(s.spool.of('ended')).toHaveLength(1);
  });

  it('of a command that could not be executed is not_started', async () => {
    const s = await scene();
    const { grantId: id } = await s.runs.admit(ask(), peer);
    s.runs.attach(id, new FakeKeeper());
    s.runs.notStarted(id);
    await settle();
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'not_started', processes: 0, survivors: 0 }]);
  });

  it('started is recorded once, also when a keeper says it again', async () => {
    const s = await scene();
    await running(s);
    s.runs.started(grantId(1), 5000, '123');
    await settle();
    expect(s.spool.of('started')).toEqual([
      { grantId: grantId(1), runId: 'r_00000001', pid: 5000, startTicks: '123' },
    ]);
  });

  it('of a grant that nobody holds changes nothing', async () => {
    const s = await scene();
    s.runs.ended(grantId(5), ended(s.clock));
    s.runs.started(grantId(5), 1, '1');
    s.runs.notStarted(grantId(5));
    await settle();
    expect(s.spool.written).toEqual([]);
  });
});

describe('a keeper that is lost', () => {
  it('and dead: its tree is emptied at once, and closed as lost by a sweep', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.living.clear();
    s.found = async () => ({
      processes: [
        {
          ...{ pid: 5001, ppid: 1, startTicks: '9', how: { kind: 'killed', number: 9 }, name: 'orphan' },
          ...{ endedBootUs: 5_000, survivor: false },
        },
      ],
      emptyBootMs: s.clock.bootMs(),
      complaints: [],
    });
    s.runs.detached(grantId(1), keeper);
    await pass(s, 1);
    expect(s.spool.of('ended')).toMatchObject([
      { cause: 'lost', proof: 'sweep', survivors: 1, rows: [{ how: 'killed:9' }] },
    ]);
  });

  it('and alive: it has its time to come back, and no longer', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.runs.detached(grantId(1), keeper);
    await pass(s, keeperReturnMsMax - 100);
    expect(s.swept).toEqual([]);
    await pass(s, 200);
    expect(s.swept).toEqual([grantId(1)]);
  });

  it('that comes back in time keeps its tree', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.runs.detached(grantId(1), keeper);
    await pass(s, 1_000);
    s.runs.resume(grantId(1), peer, new FakeKeeper());
    await pass(s, keeperReturnMsMax * 2);
    expect(s.swept).toEqual([]);
    expect(s.runs.open).toBe(1);
  });

  it('and is back before its old connection was seen to end keeps its tree', async () => {
    const s = await scene();
    const old = await running(s);
    const back = new FakeKeeper();
    s.runs.resume(grantId(1), peer, back);
    s.runs.detached(grantId(1), old);
    await pass(s, keeperReturnMsMax * 2);
    expect(s.swept).toEqual([]);
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    expect(back.told).toHaveLength(1);
  });

  it('while its group is emptied for a revocation may come back, and says how the tree ended', async () => {
    const killed: string[] = [];
    const kill = (runId: string) => killed.push(runId) > 0;
    const s = await scene({ groups: { ...noGroups, kill } });
    const keeper = await running(s);
    s.runs.detached(grantId(1), keeper);
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    expect(killed).toHaveLength(1);
    await pass(s, keeperLagMsMax - 100);
    expect(s.swept).toEqual([]);
    const back = new FakeKeeper();
    s.runs.resume(grantId(1), peer, back);
    expect(back.told).toEqual([{ cause: 'revoked', graceMs: 0 }]);
    await pass(s, keeperLagMsMax + 1);
    expect(s.swept).toEqual([grantId(1)]);
  });

  it('whose run was revoked and closed without it is told why', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.runs.detached(grantId(1), keeper);
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    await pass(s, 1);
    expect(s.runs.open).toBe(0);
    expect([1, 2].map((each) => s.runs.whyNotOpen(grantId(each)))).toEqual(['revoked', 'agent']);
  });

  it('whose tree cannot be emptied is tried again, and not closed before it is', async () => {
    const s = await scene();
    const keeper = await running(s);
    s.living.clear();
    s.found = async () => ({ processes: [], emptyBootMs: undefined, complaints: ['pid 7 does not die'] });
    s.runs.detached(grantId(1), keeper);
    await pass(s, 1);
    expect([s.swept.length, s.runs.open, s.spool.of('ended').length]).toEqual([1, 1, 0]);
    s.found = async () => ({ processes: [], emptyBootMs: s.clock.bootMs(), complaints: [] });
    await pass(s, keeperReturnMsMax + 1);
    expect([s.swept.length, s.runs.open, s.spool.of('ended').length]).toEqual([2, 0, 1]);
  });

  it('is taken back only by the uid and the pid on record', async () => {
    const s = await scene();
    await running(s);
    for (const other of [
      { ...peer, uid: 0 },
      { ...peer, uid: 1001 },
      { ...peer, pid: 1 },
    ]) {
      expect(() => s.runs.resume(grantId(1), other, new FakeKeeper())).toThrow(/no open run/);
    }
    expect(() => s.runs.resume(grantId(2), peer, new FakeKeeper())).toThrow(/no open run/);
    expect(() => s.runs.resume(grantId(1), peer, new FakeKeeper())).not.toThrow();
  });
});

describe('after a restart of the agent', () => {
  it('the runs that were open are open again, and pin the ledger where they stand', async () => {
    const s = await scene();
    await running(s);
    await s.runs.admit(ask(), { ...peer, pid: 4343 });
    s.runs.ended(grantId(2), ended(s.clock));
    await settle();
    const next = await reborn(s);
    expect(next.runs.describe().map((run) => run.grantId)).toEqual([grantId(1)]);
    expect(next.runs.lowestOpenSeq()).toBe(1);
    expect((await reborn(next)).runs.lowestOpenSeq()).toBe(Number.POSITIVE_INFINITY);
  });

  it('a keeper that comes back is adopted, and still revocable', async () => {
    const s = await scene();
    await running(s);
    const next = await reborn(s);
    next.runs.awaitKeepers();
    const keeper = new FakeKeeper();
    next.runs.resume(grantId(1), peer, keeper);
    next.runs.started(grantId(1), 5000, '123');
    next.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    expect(keeper.told).toEqual([{ cause: 'revoked', graceMs: 0 }]);
    // `started` is on record from before.
    expect(next.spool.of('started')).toEqual([]);
  });

  it('a run whose keeper died meanwhile is emptied and closed as lost', async () => {
    const s = await scene();
    await running(s);
    const next = await reborn(s);
    next.living.clear();
    next.runs.awaitKeepers();
    await vi.advanceTimersByTimeAsync(1);
    await settle();
    expect(next.spool.of('ended')).toMatchObject([{ grantId: grantId(1), cause: 'lost', proof: 'sweep' }]);
  });

  it('a revocation pulled before any keeper is back empties the tree', async () => {
    const s = await scene();
    await running(s);
    const next = await reborn(s);
    next.runs.awaitKeepers();
    next.runs.revoke(revocation(grantId(1), 4), s.clock.bootMs(), s.clock.wallClock());
    await settle();
    expect(next.swept).toEqual([grantId(1)]);
    expect(next.spool.of('receipt')).toMatchObject([{ epoch: 4, outcome: 'killed' }]);
  });
});
