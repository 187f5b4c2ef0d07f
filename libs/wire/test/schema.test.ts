// Owns the proof that foreign bytes become a checked value or an error that tells the place and never the value.
import { CustodyError } from '@custody/core/errors';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { endpoints } from '../src/http.ts';
import { controlPlaneKinds, hostKinds } from '../src/ledger.ts';
import {
  errorOf,
  failureOf,
  grantAnswer,
  grantClaims,
  grantRequest,
  ledgerReceiptMessage,
  policyAnswer,
  policyClaims,
  revocationBroadcast,
  revocationClaims,
  revocationsAnswer,
} from '../src/messages.ts';
import { protocolHistory, protocolVersion } from '../src/protocol.ts';
import { encodeJson, jsonOf, parse, parseJson } from '../src/schema.ts';

const canary = 'sk_live_canary_0123456789';

function errorOfCall(act: () => unknown): CustodyError {
  try {
    act();
  } catch (error) {
    if (error instanceof CustodyError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

/** Every schema that foreign bytes meet, by name. */
const schemas: Record<string, z.ZodType> = {
  ...{ grantRequest, grantClaims, grantAnswer, revocationBroadcast, revocationClaims, revocationsAnswer },
  ...{ policyClaims, policyAnswer, ledgerReceiptMessage },
  ...Object.fromEntries(Object.entries(hostKinds)),
  ...Object.fromEntries(Object.entries(controlPlaneKinds)),
};
for (const [name, endpoint] of Object.entries(endpoints)) {
  const shape: { params?: z.ZodType; query?: z.ZodType; body?: z.ZodType; reply: z.ZodType } = endpoint;
  for (const part of ['params', 'query', 'body', 'reply'] as const) {
    const schema = shape[part];
    if (schema !== undefined) schemas[`${name} ${part}`] = schema;
  }
}

describe('parse', () => {
  it.each<[string, z.ZodType, unknown]>([
    ['a wrong type', z.strictObject({ token: z.number() }), { token: canary }],
    ['a wrong pattern', z.strictObject({ token: z.string().regex(/^x$/) }), { token: canary }],
    ['a wrong choice', z.strictObject({ token: z.enum(['a', 'b']) }), { token: canary }],
    ['a wrong literal', z.strictObject({ token: z.literal('a') }), { token: canary }],
    ['too long', z.strictObject({ token: z.string().max(3) }), { token: canary }],
    ['no date', z.strictObject({ token: z.iso.datetime() }), { token: canary }],
    ['a wrong variant', z.discriminatedUnion('kind', [z.object({ kind: z.literal('a') })]), { kind: canary }],
    ['a value where an object is needed', z.strictObject({}), canary],
    ['a value in a list', z.array(z.int()), [1, canary]],
    ['a value in a record', z.record(z.string(), z.int()), { a: canary }],
  ])('never echoes the value: %s', (_, schema, value) => {
    const error = errorOfCall(() => parse(schema, value, 'body'));
    expect(error.code).toBe('bad_request');
    expect(JSON.stringify([error.publicMessage, error.next, error.stack, error.cause])).not.toContain(canary);
    expect(error.publicMessage).toMatch(/^body: /);
  });

  it.each(Object.entries(schemas))('never echoes a value where one stands wrongly: %s', (_, schema) => {
    for (const value of [
      canary,
      [canary],
      7,
      null,
      { kind: canary, ok: canary, path: canary, code: canary },
    ]) {
      const result = schema.safeParse(value);
      if (result.success) continue;
      const error = errorOfCall(() => parse(schema, value, 'it'));
      expect(error.publicMessage).not.toContain(canary);
    }
  });

  it('names the place', () => {
    const schema = z.strictObject({ a: z.strictObject({ list: z.array(z.strictObject({ n: z.int() })) }) });
    const error = errorOfCall(() => parse(schema, { a: { list: [{ n: 1 }, { n: 'x' }] } }, 'body'));
    expect(error.publicMessage).toMatch(/^body: a\.list\.1\.n: /);
  });

  it('says at most three problems, and is bounded', () => {
    const schema = z.strictObject(
      Object.fromEntries(Array.from({ length: 50 }, (_, n) => [`f${n}`, z.int()])),
    );
    const { publicMessage } = errorOfCall(() => parse(schema, {}, 'body'));
    expect(publicMessage.split('; ')).toHaveLength(3);
  });

  it('names a member that nobody asked for, bounded and without what a terminal obeys', () => {
    const odd = `x\u001b[31m\u009b${'y'.repeat(10_000)}`;
    const { publicMessage } = errorOfCall(() =>
      parse(z.strictObject({ a: z.int() }), { a: 1, [odd]: 1 }, 'body'),
    );
    expect(publicMessage).toContain('x');
    expect(publicMessage).not.toMatch(/\p{Cc}/u);
    expect(publicMessage.length).toBeLessThan(300);
  });
});

describe('JSON bytes', () => {
  const whatever = z.unknown();

  it('broken UTF-8 is told from broken JSON', () => {
    const broken = Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xc3, 0x28]), Buffer.from('"}')]);
    expect(errorOfCall(() => parseJson(whatever, broken, 'body')).code).toBe('bad_utf8');
    expect(errorOfCall(() => parseJson(whatever, Buffer.from('{"a":'), 'body')).code).toBe('bad_request');
  });

  it('neither error holds anything of the text', () => {
    for (const bytes of [
      Buffer.from(`{"value": ${canary}}`),
      Buffer.from(`{"value": "${canary}"`),
      Buffer.from(canary),
      Buffer.concat([Buffer.from(`"${canary}`), Buffer.from([0xff])]),
    ]) {
      const error = errorOfCall(() => parseJson(whatever, bytes, 'body'));
      const all = [error.publicMessage, error.next, error.stack, String(error.cause)].join('\n');
      expect(all).not.toContain(canary);
      expect(all).not.toContain(canary.slice(0, 8));
    }
  });

  it('an empty body is an error and not a value', () => {
    expect(errorOfCall(() => jsonOf(new Uint8Array(), 'body')).code).toBe('bad_request');
  });

  it('a byte order mark is no part of a value', () => {
    expect(jsonOf(Buffer.from('\ufeff{"a":1}'), 'body')).toEqual({ a: 1 });
  });

  it('whatever the bytes, the answer is a value or one of the two refusals', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.uint8Array({ maxLength: 60 }),
          fc.json().map((text) => Buffer.from(text)),
        ),
        (bytes) => {
          try {
            jsonOf(bytes, 'body');
          } catch (error) {
            expect(error).toBeInstanceOf(CustodyError);
            expect(['bad_utf8', 'bad_request']).toContain((error as CustodyError).code);
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  it('what was encoded is what is decoded', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(JSON.stringify(jsonOf(encodeJson(value), 'it'))).toBe(JSON.stringify(value));
      }),
    );
  });
});

describe('every schema', () => {
  it.each(Object.entries(schemas))('takes no garbage by accident: %s', (_, schema) => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 3 }), (value) => {
        const result = schema.safeParse(value);
        // A schema of optional members alone may take {}; nothing else of no meaning.
        if (result.success) expect(value).toEqual({});
      }),
      { numRuns: 40 },
    );
  });

  it('of a ledger body refuses a member that it does not know', () => {
    const body = { version: '0.1.0', openRuns: 0 };
    expect(hostKinds.agent_started.safeParse(body).success).toBe(true);
    expect(hostKinds.agent_started.safeParse({ ...body, extra: 1 }).success).toBe(false);
  });
});

describe('text that a database cannot keep', () => {
  // Postgres takes no NUL in text: what carries one must be refused at the edge, or it fails inside.
  const nul = 'a\0b';
  it.each<[string, z.ZodType, unknown]>([
    [
      'a reason',
      endpoints['revocation.create'].body,
      { target: { kind: 'grant', id: 'g_00000001' }, reason: nul },
    ],
    ['a policy', endpoints['policy.apply'].body, { text: nul }],
    ['a label', endpoints['host.token'].body, { labels: { env: nul } }],
    ['a prefix', endpoints['secret.list'].query, { prefix: nul }],
    ['an author', endpoints['ledger.lines'].query, { author: nul }],
    ['an agent version', endpoints.enroll.body.shape.agentVersion, nul],
    ['a folder', grantRequest.shape.cwd, nul],
    ['a word of a command', grantRequest.shape.command, ['sh', nul]],
  ])('is refused: %s', (_, schema, value) => expect(schema.safeParse(value).success).toBe(false));

  it.each(['epoch', 'afterSeq'])('%s beyond what its column holds is refused', (name) => {
    const query = endpoints['ledger.lines'].query;
    expect(query.safeParse({ [name]: '2147483647' }).success).toBe(true);
    expect(query.safeParse({ [name]: '2147483648' }).success).toBe(false);
  });
});

describe('a failure on its way', () => {
  it('keeps code, words and what to do next, and drops the cause', () => {
    const error = new CustodyError('denied_by_policy', 'no', { next: 'ask', cause: new Error(canary) });
    const told = failureOf(error);
    expect(JSON.stringify(told)).not.toContain(canary);
    expect(errorOf(told)).toMatchObject({ code: 'denied_by_policy', publicMessage: 'no', next: 'ask' });
  });

  it('of an unexpected error says nothing of it', () => {
    expect(JSON.stringify(failureOf(new Error(canary)))).not.toContain(canary);
    expect(failureOf(canary)).toMatchObject({ code: 'internal' });
  });
});

it('the protocol version is the newest row of its dated history', () => {
  expect(protocolHistory.at(-1)?.version).toBe(protocolVersion);
  expect(protocolHistory.map(({ version }) => version)).toEqual(protocolHistory.map((_, index) => index + 1));
  for (const { date } of protocolHistory) expect(date).toMatch(/^\d{4}-\d\d-\d\d$/);
});
