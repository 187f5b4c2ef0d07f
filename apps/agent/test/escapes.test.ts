// The watch for escapes: one scan at a time, each escape on record once, and never without a bound.
import { escapeRecordsMax, escapeScanIntervalMs } from '@custody/core/limits';
import type { Outsider } from '@custody/keeper/scan';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Escapes, type Seen } from '../src/escapes.ts';
import { captureLog, grantId } from './support.ts';

const outsider = (pid: number): Outsider => ({
  ...{ grantId: grantId(1), pid, ppid: 1, startTicks: '7', uid: 0, cgroup: '/', name: 'at' },
});

function watching(found: () => Promise<readonly Outsider[]>) {
  const run = { grantId: grantId(1), runId: 'r_1', keeper: undefined, credentials: [] };
  const open: Seen[] = [{ ...run, escapes: new Set() }];
  const recorded: number[] = [];
  let scans = 0;
  const { log, text } = captureLog();
  const escapes = new Escapes({
    open: () => open,
    scan: () => {
      scans += 1;
      return found();
    },
    record: (_, { pid }) => recorded.push(pid),
    log,
  });
  return { escapes, open, recorded, text, scans: () => scans };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe('escapes', () => {
  it('are looked for while a run is open, and no longer', async () => {
    const w = watching(async () => []);
    w.escapes.watch();
    await vi.advanceTimersByTimeAsync(escapeScanIntervalMs * 2);
    expect(w.scans()).toBe(2);
    w.open.length = 0;
    await vi.advanceTimersByTimeAsync(escapeScanIntervalMs * 5);
    expect(w.scans()).toBe(2);
  });

  it('are on record once each, and bounded', async () => {
    const all = Array.from({ length: escapeRecordsMax + 10 }, (_, index) => outsider(index + 2));
    const w = watching(async () => all);
    await w.escapes.look();
    await w.escapes.look();
    expect(w.recorded).toEqual(all.slice(0, escapeRecordsMax).map(({ pid }) => pid));
  });

  it('are looked for once for all who ask while a scan is under way, by a scan that begins after they asked', async () => {
    const scans: PromiseWithResolvers<readonly Outsider[]>[] = [];
    const w = watching(() => {
      const scan = Promise.withResolvers<readonly Outsider[]>();
      scans.push(scan);
      return scan.promise;
    });
    const first = w.escapes.look();
    const [second, third] = [w.escapes.look(), w.escapes.look()];
    expect(w.scans()).toBe(1);
    scans[0]?.resolve([]);
    expect(await first).toEqual([]);
    await vi.advanceTimersByTimeAsync(0);
    expect(w.scans()).toBe(2);
    scans[1]?.resolve([outsider(9)]);
    expect([await second, await third]).toEqual([[outsider(9)], [outsider(9)]]);
    const later = w.escapes.look();
    scans[2]?.resolve([]);
    await later;
    expect(w.scans()).toBe(3);
  });

  it('that cannot be looked for are in the log and not taken for none, and the next look is made', async () => {
    let fails = true;
    const w = watching(async () => {
      if (fails) throw new Error('no more processes');
      return [outsider(5)];
    });
    expect(await w.escapes.look()).toBeUndefined();
    expect(w.text()).toContain('no more processes');
    fails = false;
    expect(await w.escapes.look()).toEqual([outsider(5)]);
  });
});
