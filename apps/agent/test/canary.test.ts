// The canary of a host: always one, never two, and nobody else's.
import { canaryField, canaryPath } from '@custody/core/canary';
import { canaryPauseMsMax, canaryRetryMs, canaryTtlMs, reconcileIntervalMs } from '@custody/core/limits';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Canary } from '../src/canary.ts';
import { ask, peer, scene } from './fakes.ts';
import { captureLog, Clock } from './support.ts';

const wanted = [{ name: 'CUSTODY_CANARY', path: canaryPath, field: canaryField }];

function tended() {
  const clock = new Clock();
  const state = { ready: true, open: false, random: 0.5, fails: false };
  const started: { reference: string; ttlMs: number; end: () => void }[] = [];
  const { log, text } = captureLog();
  const canary = new Canary({
    ready: () => state.ready,
    open: () => state.open,
    start: (reference, ttlMs) => {
      if (state.fails) throw new Error('no keeper');
      let end = () => {};
      const ended = new Promise<string>((resolve) => (end = () => resolve('exit 123')));
      started.push({ reference, ttlMs, end });
      return { pid: 4_000 + started.length, ended };
    },
    end: () => started.at(-1)?.end(),
    bootMs: clock.bootMs,
    random: () => state.random,
    log,
  });
  return { canary, clock, state, started, text };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe('a host that may ask for grants', () => {
  it('starts a canary at once, and no second while it stands', async () => {
    const { canary, clock, state, started } = tended();
    await using _ = canary;
    canary.tend();
    expect(started).toMatchObject([{ reference: 'custody://custody/canary/value', ttlMs: canaryTtlMs }]);
    expect(canary.isKeeper(4_001)).toBe(true);
    expect(canary.isKeeper(4_002)).toBe(false);
    state.open = true;
    clock.advance(canaryTtlMs);
    vi.advanceTimersByTime(10 * reconcileIntervalMs);
    expect(started).toHaveLength(1);
  });

  it('waits its own share of the pause after a kill, so that a fleet does not come back at one instant', async () => {
    const { canary, clock, state, started } = tended();
    await using _ = canary;
    canary.tend();
    state.open = true;
    clock.advance(3_600_000);
    canary.tend();
    state.open = false;
    started[0]?.end();
    await vi.advanceTimersByTimeAsync(0);
    expect(canary.isKeeper(4_001)).toBe(false);
    clock.advance(canaryPauseMsMax / 2 - 1);
    canary.tend();
    expect(started).toHaveLength(1);
    clock.advance(1);
    vi.advanceTimersByTime(reconcileIntervalMs);
    expect(started).toHaveLength(2);
  });

  it('tries again after a pause where it was refused or could not be started', async () => {
    const { canary, clock, state, started, text } = tended();
    await using _ = canary;
    state.fails = true;
    canary.tend();
    expect(text()).toContain('a canary could not be started');
    state.fails = false;
    canary.tend();
    expect(started).toHaveLength(0);
    clock.advance(canaryRetryMs);
    canary.tend();
    started[0]?.end(); // refused: it never was open
    await vi.advanceTimersByTimeAsync(0);
    canary.tend();
    expect(started).toHaveLength(1);
    clock.advance(canaryRetryMs);
    canary.tend();
    expect(started).toHaveLength(2);
  });

  it('ends it when the agent stops, and starts no other', async () => {
    const { canary, clock, started } = tended();
    canary.tend();
    await canary[Symbol.asyncDispose]();
    expect(canary.isKeeper(4_001)).toBe(false);
    clock.advance(canaryTtlMs);
    canary.tend();
    expect(started).toHaveLength(1);
  });

  it('starts none where no grant could be asked for', async () => {
    const { canary, state, started } = tended();
    await using _ = canary;
    state.ready = false;
    canary.tend();
    expect(started).toHaveLength(0);
  });
});

describe('the credential of a canary', () => {
  it('is given to the keeper that the agent started, whatever policy says', async () => {
    const { runs } = await scene({ isCanaryKeeper: (pid) => pid === peer.pid });
    await expect(runs.admit(ask({ wanted }), peer)).resolves.toMatchObject({ grantId: expect.any(String) });
  });

  it('is refused to anybody else, and beside another credential, without a question to the control plane', async () => {
    const stranger = await scene();
    await expect(stranger.runs.admit(ask({ wanted }), peer)).rejects.toMatchObject({
      code: 'denied_by_policy',
    });
    const more = await scene({ isCanaryKeeper: () => true });
    const both = [...wanted, { name: 'KEY', path: 'prod/stripe', field: 'api_key' }];
    await expect(more.runs.admit(ask({ wanted: both }), peer)).rejects.toMatchObject({
      code: 'denied_by_policy',
    });
    expect(stranger.link.asked).toHaveLength(0);
    expect(more.link.asked).toHaveLength(0);
  });
});
