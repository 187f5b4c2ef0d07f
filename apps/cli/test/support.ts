// Holds what the tests of the terminal share: a command line run in this process, and a control plane of canned answers.
import { endpoints, type Action } from '@custody/wire/http';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable, Writable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { onTestFinished } from 'vitest';
import { runCli } from '../src/program.ts';

export const token = 'cst_canarytokencanarytokencanarytokencanarytoke';
export const at = '2026-11-22T09:30:00.000Z';

export function folder(prefix = 'cc-'): string {
  const dir = mkdtempSync(join(tmpdir(), prefix));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export interface Outcome {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** One command line. `stdin`: what it may read. The environment is that and nothing else. */
export async function cli(
  argv: readonly string[],
  environment: Record<string, string> = {},
  stdin: string | Buffer = '',
): Promise<Outcome> {
  const texts = { out: '', err: '' };
  const sink = (key: 'out' | 'err'): Writable =>
    new Writable({
      write(chunk: Buffer, _encoding, done) {
        texts[key] += chunk.toString();
        done();
      },
    });
  const code = await runCli(argv, {
    environment: { XDG_DATA_HOME: '/nonexistent', ...environment },
    stdout: sink('out'),
    stderr: sink('err'),
    stdin: Readable.from([Buffer.from(stdin)]),
    now: () => new Date(at),
  });
  // What a command says by process.exitCode is for the process that it usually is.
  process.exitCode = undefined;
  return { code, ...texts };
}

const summary = {
  path: 'prod/stripe',
  version: 2,
  fields: ['api_key'],
  createdAt: at,
  createdBy: 'operator',
};
const policy = {
  revision: 1,
  sha256: 'ab'.repeat(32),
  policies: [{ id: 'p', effect: 'permit' as const, line: 1 }],
  createdAt: at,
  createdBy: 'operator',
};
const row = { pid: 9, ppid: 1, startTicks: '7', how: 'killed:9', name: 'daemon' };
export const grant = {
  grantId: 'g_00000001',
  runId: 'r_00000001',
  host: 'host-a',
  subject: 'host-a/1000',
  uid: 1000,
  pid: 1,
  command: ['node', 'agent.js'],
  cwd: '/srv',
  credentials: [{ name: 'KEY', path: 'prod/stripe', field: 'api_key', version: 2 }],
  policyRevision: 1,
  policyIds: ['p'],
  freshness: { kind: 'best_effort' as const },
  containment: 'subreaper' as const,
  epoch: 0,
  grantedAt: at,
  ceilingMs: 60_000,
  ceilingAt: at,
  state: 'ended' as const,
  root: { pid: 5, startTicks: '6' },
  ended: {
    at,
    cause: 'exit',
    rootStatus: 'exit:0',
    survivors: 1,
    processes: 2,
    proof: 'keeper',
    emptyBootMs: 9_000,
    rows: [row],
  },
};
const host = {
  hostId: 'h_00000001',
  name: 'host-a',
  labels: { env: 'prod' },
  canary: { state: 'proven' as const, provedAt: '2026-11-22T09:30:00.000Z', emptyMicros: 4_200 },
  signingKey: 'AAAA',
  enrolledAt: at,
  containment: 'subreaper' as const,
  ledger: { epoch: 1, seq: 3, hash: 'a', forked: false },
};
const receipt = {
  host: 'host-a',
  grantId: grant.grantId,
  runId: grant.runId,
  subject: grant.subject,
  command: grant.command,
  state: 'killed' as const,
  proven: true,
  boundAt: at,
  survivors: 0,
  processes: 1,
};
export const countsOf = (state: 'killed' | 'pending' | 'unreachable' | 'late', proven: number) => ({
  ...{ expected: 1, proven, pending: 0, killed: 0, ended: 0, never_released: 0, unreachable: 0, late: 0 },
  [state]: 1,
});
export const revocation = {
  epoch: 1,
  target: { kind: 'grant' as const, id: grant.grantId },
  reason: 'leaked',
  createdAt: at,
  createdBy: 'operator',
  standing: false,
  counts: countsOf('killed', 1),
  receipts: [receipt],
  more: 0,
  proven: true,
};
const standing = {
  ...{ epoch: 2, target: { kind: 'secret' as const, path: 'prod/stripe', version: 3 }, reason: 'leaked' },
  ...{ createdAt: at, createdBy: 'operator', standing: true },
};
export const event = {
  ...{ id: 7, at, kind: 'revoked' as const, author: 'control-plane', name: 'control-plane' },
  body: { by: 'operator', epoch: 1, target: revocation.target, reason: 'leaked' },
};

/** What the stub answers where a test says nothing else; each is of the shape that the endpoint promises. */
export const answers: Readonly<Record<Action, unknown>> = {
  enroll: { hostId: 'h_00000001', name: 'host-a', busJwt: 'a', busServers: [], controlPlaneKey: 'AAAA' },
  'secret.list': { secrets: [summary] },
  'secret.put': summary,
  'secret.get': summary,
  'secret.versions': { versions: [summary] },
  'secret.reveal': { ...summary, values: { api_key: Buffer.from('sk_live').toString('base64') } },
  'secret.remove': { path: 'prod/stripe' },
  'policy.apply': policy,
  'policy.validate': { policies: policy.policies },
  'policy.history': { revisions: [policy] },
  'policy.show': { ...policy, text: 'permit (principal, action, resource);' },
  'policy.explain': {
    allow: false,
    subject: 'host-a/1000',
    path: 'prod/x',
    revision: 1,
    policyIds: [],
    why: 'no policy permits it',
  },
  'host.list': { hosts: [host] },
  'host.get': host,
  'host.ban': revocation,
  'host.token': { tokenId: 't_00000001', token: 'cjt_x', expiresAt: at },
  'grant.list': { grants: [grant] },
  'grant.get': { ...grant, jws: 'a.b.c' },
  'revocation.create': revocation,
  'revocation.lift': { lifted: [{ ...standing, lifted: { at, by: 'operator', reason: 'rotated' } }] },
  'revocation.list': { revocations: [standing] },
  'revocation.get': revocation,
  'ledger.possession': {
    rows: [
      {
        ...grant.credentials[0],
        ...{ host: 'host-a', subject: grant.subject, uid: 1000, grantId: grant.grantId, runId: grant.runId },
        ...{
          command: grant.command,
          from: at,
          to: at,
          cause: 'exit',
          rootPid: 5,
          processes: [row],
          entry: { epoch: 1, seq: 2 },
        },
      },
    ],
  },
  'ledger.authors': { authors: [] },
  'ledger.lines': { lines: [] },
  'events.follow': event,
  status: {
    version: '0.1.0',
    protocol: 1,
    hosts: 1,
    activeGrants: 0,
    epoch: 0,
    policyRevision: 1,
    outboxPending: 0,
    postgres: 'up',
    bus: 'up',
  },
};

export interface Asked {
  readonly action: Action;
  readonly url: string;
  readonly body: unknown;
}

export interface Stub {
  readonly environment: Record<string, string>;
  readonly asked: Asked[];
}

/** A control plane of canned answers. `changed` overrules some, or answers with a problem document. */
export async function stub(
  changed: Partial<Record<Action, (asked: Asked) => { status?: number; body: unknown }>> = {},
): Promise<Stub> {
  const asked: Asked[] = [];
  const server: Server = createServer((request, response) => {
    void buffer(request).then((bytes) => {
      const { pathname } = new URL(request.url ?? '', 'http://x');
      const action = actionOf(request.method ?? '', pathname);
      const one: Asked = {
        action,
        url: request.url ?? '',
        body: bytes.length === 0 ? undefined : JSON.parse(bytes.toString()),
      };
      asked.push(one);
      const { status = 200, body } = changed[action]?.(one) ?? { body: answers[action] };
      if (action === 'events.follow' && status === 200) {
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        const events = Array.isArray(body) ? body : [body];
        response.end(events.map((each) => `id: 1\nevent: x\ndata: ${JSON.stringify(each)}\n\n`).join(''));
        return;
      }
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  });
  const { port } = server.address() as AddressInfo;
  return { environment: { CUSTODY_API: `http://127.0.0.1:${port}`, CUSTODY_TOKEN: token }, asked };
}

function actionOf(method: string, pathname: string): Action {
  const found = Object.entries(endpoints)
    .filter(([, endpoint]) => endpoint.method === method)
    .toSorted(([, a], [, b]) => a.path.split('{').length - b.path.split('{').length)
    .find(([, { path }]) => new RegExp(`^${path.replaceAll(/\{\w+\}/g, '[^/]+')}$`).test(pathname));
  if (found === undefined) throw new Error(`no endpoint for ${method} ${pathname}`);
  return found[0] as Action;
}
