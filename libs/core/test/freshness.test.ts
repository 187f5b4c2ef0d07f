// Owns the proof of freshness: nothing is ever proven that was not so, whatever is delayed, lost, repeated or out of order.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  endSlackMs,
  freshUntil,
  hearBeacon,
  hearProof,
  isOfLog,
  isSetBack,
  mustAsk,
  revokedBound,
  unproven,
  type HeadStatement,
  type Standing,
} from '../src/freshness.ts';
import { anchorIntervalMs, anchorMsMax, beaconIntervalMs, beaconSkewMsMax } from '../src/limits.ts';

const log = 'log_00000001';
/** By a database whose clock is nowhere near the host's. */
const atMs = Date.UTC(2001, 0, 1);
const askedBootMs = 50_000;
const anchored = hearProof(unproven, { log, epoch: 3, atMs }, askedBootMs);
const followed = { log, cursor: 3 };
const beacon = (more: Partial<HeadStatement> = {}): HeadStatement => ({
  log,
  epoch: 3,
  atMs: atMs + 5_000,
  ...more,
});

describe('a beacon', () => {
  it.each<[string, string, Standing, HeadStatement, number]>([
    ['in time', 'fresh', anchored, beacon(), askedBootMs + 5_200],
    [
      'of an older epoch than the host has applied',
      'fresh',
      anchored,
      beacon({ epoch: 2 }),
      askedBootMs + 5_200,
    ],
    ['of another log', 'other_log', anchored, beacon({ log: 'log_00000002' }), askedBootMs + 5_200],
    ['that knows more than the host', 'behind', anchored, beacon({ epoch: 4 }), askedBootMs + 5_200],
    ['before the host has asked', 'unanchored', unproven, beacon(), askedBootMs],
    ['after an anchor too old', 'unanchored', anchored, beacon(), askedBootMs + anchorMsMax + 1],
    ['from the future', 'future', anchored, beacon(), askedBootMs + 5_000 - beaconSkewMsMax - 1],
    ['from before the anchor', 'old', anchored, beacon({ atMs: atMs - 1 }), askedBootMs + 200],
  ])('%s is %s', (_, verdict, known, heard, heardBootMs) => {
    const judged = hearBeacon(known, heard, followed, heardBootMs);
    expect(judged.verdict).toBe(verdict);
    if (verdict !== 'fresh') expect(judged.standing).toBe(known);
  });

  it('proves the instant it was made, and not the one it came', () => {
    const { standing } = hearBeacon(anchored, beacon(), followed, askedBootMs + 60_000);
    expect(standing.provenBootMs).toBe(askedBootMs + 5_000);
    // Sent once more it proves nothing.
    expect(hearBeacon(standing, beacon(), followed, askedBootMs + 90_000)).toEqual({
      verdict: 'old',
      standing,
    });
  });

  it('a little from the future proves no more than now', () => {
    const heardBootMs = askedBootMs + 5_000 - beaconSkewMsMax;
    expect(hearBeacon(anchored, beacon(), followed, heardBootMs).standing.provenBootMs).toBe(heardBootMs);
  });
});

it('a proof that comes late does not take back what a later one proved', () => {
  const later = hearProof(anchored, { log, epoch: 3, atMs: atMs + 9_000 }, askedBootMs + 9_000);
  expect(hearProof(later, { log, epoch: 3, atMs: atMs + 1_000 }, askedBootMs + 1_000).provenBootMs).toBe(
    askedBootMs + 9_000,
  );
});

it('a log is set back when its name changes, or when it knows less than it was asked from', () => {
  expect(isSetBack(followed, beacon())).toBe(false);
  expect(isSetBack({ log: undefined, cursor: 0 }, beacon())).toBe(false);
  expect(isSetBack(followed, beacon({ epoch: 2 }))).toBe(true);
  expect(isSetBack({ log: undefined, cursor: 4 }, beacon())).toBe(true);
  expect(isSetBack(followed, beacon({ log: 'log_00000002', epoch: 9 }))).toBe(true);
});

it.each<[string, Parameters<typeof isOfLog>[0], Parameters<typeof isOfLog>[1], boolean]>([
  ['without a name in a log that never was renewed', { log, since: undefined }, { epoch: 9 }, true],
  ['with a name in a log that never was renewed', { log, since: undefined }, { epoch: 9, log }, false],
  ['of the log it follows', { log, since: 3 }, { epoch: 4, log }, true],
  ['of a former life', { log, since: 3 }, { epoch: 3 }, true],
  ['of a life before that', { log, since: 3 }, { epoch: 2, log: 'log_00000000' }, true],
  ['without a name, of what was lost', { log, since: 3 }, { epoch: 4 }, false],
  ['with the name of what was lost', { log, since: 3 }, { epoch: 4, log: 'log_00000000' }, false],
  ['to a host that knows no log yet', { log: undefined, since: undefined }, { epoch: 4 }, true],
])('an entry %s: whether it is taken', (_, follows, entry, taken) => {
  expect(isOfLog(follows, entry)).toBe(taken);
});

it('a host asks when it has heard nothing for two beacons, and when its anchor is old', () => {
  expect(mustAsk(unproven, 0)).toBe(true);
  expect(mustAsk(anchored, askedBootMs + 2 * beaconIntervalMs)).toBe(false);
  expect(mustAsk(anchored, askedBootMs + 2 * beaconIntervalMs + 1)).toBe(true);
  const heard: Standing = { ...anchored, provenBootMs: askedBootMs + anchorIntervalMs };
  expect(mustAsk(heard, askedBootMs + anchorIntervalMs - 1)).toBe(false);
  expect(mustAsk(heard, askedBootMs + anchorIntervalMs)).toBe(true);
});

describe('the bound of a revocation', () => {
  const grantedAt = new Date('2026-11-22T09:30:00.000Z');
  const after = (ms: number): Date => new Date(grantedAt.getTime() + ms);
  const strict = { grantedAt, ceilingMs: 900_000, freshness: { kind: 'strict', ms: 60_000 } } as const;

  it('of a strict grant is its freshness after the revocation, or its ceiling where that is earlier', () => {
    expect(revokedBound(strict, after(100_000))).toEqual(after(160_000 + endSlackMs));
    expect(revokedBound(strict, after(890_000))).toEqual(after(900_000 + endSlackMs));
  });

  it('of one that is best effort is its ceiling', () => {
    const grant = { ...strict, freshness: { kind: 'best_effort' } } as const;
    expect(revokedBound(grant, after(0))).toEqual(after(900_000 + endSlackMs));
    expect(freshUntil(grant.freshness, 5)).toBe(Infinity);
  });
});

/** What may happen between a log, a host and whoever stands between them. */
type Step =
  | { readonly what: 'wait'; readonly ms: number }
  | { readonly what: 'revoke' | 'state' | 'ask' | 'answer' | 'entry' }
  | { readonly what: 'deliver' | 'reply'; readonly which: number };

const steps = fc.array(
  fc.oneof(
    { weight: 4, arbitrary: fc.record({ what: fc.constant('wait' as const), ms: fc.nat(40_000) }) },
    {
      weight: 6,
      arbitrary: fc.record({
        what: fc.constantFrom(
          'revoke' as const,
          'state' as const,
          'ask' as const,
          'answer' as const,
          'entry' as const,
        ),
      }),
    },
    {
      weight: 5,
      arbitrary: fc.record({
        what: fc.constantFrom('deliver' as const, 'reply' as const),
        which: fc.nat(30),
      }),
    },
  ),
  { minLength: 10, maxLength: 120 },
);

type Judge = typeof hearBeacon;

/**
 * Plays the steps with true time at hand: says the first revocation that was made before what the host holds to be
 * proven, and that it has not applied. Beacons and answers come when they like, as often as they like, or never.
 */
function missed(
  plan: readonly Step[],
  databaseAheadMs: number,
  bootMs: number,
  judge: Judge,
): number | undefined {
  let nowMs = 1_000_000;
  let standing: Standing = unproven;
  let cursor = 0;
  const revokedMs: number[] = [];
  const beacons: HeadStatement[] = [];
  const questions: { askedBootMs: number; answer: HeadStatement | undefined }[] = [];
  const state = (): HeadStatement => ({ log, epoch: revokedMs.length, atMs: nowMs + databaseAheadMs });
  const pick = <Item>(items: readonly Item[], which: number): Item | undefined => items[which % items.length];
  for (const step of plan) {
    if (step.what === 'wait') nowMs += step.ms;
    else if (step.what === 'revoke') revokedMs.push(nowMs);
    else if (step.what === 'state') beacons.push(state());
    else if (step.what === 'entry') cursor = Math.min(cursor + 1, revokedMs.length);
    else if (step.what === 'ask') questions.push({ askedBootMs: nowMs - bootMs, answer: undefined });
    else if (step.what === 'answer') for (const each of questions) each.answer ??= state();
    else if (step.what === 'deliver') {
      const heard = pick(beacons, step.which);
      if (heard !== undefined) standing = judge(standing, heard, { log, cursor }, nowMs - bootMs).standing;
    } else if (step.what === 'reply') {
      const asked = pick(questions, step.which);
      if (asked?.answer !== undefined) {
        cursor = Math.max(cursor, asked.answer.epoch);
        standing = hearProof(standing, asked.answer, asked.askedBootMs);
      }
    }
    const provenMs = (standing.provenBootMs ?? -Infinity) + bootMs;
    const found = revokedMs.findIndex((at, index) => at < provenMs && index >= cursor);
    if (found >= 0 || provenMs > nowMs) return found;
  }
  return undefined;
}

const clocks = [fc.integer({ min: -1e10, max: 1e10 }), fc.integer({ min: -1e6, max: 1e6 })] as const;

it('whatever is proven is so: every revocation made before it has been applied, hours of clock skew or not', () => {
  fc.assert(
    fc.property(steps, ...clocks, (plan, ahead, boot) => missed(plan, ahead, boot, hearBeacon) === undefined),
    { numRuns: 3_000 },
  );
});

it.each<[string, Judge]>([
  [
    'takes a beacon to be as young as its coming',
    (known, heard, { cursor }, heardBootMs) =>
      heard.epoch > cursor
        ? { verdict: 'behind', standing: known }
        : { verdict: 'fresh', standing: { ...known, provenBootMs: heardBootMs } },
  ],
  [
    'counts a beacon that knows of entries it lacks',
    (known, heard, { log: name }, heardBootMs) =>
      hearBeacon(known, heard, { log: name, cursor: Infinity }, heardBootMs),
  ],
])('a host that %s is found out', (_, planted) => {
  const found = fc.check(
    fc.property(steps, ...clocks, (plan, ahead, boot) => missed(plan, ahead, boot, planted) === undefined),
    { numRuns: 3_000 },
  );
  expect(found.failed).toBe(true);
});
