// Owns the proof that error codes and bounds are stable: what a program matches on does not change by accident.
import { readFileSync, writeFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { CustodyError, errorCodes, exitCodeOf, isErrorCode, statusOf } from '../src/errors.ts';
import * as limits from '../src/limits.ts';

it('every code has a status and an exit code, and none of them changes (CUSTODY_GOLDEN=write)', () => {
  const golden = new URL('golden/error-codes.txt', import.meta.url);
  const text = errorCodes.map((code) => `${code} ${statusOf(code)} ${exitCodeOf(code)}\n`).join('');
  if (process.env['CUSTODY_GOLDEN'] === 'write') writeFileSync(golden, text);
  expect(text).toBe(readFileSync(golden, 'utf8'));
});

it('a status is that of a refusal, an exit code one that custody may give', () => {
  for (const code of errorCodes) {
    expect(statusOf(code)).toBeGreaterThanOrEqual(400);
    expect(statusOf(code)).toBeLessThan(600);
    expect([1, 2, 125]).toContain(exitCodeOf(code));
    expect(code).toMatch(/^[a-z]+(_[a-z0-9]+)*$/);
  }
});

it('only the table is a code: not what every object has', () => {
  expect(errorCodes.every(isErrorCode)).toBe(true);
  for (const text of ['', 'toString', '__proto__', 'constructor', 'hasOwnProperty', 'NOT_FOUND']) {
    expect(isErrorCode(text)).toBe(false);
  }
});

it('an error keeps its cause for the log and out of what is shown', () => {
  const error = new CustodyError('not_found', 'there is no secret prod/x', {
    next: 'look',
    cause: new Error('row 7'),
  });
  expect(error.message).toBe(error.publicMessage);
  expect(error.publicMessage + String(error.next)).not.toContain('row 7');
  expect((error.cause as Error).message).toBe('row 7');
  expect('cause' in new CustodyError('internal', 'x')).toBe(false);
});

it('every bound is a positive whole number, named with its unit last', () => {
  const names = Object.entries(limits);
  expect(names.length).toBeGreaterThan(30);
  expect(names.filter(([, value]) => !Number.isSafeInteger(value) || value <= 0)).toEqual([]);
  expect(names.filter(([name]) => !/(Max|Min|Default|Ms)$/.test(name))).toEqual([]);
});

it('the bounds agree with each other', () => {
  expect(limits.ttlMsMin).toBeLessThan(limits.ceilingMsDefault);
  expect(limits.ceilingMsDefault).toBeLessThanOrEqual(limits.ttlMsMax);
  // A secret's largest value must fit in one request, as base64.
  expect(limits.secretValueBytesMax * 2).toBeLessThan(limits.httpBodyBytesMax);
  // A batch must be able to hold the largest entry, and the bus the batch.
  expect(limits.ledgerEntryBytesMax).toBeLessThan(limits.ledgerBatchBytesMax);
  expect(limits.ledgerBatchBytesMax).toBeLessThan(limits.busMessageBytesMax);
  // A keeper must be able to come back before the agent empties its tree twice over.
  expect(limits.keeperReturnMsMax).toBeGreaterThan(2_000);
  // What an agent remembers of revocations must cover what one page brings.
  expect(limits.revocationsKeptMax).toBeGreaterThanOrEqual(limits.revocationPageMax);
});
