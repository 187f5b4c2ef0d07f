// Owns the proof of how policies are read and decided: located errors, ids, obligations, and denial wherever there is doubt.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  deniedByPolicy,
  parsePolicies,
  PolicyEngine,
  PolicyInvalidError,
  type HoldRequest,
  type PolicyProblem,
} from '../src/cedar.ts';
import type { CustodyError } from '../src/errors.ts';
import { policiesMax, policyTextBytesMax } from '../src/limits.ts';

const issue = `@id("anyone-may-hold-prod")
@ceiling("15m")
permit (principal, action == Action::"hold", resource in Folder::"prod");
`;

let slots = 0;

function engineOf(text: string): PolicyEngine {
  slots += 1;
  return new PolicyEngine(`slot-${slots}`, parsePolicies(text));
}

function request(more: Partial<HoldRequest> = {}): HoldRequest {
  return {
    host: 'host-a',
    labels: {},
    uid: 1000,
    path: 'prod/stripe',
    program: 'node',
    reason: undefined,
    ...more,
  };
}

function problemsOf(text: string): readonly PolicyProblem[] {
  try {
    parsePolicies(text);
  } catch (error) {
    if (error instanceof PolicyInvalidError) return error.problems;
    throw error;
  }
  return [];
}

const allows = (text: string, more: Partial<HoldRequest> = {}): boolean =>
  engineOf(text).decide(request(more)).allow;

describe("the issue's policy, as it stands", () => {
  it('is one permit with its id and its line', () => {
    expect(parsePolicies(issue)).toMatchObject([{ id: 'anyone-may-hold-prod', effect: 'permit', line: 1 }]);
  });

  it('lets anyone hold what lies in prod, for 15 minutes', () => {
    expect(engineOf(issue).decide(request())).toMatchObject({
      allow: true,
      policyIds: ['anyone-may-hold-prod'],
      obligations: { ceilingMs: 900_000 },
    });
    expect(allows(issue, { path: 'prod/a/b/c', host: 'other', uid: 0 })).toBe(true);
  });

  it('and nothing else: a name that begins alike, the folder itself, another folder', () => {
    for (const path of ['production/stripe', 'prod', 'stripe', 'test/prod/stripe']) {
      expect(engineOf(issue).decide(request({ path }))).toMatchObject({ allow: false, policyIds: [] });
    }
  });
});

describe('a decision', () => {
  it('without a policy is a denial', () => {
    expect(engineOf('').decide(request())).toEqual({ allow: false, policyIds: [], errors: [] });
  });

  it('a forbid wins over any number of permits, and is named', () => {
    const text = `${issue}@id("root-never") forbid (principal, action, resource) when { principal.uid == 0 };`;
    expect(engineOf(text).decide(request({ uid: 0 }))).toMatchObject({
      allow: false,
      policyIds: ['root-never'],
    });
    expect(allows(text)).toBe(true);
  });

  it('takes the most restrictive obligation of all that permit', () => {
    const text = `
@id("a") @ceiling("1h") @freshness("best_effort") permit (principal, action, resource);
@id("b") @ceiling("5m") @freshness("strict 60s") permit (principal, action, resource in Folder::"prod");
@id("c") @ceiling("1s") permit (principal, action, resource in Folder::"test");`;
    expect(engineOf(text).decide(request())).toMatchObject({
      allow: true,
      policyIds: ['a', 'b'],
      obligations: { ceilingMs: 300_000, freshness: { kind: 'strict', ms: 60_000 }, containment: [] },
    });
  });

  it('knows a host as principal, by its name', () => {
    const text = 'permit (principal in Host::"host-a", action == Action::"hold", resource);';
    expect(allows(text)).toBe(true);
    expect(allows(text, { host: 'host-ab' })).toBe(false);
  });

  it('knows a host by its labels', () => {
    const text = `permit (principal in Host::"host-a", action, resource) when { Host::"host-a".hasTag("env") && Host::"host-a".getTag("env") == "prod" };`;
    expect(allows(text, { labels: { env: 'prod' } })).toBe(true);
    expect(allows(text, { labels: { env: 'test' } })).toBe(false);
    expect(allows(text)).toBe(false);
  });

  it('knows one user on one host, their program and their reason', () => {
    const text = `permit (principal == LocalUser::"host-a/1000", action, resource) when { context.program == "node" && context has reason && context.reason like "JIRA-*" };`;
    expect(allows(text, { reason: 'JIRA-7' })).toBe(true);
    expect(allows(text)).toBe(false);
    expect(allows(text, { reason: 'JIRA-7', uid: 1001 })).toBe(false);
    expect(allows(text, { reason: 'JIRA-7', program: 'sh' })).toBe(false);
  });

  it('sees folders nested to any depth', () => {
    for (const folder of ['a', 'a/b', 'a/b/c']) {
      expect(
        allows(`permit (principal, action, resource in Folder::"${folder}");`, { path: 'a/b/c/d' }),
      ).toBe(true);
    }
    expect(allows('permit (principal, action, resource in Folder::"a/b");', { path: 'a/x/b/d' })).toBe(false);
    expect(allows('permit (principal, action, resource in Folder::"b");', { path: 'a/b/d' })).toBe(false);
  });

  it('a policy that cannot be evaluated does not permit, and is named', () => {
    const text = `@id("overflows") permit (principal, action, resource) when { principal.uid * 9223372036854775807 > 0 };`;
    const decision = engineOf(text).decide(request({ uid: 2 }));
    expect(decision).toMatchObject({ allow: false, policyIds: [] });
    expect(decision.allow ? [] : decision.errors.join()).toContain('overflows');
    // uid 1 does not overflow: it was the evaluation that failed, not the policy.
    expect(allows(text, { uid: 1 })).toBe(true);
  });

  it('of an engine whose slot another one took is still its own', () => {
    const before = new PolicyEngine(
      'shared',
      parsePolicies('@id("old") @ceiling("1s") permit (principal, action, resource);'),
    );
    const after = new PolicyEngine(
      'shared',
      parsePolicies('@id("new") @ceiling("1h") permit (principal, action, resource in Folder::"prod");'),
    );
    expect(before.decide(request({ path: 'x' }))).toMatchObject({
      policyIds: ['old'],
      obligations: { ceilingMs: 1_000 },
    });
    expect(after.decide(request())).toMatchObject({
      policyIds: ['new'],
      obligations: { ceilingMs: 3_600_000 },
    });
    expect(before.decide(request())).toMatchObject({ policyIds: ['old'], obligations: { ceilingMs: 1_000 } });
  });

  it('is made of any names that a request may hold', () => {
    const engine = engineOf('permit (principal == LocalUser::"never/0", action, resource);');
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }),
        fc.string({ unit: 'grapheme' }),
        fc.nat(),
        (program, reason, uid) => {
          expect(engine.decide(request({ program, reason, uid })).allow).toBe(false);
        },
      ),
    );
  });
});

describe('a refusal', () => {
  it('names the missing permission and what to do next', () => {
    const error = deniedByPolicy('host-a/1000', 'prod/stripe', 3, []);
    expect(error).toMatchObject({
      code: 'denied_by_policy',
      publicMessage: 'no policy (revision 3) permits LocalUser::"host-a/1000" to hold Secret::"prod/stripe"',
    });
    expect(error.next).toContain('custody policy explain --subject host-a/1000 --secret prod/stripe');
  });

  it('names the policy that forbids', () => {
    expect(deniedByPolicy('h/0', 'a', 3, ['root-never']).publicMessage).toBe(
      'policy root-never (revision 3) forbids LocalUser::"h/0" to hold Secret::"a"',
    );
  });
});

describe('where a policy stands', () => {
  it('is kept for more than ten of them, in the order of the text', () => {
    const text = Array.from(
      { length: 25 },
      (_, index) =>
        `// policy ${index}\n${index % 2 === 0 ? `@id("p${index}")\n` : ''}permit (principal == LocalUser::"h/${index}", action, resource);\n`,
    ).join('');
    const policies = parsePolicies(text);
    const lines = text.split('\n');
    expect(policies.map(({ id, line }) => (id.startsWith('p') ? id : line))).toEqual(
      policies.map(({ line }, index) => (index % 2 === 0 ? `p${index}` : line)),
    );
    policies.forEach((policy, index) => {
      expect(policy.text).toContain(`"h/${index}"`);
      expect(lines[policy.line - 1]).toBe(policy.text.split('\n')[0]);
      expect(lines[policy.line - 2]).toBe(`// policy ${index}`);
    });
  });

  it('is its own place, also where a comment or another policy holds the same text', () => {
    const bare = 'permit (principal, action, resource in Folder::"a");';
    const text = `// ${bare}\n@id("first")\n${bare}\n// ${bare}\n\n${bare}\n`;
    expect(parsePolicies(text).map(({ id, line }) => [id, line])).toEqual([
      ['first', 2],
      ['line-6', 6],
    ]);
  });

  it('holds for policies of one line, comments and line ends of every kind', () => {
    const one = (id: string): string => `@id("${id}") permit (principal, action, resource);`;
    const text = `// ü\r\n${one('a')} ${one('b')}// ${one('x')}\r\n\r\n\t${one('c')}`;
    expect(parsePolicies(text).map(({ id, line }) => [id, line])).toEqual([
      ['a', 2],
      ['b', 2],
      ['c', 4],
    ]);
  });
});

describe('an error is told with line and column', () => {
  it.each<[string, string, number, number, RegExp]>([
    ['a syntax error', 'permit (principal, action, resource)\nwhen { foo };', 2, 8, /invalid variable: foo/],
    [
      'after characters of several bytes',
      '// ünïcödé 日本 😀\npermit (principal, action, resource) when { foo };',
      2,
      45,
      /foo/,
    ],
    [
      'in a line with characters of several bytes',
      'permit (principal, action, resource) when { "日本" == foo };',
      1,
      53,
      /foo/,
    ],
    ['an unknown type', '\npermit (principal == User::"a", action, resource);', 2, 22, /User/],
    ['an unknown action', 'permit (principal, action == Action::"steal", resource);', 1, 30, /steal/],
    [
      'an unknown attribute',
      'permit (principal, action, resource)\n  when { principal.name == "x" };',
      2,
      10,
      /name/,
    ],
    [
      'an annotation that this version does not know',
      '\n\n@approval("x") permit (principal, action, resource);',
      3,
      1,
      /@approval is not an annotation/,
    ],
    [
      'a ceiling that is none',
      '@ceiling("soon") permit (principal, action, resource);',
      1,
      1,
      /not a duration/,
    ],
  ])('%s', (_, text, line, column, message) => {
    const [first] = problemsOf(text);
    expect(first).toMatchObject({ line, column });
    expect(first?.message).toMatch(message);
  });

  it('a template is refused', () => {
    expect(problemsOf('permit (principal == ?principal, action, resource);')[0]?.message).toMatch(/template/);
  });

  it('an id that stands twice is refused at the second place, naming the first', () => {
    const one = '@id("same") permit (principal, action, resource);';
    expect(problemsOf(`${one}\n\n${one}`)).toEqual([
      { line: 3, column: 1, message: '@id("same") stands already on line 1' },
    ]);
  });

  it('every problem is told, not the first alone', () => {
    const text =
      '@nope("1") permit (principal, action, resource);\n@ceiling("x") forbid (principal, action, resource);';
    expect(problemsOf(text).map(({ line }) => line)).toEqual([1, 2]);
  });

  it('an annotation without a value is no id and no ceiling', () => {
    expect(problemsOf('@ceiling permit (principal, action, resource);')).toHaveLength(1);
    expect(problemsOf('@id permit (principal, action, resource);')).toHaveLength(1);
  });

  it('the first stands in the message, with what to do next', () => {
    try {
      parsePolicies('permit');
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({ code: 'policy_invalid' });
      expect((error as CustodyError).publicMessage).toMatch(/^the policy is not valid: line 1, column \d+: /);
      expect((error as CustodyError).next).toContain('nothing was applied');
    }
  });
});

describe('bounds', () => {
  it('a text that is too long is refused before it is parsed', () => {
    expect(() => parsePolicies(' '.repeat(policyTextBytesMax + 1))).toThrow(
      expect.objectContaining({ code: 'too_large' }) as Error,
    );
  });

  it('too many policies are refused', () => {
    const text = 'forbid (principal, action, resource);\n'.repeat(policiesMax + 1);
    expect(problemsOf(text).some(({ message }) => message.includes(`more than ${policiesMax}`))).toBe(true);
  });

  it('no text is anything but policies or a located refusal', () => {
    const words = [
      'permit',
      'forbid',
      '(',
      ')',
      'principal',
      'action',
      'resource',
      ',',
      ';',
      '==',
      'Folder::"a"',
      '@id("x")',
      '\n',
      '// ü',
      ' ',
      '?principal',
      'when',
      '{',
      '}',
      '"',
      '\0',
      '日',
    ];
    const text = fc.oneof(
      fc.array(fc.constantFrom(...words), { maxLength: 30 }).map((parts) => parts.join(' ')),
      fc.string({ unit: 'binary', maxLength: 60 }),
    );
    fc.assert(
      fc.property(text, (policy) => {
        const lines = policy.split('\n');
        for (const { line, column } of problemsOf(policy)) {
          expect(line).toBeGreaterThanOrEqual(1);
          expect(line).toBeLessThanOrEqual(lines.length);
          expect(column).toBeGreaterThanOrEqual(1);
          expect(column).toBeLessThanOrEqual((lines[line - 1]?.length ?? 0) + 1);
        }
      }),
      { numRuns: 300 },
    );
  });
});
