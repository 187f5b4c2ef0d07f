// Owns the proof that a subject names its host and that no host can be mistaken for another.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { enrolmentStatement } from '../src/enrolment.ts';
import {
  anyHostUp,
  fleet,
  hostDown,
  hostMayPublish,
  hostMaySubscribe,
  hostOf,
  hostUp,
  inboxPrefix,
} from '../src/subjects.ts';

const hostId = fc.stringMatching(/^h_[A-Za-z0-9]{8,40}$/);

/** Whether NATS would let a holder of `pattern` reach `subject`. */
function covers(pattern: string, subject: string): boolean {
  const [wanted, given] = [pattern.split('.'), subject.split('.')];
  for (const [index, token] of wanted.entries()) {
    if (token === '>') return given.length > index;
    if (given[index] === undefined || (token !== '*' && token !== given[index])) return false;
  }
  return wanted.length === given.length;
}

describe('a subject', () => {
  it('gives back the host that it was made for', () => {
    fc.assert(
      fc.property(hostId, (host) => {
        for (const what of ['grant', 'revocations', 'policy', 'ledger'] as const) {
          expect(hostOf(hostUp(host, what))).toBe(host);
          expect(covers(anyHostUp(what), hostUp(host, what))).toBe(true);
        }
        expect(hostOf(hostDown(host, 'ledger'))).toBe(host);
      }),
    );
  });

  it.each([
    'custody.v1.host.*.up.grant',
    'custody.v1.host.>.up.grant',
    'custody.v1.host.a.b.up.grant',
    'custody.v1.host..up.grant',
    'custody.v1.host.a b.up.grant',
    'custody.v1.host.a\n.up.grant',
    'custody.v1.host.a.up.grant\n',
    'custody.v1.host.a.up.grant.more',
    'custody.v1.host.a.up.*',
    'custody.v1.host.a.sideways.grant',
    'custody.v1.host.é.up.grant',
    'x.custody.v1.host.a.up.grant',
    'custody.v2.host.a.up.grant',
    'custodyXv1.host.a.up.grant',
    'custody.v1.fleet.revocation',
    '_INBOX_a.1',
    '',
  ])('that is not exactly one host’s names none: %j', (subject) => expect(hostOf(subject)).toBeUndefined());

  it('of any id with a dot, a wildcard or a space names no host but by its own id', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom('a', 'B', '7', '_', '-', '.', '*', '>', ' ', '\n', '$') }),
        (id) => {
          const named = hostOf(hostUp(id, 'grant'));
          expect(named === undefined || named === id).toBe(true);
          if (/[^A-Za-z0-9_-]/.test(id)) expect(named).toBeUndefined();
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe('what a host may do', () => {
  it('covers its own subjects and none of another host', () => {
    fc.assert(
      fc.property(hostId, hostId, (host, other) => {
        fc.pre(host !== other);
        const reachable = [...hostMayPublish(host), ...hostMaySubscribe(host)];
        for (const subject of [
          hostUp(other, 'grant'),
          hostDown(other, 'ledger'),
          `${inboxPrefix(other)}.1`,
        ]) {
          expect(reachable.filter((pattern) => covers(pattern, subject))).toEqual([]);
        }
        expect(hostMayPublish(host).some((pattern) => covers(pattern, hostUp(host, 'ledger')))).toBe(true);
        expect(hostMaySubscribe(host).some((pattern) => covers(pattern, hostDown(host, 'ledger')))).toBe(
          true,
        );
        expect(hostMaySubscribe(host).some((pattern) => covers(pattern, fleet('revocation')))).toBe(true);
        expect(hostMayPublish(host).some((pattern) => covers(pattern, fleet('revocation')))).toBe(false);
      }),
    );
  });

  it('an inbox is not the beginning of another: the prefix ends with a dot', () => {
    expect(covers(`${inboxPrefix('h_a')}.>`, `${inboxPrefix('h_ab')}.1`)).toBe(false);
  });
});

it('the enrolment statement is byte for byte that of its spec', () => {
  const said = { token: 'cjt_t', signingKey: 'S', sealingKey: 'X', busUserKey: 'U' };
  expect(Buffer.from(enrolmentStatement(said)).toString()).toBe('custody-enrol-v1\ncjt_t\nS\nX\nU\n');
});
