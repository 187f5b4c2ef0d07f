// Owns the proof of the small decisions: durations, ceilings, obligations, revocations.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { durationMs, formatDuration, requireDurationMs } from '../src/duration.ts';
import { decideCeiling } from '../src/grant.ts';
import { ceilingMsDefault, ttlMsMax } from '../src/limits.ts';
import {
  annotationProblem,
  combineObligations,
  freshnessDefault,
  knownAnnotations,
  missingContainment,
  unionOf,
  decideOnExit,
} from '../src/policy.ts';
import {
  classify,
  describeTarget,
  hits,
  keyOf,
  stands,
  type GrantFacts,
  type RevocableGrant,
  type RevocationTarget,
} from '../src/revocation.ts';

describe('a duration', () => {
  it.each([
    ['500ms', 500],
    ['30s', 30_000],
    ['15m', 900_000],
    ['1h', 3_600_000],
    ['7d', 604_800_000],
    ['0s', 0],
    ['007s', 7_000],
  ])('%s is %d ms', (text, ms) => expect(durationMs(text)).toBe(ms));

  it.each([
    '',
    '1',
    's',
    '1.5h',
    '-1s',
    '1 s',
    '1S',
    '1w',
    '1s ',
    '1s\n',
    '1e3s',
    '999999999999d',
    '１s',
    '1m30s',
  ])('%j is none', (text) => {
    expect(durationMs(text)).toBeUndefined();
    expect(() => requireDurationMs(text, '--ttl')).toThrow(/^--ttl: .* is not a duration$/);
  });

  it('survives being written and read', () => {
    fc.assert(
      fc.property(fc.nat({ max: 2 ** 31 - 1 }), (ms) => {
        expect(durationMs(formatDuration(ms))).toBe(ms);
      }),
    );
  });

  it('is written in the largest unit that divides it', () => {
    expect([0, 1, 1_000, 90_000, 3_600_000, 86_400_000].map(formatDuration)).toEqual([
      '0ms',
      '1ms',
      '1s',
      '90s',
      '1h',
      '1d',
    ]);
  });
});

describe('a ceiling', () => {
  const ms = fc.nat({ max: ttlMsMax * 2 });
  const maybe = fc.option(ms, { nil: undefined });

  it('is never more than policy, request, parent or the most any grant may last', () => {
    fc.assert(
      fc.property(ms, maybe, maybe, (policyMs, requestMs, parentMs) => {
        const { ceilingMs, note } = decideCeiling({ policyMs, requestMs, parentMs });
        const bound = Math.min(policyMs, parentMs ?? Infinity, ttlMsMax);
        expect(ceilingMs).toBe(Math.min(bound, requestMs ?? Infinity));
        expect(note !== undefined).toBe(requestMs !== undefined && requestMs > bound);
      }),
      { numRuns: 1_000 },
    );
  });

  it.each([
    [
      { policyMs: 900_000, requestMs: 3_600_000, parentMs: undefined },
      'ttl 1h is more than the policy allows: the ceiling is 15m',
    ],
    [
      { policyMs: 900_000, requestMs: 60_000, parentMs: 30_000 },
      'ttl 1m is more than the parent grant leaves: the ceiling is 30s',
    ],
    [
      { policyMs: ttlMsMax * 2, requestMs: ttlMsMax + 1_000, parentMs: undefined },
      `ttl ${formatDuration(ttlMsMax + 1_000)} is more than any grant may last: the ceiling is 7d`,
    ],
  ])('that is lower than what was asked says why', (asked, note) =>
    expect(decideCeiling(asked).note).toBe(note),
  );

  it('of a parent that has nothing left is nothing', () => {
    expect(decideCeiling({ policyMs: 900_000, requestMs: undefined, parentMs: 0 })).toEqual({
      ceilingMs: 0,
      note: undefined,
    });
  });
});

describe('obligations', () => {
  it('are the most restrictive of those that permit', () => {
    expect(
      combineObligations([
        { ceiling: '1h', freshness: 'best_effort' },
        { ceiling: '5m', freshness: 'strict 60s' },
        { ceiling: '15m', freshness: 'strict 20s' },
      ]),
    ).toMatchObject({ ceilingMs: 300_000, freshness: { kind: 'strict', ms: 20_000 }, containment: [] });
  });

  it('require every containment that one of the policies requires', () => {
    const made = combineObligations([{}, { containment: 'subreaper' }, { containment: 'cgroup' }]);
    expect(made.containment).toEqual(['cgroup', 'subreaper']);
    expect(unionOf([made.containment, ['cgroup', 'kqueue']])).toEqual(['cgroup', 'kqueue', 'subreaper']);
  });

  it('on containment are met by what is at least as strong, and by nothing else', () => {
    expect(missingContainment(['cgroup', 'subreaper'], 'cgroup')).toEqual([]);
    expect(missingContainment(['cgroup', 'subreaper'], 'subreaper')).toEqual(['cgroup']);
    expect(missingContainment(['subreaper'], 'kqueue')).toEqual(['subreaper']);
    expect(missingContainment([], 'kqueue')).toEqual([]);
  });

  it('have defaults where a policy says nothing, and a longer ceiling beside it does not lift them', () => {
    expect(combineObligations([{}])).toMatchObject({
      ceilingMs: ceilingMsDefault,
      freshness: freshnessDefault,
    });
    expect(combineObligations([{}, { ceiling: '7d', freshness: 'best_effort' }])).toMatchObject({
      ceilingMs: ceilingMsDefault,
      freshness: freshnessDefault,
      containment: [],
    });
  });

  it('of no policy at all allow nothing', () => {
    expect(combineObligations([]).ceilingMs).toBe(0);
  });

  it('of delivery and of the end are what all allow, and kill where one says so', () => {
    const of = (...all: Record<string, string>[]) => {
      const { deliver, onExit } = combineObligations(all);
      return [deliver.join(' '), onExit];
    };
    expect(of({})).toEqual(['env file fifo fd', undefined]);
    expect(of({ deliver: 'fd, file' }, {})).toEqual(['file fd', undefined]);
    expect(of({ deliver: 'file fd' }, { deliver: 'env fd' })).toEqual(['fd', undefined]);
    expect(of({ deliver: 'file' }, { deliver: 'env' })).toEqual(['', undefined]);
    expect(of({ on_exit: 'wait' }, {})[1]).toBe('wait');
    expect(of({ on_exit: 'wait' }, { on_exit: 'kill' })[1]).toBe('kill');
  });

  it.each([
    [undefined, undefined, 'kill', false],
    [undefined, 'wait', 'wait', false],
    ['wait', undefined, 'wait', false],
    ['wait', 'kill', 'kill', false],
    ['kill', undefined, 'kill', false],
    ['kill', 'wait', 'kill', true],
  ] as const)('policy %s and run %s make %s', (policy, asked, onExit, noted) => {
    const made = decideOnExit(policy, asked);
    expect([made.onExit, made.note !== undefined]).toEqual([onExit, noted]);
  });

  it('never grow when one more policy permits', () => {
    const annotations = fc.record(
      {
        ceiling: fc.constantFrom('1s', '30s', '15m', '1h', '7d', '500ms'),
        freshness: fc.constantFrom('best_effort', 'strict 15s', 'strict 60s', 'strict 1h'),
        deliver: fc.constantFrom('env', 'file fd', 'env,file,fifo,fd'),
        on_exit: fc.constantFrom('kill', 'wait'),
      },
      { requiredKeys: [] },
    );
    const strictness = (made: ReturnType<typeof combineObligations>): number =>
      made.freshness.kind === 'strict' ? made.freshness.ms : Infinity;
    fc.assert(
      fc.property(fc.array(annotations, { minLength: 1, maxLength: 6 }), annotations, (before, one) => {
        const [less, more] = [combineObligations(before), combineObligations([...before, one])];
        expect(more.ceilingMs).toBeLessThanOrEqual(less.ceilingMs);
        expect(strictness(more)).toBeLessThanOrEqual(strictness(less));
        expect(less.deliver).toEqual(expect.arrayContaining([...more.deliver]));
        if (less.onExit === 'kill') expect(more.onExit).toBe('kill');
      }),
    );
  });

  it.each([
    ['approval', 'security'],
    ['ceilng', '15m'],
    ['toString', 'x'],
    ['ceiling', ''],
    ['ceiling', '0s'],
    ['ceiling', '8d'],
    ['ceiling', 'forever'],
    ['freshness', 'strict'],
    ['freshness', 'strict 0s'],
    ['freshness', 'strict 14s'],
    ['freshness', 'strict 60s please'],
    ['freshness', 'lenient 60s'],
    ['containment', ''],
    ['containment', 'docker'],
    ['deliver', ''],
    ['deliver', 'env disk'],
    ['on_exit', 'detach'],
    ['id', ''],
    ['id', 'a b'],
    ['id', 'a\nb'],
    ['id', 'a'.repeat(129)],
  ])('@%s(%j) is refused when it is applied', (name, value) => {
    expect(annotationProblem(name, value)).toContain(`@${name}`);
  });

  it('that this version knows can be read', () => {
    const good: Record<string, string> = {
      id: 'a/b-1',
      description: 'any text',
      ceiling: '7d',
      freshness: 'strict 60s',
      containment: 'cgroup',
      deliver: 'file fd',
      on_exit: 'kill',
    };
    const problems = knownAnnotations.map((name) => annotationProblem(name, good[name] ?? ''));
    expect(problems.filter((problem) => problem !== undefined)).toEqual([]);
  });
});

describe('a revocation', () => {
  it('is applied in order, once, and never over a gap', () => {
    fc.assert(
      fc.property(fc.nat({ max: 1_000 }), fc.integer({ min: 1, max: 1_010 }), (cursor, epoch) => {
        const what = classify(cursor, epoch);
        expect(what === 'apply').toBe(epoch === cursor + 1);
        expect(what === 'known').toBe(epoch <= cursor);
        expect(what === 'gap').toBe(epoch > cursor + 1);
      }),
    );
  });

  it('whatever the order entries come in, each is applied exactly once and in its turn', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 8 }), { maxLength: 60 }), (heard) => {
        const applied: number[] = [];
        for (const epoch of heard) if (classify(applied.length, epoch) === 'apply') applied.push(epoch);
        expect(applied).toEqual(applied.map((_, index) => index + 1));
      }),
    );
  });

  const facts = (n: number, more: Partial<GrantFacts> = {}): GrantFacts => ({
    ...{ grantId: `g_0000000${n}`, runId: `r_0000000${n}`, hostId: 'h_1', subject: 'host-a/1000' },
    ...{ credentials: [{ path: 'prod/stripe', version: 2 }], policyRevision: 7 },
    ...more,
  });
  const grant = (n: number, more: Partial<RevocableGrant> = {}): RevocableGrant => ({
    ...facts(n, more),
    within: more.within ?? [],
  });

  it.each<[RevocationTarget, boolean]>([
    [{ kind: 'grant', id: 'g_00000001' }, true],
    [{ kind: 'grant', id: 'g_000000010' }, false],
    [{ kind: 'run', id: 'r_00000001' }, true],
    [{ kind: 'run', id: 'g_00000001' }, false],
    [{ kind: 'host', id: 'h_1', name: 'another' }, true],
    [{ kind: 'host', id: 'h_2', name: 'host-a' }, false],
    [{ kind: 'subject', subject: 'host-a/1000' }, true],
    [{ kind: 'subject', subject: 'host-a/100' }, false],
    [{ kind: 'secret', path: 'prod/stripe' }, true],
    [{ kind: 'secret', path: 'prod/stripe', version: 2 }, true],
    [{ kind: 'secret', path: 'prod/stripe', version: 1 }, false],
    [{ kind: 'secret', path: 'prod' }, false],
    [{ kind: 'prefix', path: 'prod' }, true],
    [{ kind: 'prefix', path: 'prod/stripe' }, true],
    [{ kind: 'prefix', path: 'prod/str' }, false],
    [{ kind: 'policy_revision', revision: 7 }, true],
    [{ kind: 'policy_revision', revision: 8 }, false],
    [{ kind: 'all' }, true],
  ])('%j hits what it names, and with it what stands inside', (target, expected) => {
    expect(hits(target, grant(1))).toBe(expected);
    const inner = grant(2, { hostId: 'h_9', subject: 'x/1', credentials: [], policyRevision: 1 });
    expect(hits(target, { ...inner, within: [facts(1)] })).toBe(expected);
    expect(hits(target, { ...inner, within: [{ ...inner, grantId: 'g_00000003' }, facts(1)] })).toBe(
      expected,
    );
    if (target.kind !== 'all') expect(hits(target, inner)).toBe(false);
  });

  it('of a run that stands inside does not hit the one around it', () => {
    expect(hits({ kind: 'grant', id: 'g_00000002' }, grant(1))).toBe(false);
  });

  it('stands where it is of a host, a subject or a secret; each has a key of its own and words for people', () => {
    const targets: [RevocationTarget, boolean, string, string][] = [
      [{ kind: 'grant', id: 'g_1' }, false, 'g_1', 'grant g_1'],
      [{ kind: 'run', id: 'r_1' }, false, 'r_1', 'run r_1'],
      [{ kind: 'host', id: 'h_1', name: 'a' }, true, 'h_1', 'host a'],
      [{ kind: 'host', id: 'h_1', name: 'a', ban: true }, true, 'h_1', 'host a (banned)'],
      [{ kind: 'subject', subject: 'a/1' }, true, 'a/1', 'subject a/1'],
      [{ kind: 'secret', path: 'a/b' }, true, 'a/b', 'secret a/b'],
      [{ kind: 'secret', path: 'a/b', version: 3 }, true, 'a/b@3', 'secret a/b version 3'],
      [{ kind: 'prefix', path: 'a' }, false, 'a', 'prefix a'],
      [{ kind: 'policy_revision', revision: 4 }, false, '4', 'policy revision 4'],
      [{ kind: 'all' }, false, '', 'everything'],
    ];
    for (const [target, standing, key, words] of targets)
      expect([stands(target), keyOf(target), describeTarget(target)]).toEqual([standing, key, words]);
  });
});
