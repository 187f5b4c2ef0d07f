// Owns the proof of the edge of HTTP: every route has its endpoint and its row, and refuses as it should.
import 'reflect-metadata';
import { createTrust } from '@custody/bus/trust';
import { httpBodyBytesMax } from '@custody/core/limits';
import { newToken } from '@custody/crypto/tokens';
import { withDatabase } from '@custody/testkit/database';
import { endpoints, problem, type Action, type Problem } from '@custody/wire/http';
import { RequestMethod, type Type } from '@nestjs/common';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { authorizeTable, type Role } from '../src/authorize.ts';
import { ControlPlaneModule } from '../src/module.ts';
import type { Parts } from '../src/parts.ts';
import { startControlPlane, type ControlPlane } from '../src/start.ts';
import { canary, captureLog, issuePolicy, kek, signingSeed, tokenFor } from './support.ts';

const t = withDatabase();
const { log, text: logged } = captureLog();
const operator = newToken('cst');
let auditor: string;
let api: ControlPlane;

beforeAll(async () => {
  api = await startControlPlane(
    {
      listen: { host: '127.0.0.1', port: 0 },
      databaseUrl: t.url,
      poolMax: 5,
      // Nobody listens there: HTTP serves without the bus.
      busServers: ['nats://127.0.0.1:9'],
      busServersForHosts: ['nats://127.0.0.1:9'],
      trust: JSON.stringify(await createTrust()),
      signingSeed,
      kek,
      operatorToken: operator,
      migrationsDir: join(import.meta.dirname, '../../../prisma/migrations'),
      logLevel: 'debug',
      canaryIntervalMs: undefined,
    },
    { log, now: () => new Date() },
  );
  auditor = await tokenFor(t.database, 'auditor');
});
afterAll(() => api[Symbol.asyncDispose]());

interface Sent {
  readonly method?: string;
  readonly token?: string | undefined;
  readonly authorization?: string;
  readonly body?: string | Uint8Array<ArrayBuffer>;
  readonly type?: string;
}

async function send(path: string, sent: Sent = {}): Promise<{ status: number; type: string; text: string }> {
  const {
    method = 'GET',
    token,
    authorization = token === undefined ? undefined : `Bearer ${token}`,
    body,
  } = sent;
  const response = await fetch(`${api.url}${path}`, {
    method,
    headers: {
      ...(authorization === undefined ? {} : { authorization }),
      ...(body === undefined ? {} : { 'content-type': sent.type ?? 'application/json' }),
    },
    ...(body === undefined ? {} : { body }),
  });
  return {
    status: response.status,
    type: response.headers.get('content-type') ?? '',
    text: await response.text(),
  };
}

/** Every refusal is a problem document, and holds nothing of what was sent. */
async function refused(path: string, sent: Sent = {}): Promise<Problem> {
  const { status, type, text } = await send(path, sent);
  expect(type).toMatch(/^application\/problem\+json/);
  const document = problem.parse(JSON.parse(text));
  expect(document.status).toBe(status);
  expect(text).not.toContain(canary);
  expect(document.detail).not.toBe('');
  return document;
}

/** For each endpoint: a request that is well formed, and asks for what is not there. A new endpoint needs its row. */
const probes: Readonly<
  Record<Action, { params?: Record<string, string>; query?: string; body?: unknown; missing?: string }>
> = {
  enroll: { body: {} },
  'secret.list': { query: '?prefix=prod' },
  'secret.put': { params: { path: 'prod/put' }, body: { fields: { a: 'b' } } },
  'secret.get': { params: { path: 'prod/none' }, missing: 'secret_unknown' },
  'secret.versions': { params: { path: 'prod/none' }, missing: 'secret_unknown' },
  'secret.reveal': { params: { path: 'prod/none' }, body: {}, missing: 'secret_unknown' },
  'secret.remove': { params: { path: 'prod/none' }, missing: 'not_found' },
  'policy.apply': { body: { text: issuePolicy } },
  'policy.validate': { body: { text: issuePolicy } },
  'policy.history': {},
  'policy.show': { params: { revision: '999' }, missing: 'not_found' },
  'policy.explain': { body: { subject: 'none/0', path: 'prod/x' }, missing: 'not_found' },
  'host.list': {},
  'host.get': { params: { name: 'none' }, missing: 'not_found' },
  'host.ban': { params: { name: 'none' }, body: { reason: 'stolen' }, missing: 'not_found' },
  'host.token': { body: {} },
  'grant.list': { query: '?active=true' },
  'grant.get': { params: { grantId: 'g_00000000' }, missing: 'not_found' },
  'revocation.create': {
    body: { target: { kind: 'grant', id: 'g_00000000' }, reason: 'leaked' },
    missing: 'not_found',
  },
  'revocation.lift': { body: { what: { epoch: 999 }, reason: 'rotated' }, missing: 'not_found' },
  'revocation.list': { query: '?standing=true' },
  'revocation.get': { params: { epoch: '999' }, missing: 'not_found' },
  'ledger.possession': { query: '?path=prod%2Fstripe' },
  'ledger.authors': {},
  'ledger.lines': { query: '?last=true' },
  'events.follow': { query: '?follow=false' },
  status: {},
};
const actions = Object.keys(endpoints) as Action[];

function probe(action: Action): { path: string; sent: Sent } {
  const { method, path } = endpoints[action];
  const { params = {}, query = '', body } = probes[action];
  const filled = path.replaceAll(/\{(\w+)\}/g, (_, key: string) => encodeURIComponent(params[key] ?? ''));
  return {
    path: filled + query,
    sent: { method, ...(body === undefined ? {} : { body: JSON.stringify(body) }) },
  };
}

describe('the table', () => {
  const controllers = ControlPlaneModule.with({} as Parts).controllers as Type<object>[];
  const routes = controllers.flatMap((controller) => {
    const base = String(Reflect.getMetadata('path', controller));
    const prototype = controller.prototype as object;
    return Object.getOwnPropertyNames(prototype).flatMap((name) => {
      const handler: unknown = Reflect.get(prototype, name);
      if (typeof handler !== 'function' || !Reflect.hasMetadata('method', handler)) return [];
      const method = RequestMethod[Reflect.getMetadata('method', handler) as number] ?? '';
      const path = `/${base}/${String(Reflect.getMetadata('path', handler))}`
        .replaceAll(/\/+/g, '/')
        .replace(/(.)\/$/, '$1');
      return [`${method} ${path.replaceAll(/:(\w+)/g, '{$1}')}`];
    });
  });
  const withoutEndpoint = ['GET /healthz', 'GET /readyz', 'GET /openapi.json'];

  it('has a route for each endpoint, and no route without one', () => {
    const wanted = Object.values(endpoints).map(({ method, path }) => `${method} ${path}`);
    expect(routes.toSorted()).toEqual([...wanted, ...withoutEndpoint].toSorted());
  });

  it('has a row for each endpoint, and no row without one', () => {
    expect(Object.keys(authorizeTable).toSorted()).toEqual(actions.toSorted());
  });

  it('lets an auditor change nothing', () => {
    for (const action of actions) {
      const row = authorizeTable[action];
      const reading = endpoints[action].method === 'GET' || action === 'policy.explain';
      if (row !== 'join-token') expect([action, row.includes('auditor')]).toEqual([action, reading]);
    }
  });
});

const guarded = actions.filter((action) => authorizeTable[action] !== 'join-token');
const openTo = (action: Action, role: Role): boolean => {
  const row = authorizeTable[action];
  return row !== 'join-token' && row.includes(role);
};

describe('a request', () => {
  it.each(guarded)('%s is refused without a credential, before its body is read', async (action) => {
    const { path, sent } = probe(action);
    expect(await refused(path, sent)).toMatchObject({ status: 401, code: 'unauthenticated' });
    const broken = sent.method === 'GET' || sent.method === 'DELETE' ? {} : { body: '{"' };
    expect(await refused(path, { ...sent, ...broken })).toMatchObject({ status: 401 });
  });

  it.each(guarded)('%s is refused to a token that is not known here', async (action) => {
    const { path, sent } = probe(action);
    expect(await refused(path, { ...sent, token: newToken('cst') })).toMatchObject({
      status: 401,
      code: 'unauthenticated',
    });
  });

  it.each(guarded.filter((action) => !openTo(action, 'auditor')))(
    '%s is refused to an auditor',
    async (action) => {
      const { path, sent } = probe(action);
      expect(await refused(path, { ...sent, token: auditor })).toMatchObject({
        status: 403,
        code: 'forbidden',
      });
    },
  );

  it.each(guarded.filter((action) => openTo(action, 'auditor')))(
    '%s is open to an auditor',
    async (action) => {
      const { path, sent } = probe(action);
      expect([200, 404]).toContain((await send(path, { ...sent, token: auditor })).status);
    },
  );

  it.each(guarded.filter((action) => probes[action].missing !== undefined))(
    '%s says that what was asked for is not there',
    async (action) => {
      const { path, sent } = probe(action);
      expect(await refused(path, { ...sent, token: operator })).toMatchObject({
        status: 404,
        code: probes[action].missing,
      });
    },
  );

  it.each(guarded.filter((action) => probes[action].missing === undefined))(
    '%s answers an operator in the shape that it promises',
    async (action) => {
      const { path, sent } = probe(action);
      const { status, text } = await send(path, { ...sent, token: operator });
      expect(status).toBe(200);
      const told = 'stream' in endpoints[action] ? text.match(/(?<=^data: ).*$/gm) : [text];
      expect(told?.length).toBeGreaterThan(0);
      for (const each of told ?? []) endpoints[action].reply.parse(JSON.parse(each));
    },
  );
});

describe.each(
  actions.filter((action) => endpoints[action].method === 'POST' || endpoints[action].method === 'PUT'),
)('the body of %s', (action) => {
  const { path, sent } = probe(action);
  const bodies: [string, Sent['body'], string, number, string][] = [
    ['broken JSON', `{"value": "${canary}`, 'application/json', 400, 'bad_request'],
    [
      'broken UTF-8',
      Buffer.concat([Buffer.from(`{"a":"${canary}`), Buffer.from([0xff]), Buffer.from('"}')]),
      'application/json',
      400,
      'bad_utf8',
    ],
    ['another type', `value=${canary}`, 'application/x-www-form-urlencoded', 400, 'bad_request'],
    ['no type at all', canary, 'text/plain', 400, 'bad_request'],
    ['a list', `["${canary}"]`, 'application/json', 400, 'bad_request'],
    ['a text', `"${canary}"`, 'application/json', 400, 'bad_request'],
    ['an unknown member', `{"nobody-asked":"${canary}"}`, 'application/json', 400, 'bad_request'],
    [
      'more than the bound',
      JSON.stringify({ fields: { a: canary + 'x'.repeat(httpBodyBytesMax) } }),
      'application/json',
      413,
      'too_large',
    ],
  ];

  it.each(bodies)('is refused: %s', async (_, body, type, status, code) => {
    expect(await refused(path, { ...sent, token: operator, body: body ?? '', type })).toMatchObject({
      status,
      code,
    });
  });
});

describe('a credential', () => {
  it.each([
    ['another scheme', (): string => `Basic ${operator}`],
    ['nothing after the scheme', (): string => 'Bearer '],
    ['a join token', (): string => `Bearer ${newToken('cjt')}`],
    ['garbage', (): string => `Bearer ${'x'.repeat(4_000)}`],
    ['two tokens', (): string => `Bearer ${operator} ${operator}`],
    ['one with a character more', (): string => `Bearer ${operator}a`],
  ])('that is %s is refused', async (_, authorization) => {
    expect(await refused('/v1/status', { authorization: authorization() })).toMatchObject({
      code: 'unauthenticated',
    });
  });

  it('that has expired, was revoked, or has a role of no table is refused', async () => {
    const past = new Date(Date.UTC(2000, 0));
    for (const token of [
      await tokenFor(t.database, 'operator', { expiresAt: past }),
      await tokenFor(t.database, 'operator', { revokedAt: past }),
      await tokenFor(t.database, 'toString'),
    ]) {
      expect(await refused('/v1/status', { token })).toMatchObject({ code: 'unauthenticated' });
    }
  });
});

describe('what is no route', () => {
  it.each([
    ['GET', '/v1/nothing', 404],
    ['DELETE', '/v1/policies', 404],
    ['GET', '/v1/enroll', 404],
    ['GET', '/', 404],
    ['GET', '/v1/secrets/%zz', 400],
    ['GET', '/v1/secrets/..%2f..%2fetc', 400],
    ['GET', '/v1/secrets/a%00b', 400],

    ['GET', '/v1/hosts/Not%20a%20name', 400],
    ['GET', '/v1/secrets?prefix=a%00b', 400],
    ['GET', '/v1/secrets?prefix=a&prefix=b', 400],
    ['GET', '/v1/ledger/lines?epoch=99999999999', 400],
    ['GET', '/v1/ledger/lines?author=%00', 400],
    ['GET', '/v1/grants?active=perhaps', 400],
    ['GET', '/v1/ledger/possession', 400],
    ['GET', '/v1/ledger/possession?path=prod%2Fx&from=yesterday', 400],
    ['GET', '/v1/revocations/999999999999999', 404],
  ])('%s %s is refused, not failed', async (method, path, status) => {
    expect(await refused(path, { method, token: operator })).toMatchObject({ status });
  });
});

describe('open to everyone', () => {
  it('/healthz says that the process runs', async () => {
    expect(await send('/healthz')).toMatchObject({ status: 200, text: '{"ok":true}' });
  });

  it('/readyz says which part is missing', async () => {
    const { status, text } = await send('/readyz');
    expect(status).toBe(503);
    expect(JSON.parse(text)).toEqual({ ready: false, postgres: 'up', bus: 'down' });
  });

  it('/openapi.json describes the endpoints', async () => {
    const { status, text } = await send('/openapi.json');
    expect(status).toBe(200);
    expect(JSON.parse(text)).toMatchObject({ openapi: '3.1.0' });
  });
});

it('an address with a part that is too long is refused', async () => {
  const path = `/v1/secrets/${'a'.repeat(2_000)}`;
  expect(await refused(path, { token: operator })).toMatchObject({ status: 413, code: 'too_large' });
});

it('a policy that does not parse is told with line and column, every problem of it', async () => {
  const body = JSON.stringify({
    text: '@nope("1") permit (principal, action, resource);\n@ceiling("x") forbid (principal, action, resource);',
  });
  expect(await refused('/v1/policies', { method: 'POST', token: operator, body })).toMatchObject({
    status: 422,
    code: 'policy_invalid',
    problems: [
      { line: 1, column: 1 },
      { line: 2, column: 1 },
    ],
  });
});

it('nothing of all that was sent stands in the log, and nothing failed inside', () => {
  expect(logged()).not.toContain(canary);
  expect(logged()).not.toContain(operator);
  expect(logged()).not.toContain('request failed');
});
