// Owns the proof of how an end goes on record: bounded, whom custody killed first, in one entry; and that old ones read.
import { ledgerEntryBytesMax, processRowsMax } from '@custody/core/limits';
import { hostKinds, type ProcessRow } from '@custody/wire/ledger';
import { describe, expect, it } from 'vitest';
import { endedBody, nothing, sweptRows, withRows, type Closing } from '../src/record.ts';

const own = {
  ...{ grantId: 'g_00000001', runId: 'r_00000001', containment: 'subreaper' as const },
  freshUntilBootMs: Infinity,
};
const row = (pid: number, how: string, more: Partial<ProcessRow> = {}): ProcessRow => ({
  ...{ pid, ppid: 1, startTicks: '7', how, name: 'sh', endedBootMs: 5 },
  ...more,
});
const end = (rows: readonly ProcessRow[]): Closing => ({
  ...nothing,
  ...{ cause: 'exit', proof: 'keeper', emptyBootMs: 9.5, processes: rows.length, rows },
});

describe('an end with more processes than a record has room for', () => {
  const exited = Array.from({ length: processRowsMax - 1 }, (_, index) => row(index + 10, 'exit:0'));
  const survivor = row(9, 'exit:0', { survivor: true });

  it('keeps whom custody killed and the survivors; of those that ended by themselves there are counts', () => {
    const killed = Array.from({ length: 100 }, (_, index) => row(index + 1_000, 'killed:9'));
    const { rows, unlisted, processes } = withRows(end([survivor, ...exited]), killed);
    expect(rows).toHaveLength(processRowsMax);
    expect(rows).toEqual([survivor, ...exited.slice(100), ...killed]);
    expect(unlisted).toEqual({ exit: 100 });
    expect(processes).toBe(processRowsMax + 100);
  });

  it('drops of the killed those that were found last, and adds to what was counted before', () => {
    const killed = Array.from({ length: processRowsMax + 5 }, (_, index) => row(index + 1_000, 'killed:9'));
    const before = { ...end([survivor, row(8, 'signal:11')]), unlisted: { exit: 3, killed: 1 } };
    const { rows, unlisted } = withRows(before, killed);
    expect(rows).toEqual([survivor, ...killed.slice(0, processRowsMax - 1)]);
    expect(unlisted).toEqual({ exit: 3, killed: 1 + 6, signal: 1 });
  });
});

it('the largest end fits into one entry of the ledger', () => {
  const rows = Array.from({ length: processRowsMax }, () => ({
    ...{ pid: 4_194_304, ppid: 4_194_304, startTicks: '9'.repeat(12), how: 'killed:15' },
    // The kernel keeps 15 bytes of a name; each may be one that is shown as three, or quoted.
    ...{ name: '\ufffd'.repeat(15), endedBootMs: 9_999_999_999_999, survivor: true as const },
  }));
  const unlisted = { exit: 4e9, signal: 4e9, killed: 4e9, gone: 4e9 };
  const body = endedBody(own, { ...end(rows), unlisted });
  expect(hostKinds.ended.parse(body)).toEqual(body);
  expect(Buffer.byteLength(JSON.stringify(body))).toBeLessThan(ledgerEntryBytesMax - 1_024);
});

it('an end says nothing of counts where every process has a row', () => {
  expect(Object.keys(endedBody(own, end([row(1, 'exit:0')])))).not.toContain('unlisted');
});

it('an end of 0.1.0 reads as it did', () => {
  const old = {
    ...{ grantId: 'g_00000001', runId: 'r_00000001', cause: 'exit', rootStatus: 'exit:0', emptyBootMs: 9 },
    ...{ survivors: 1, processes: 2, proof: 'keeper', containment: 'subreaper' },
    rows: [{ pid: 5, ppid: 1, startTicks: '7', how: 'killed:9', name: 'daemon' }],
  };
  expect(hostKinds.ended.parse(old)).toEqual(old);
});

it('whom the agent killed with the group is on record with when, once, and without the keeper', () => {
  const member = { ppid: 4, startTicks: '7', name: 'sh' };
  const swept = {
    ...{ pid: 6, ppid: 1, startTicks: '7', how: { kind: 'killed', number: 9 } as const, name: 'at' },
    ...{ endedBootUs: 8_500, survivor: false },
  };
  const rows = sweptRows(
    { keeperPid: 4 },
    [4, 5].map((pid) => ({ pid, ...member })),
    [swept],
    7.9,
  );
  expect(rows).toEqual([
    { pid: 6, ppid: 1, startTicks: '7', how: 'killed:9', name: 'at', endedBootMs: 8 },
    { pid: 5, ...member, how: 'killed:9', endedBootMs: 7 },
  ]);
});
