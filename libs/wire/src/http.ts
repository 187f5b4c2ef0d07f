// Owns the REST interface under /v1: one row an endpoint, with the schemas of what goes in and comes out.
import { z } from 'zod';
import {
  joinTokenTtlMsMax,
  listRowsMax,
  policyTextBytesMax,
  possessionRowsMax,
  receiptRowsMax,
  runArgumentsMax,
  secretFieldsMax,
  secretValueBytesMax,
} from '@custody/core/limits';
import {
  base64Url,
  command,
  containment,
  count,
  delivery,
  fieldName,
  freshness,
  held,
  hostName,
  id,
  jws,
  labels,
  onExit,
  reason,
  plainText,
  secretPath,
  subject,
  timestamp,
} from './schema.ts';
import { fleetEvent } from './events.ts';
import { processRow, unlistedCounts } from './ledger.ts';
import { namedTarget, revocationTarget } from './messages.ts';

/** RFC 9457, with our code and what to do next. */
export const problem = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: z.string(),
    next: z.string().optional(),
    problems: z.array(z.object({ line: count, column: count, message: z.string() })).optional(),
  })
  .describe('application/problem+json');
export type Problem = z.infer<typeof problem>;

const path = z.strictObject({ path: secretPath });

export const secretSummary = z.strictObject({
  path: secretPath,
  version: count,
  fields: z.array(fieldName),
  createdAt: timestamp,
  createdBy: z.string(),
});
export type SecretSummary = z.infer<typeof secretSummary>;

export const policySummary = z.strictObject({
  revision: count,
  sha256: z.string(),
  policies: z.array(z.strictObject({ id: z.string(), effect: z.enum(['permit', 'forbid']), line: count })),
  createdAt: timestamp,
  createdBy: z.string(),
});
export type PolicySummary = z.infer<typeof policySummary>;

export const hostView = z.strictObject({
  hostId: id,
  name: hostName,
  labels,
  signingKey: base64Url,
  enrolledAt: timestamp,
  lastSeenAt: timestamp.optional(),
  containment: containment.optional(),
  ledger: z.strictObject({ epoch: count, seq: count, hash: z.string(), forked: z.boolean() }).optional(),
  /** Since when it is banned. Another host may have its name by now. */
  bannedAt: timestamp.optional(),
  /** Whether it can kill: when it last proved so, how fast, and what the last round of canaries says. */
  canary: z.strictObject({
    state: z.enum(['proven', 'failed', 'absent', 'waiting']),
    provedAt: timestamp.optional(),
    emptyMicros: count.optional(),
  }),
});
export type HostView = z.infer<typeof hostView>;

export const endReport = z.strictObject({
  at: timestamp,
  cause: z.string(),
  rootStatus: z.string().optional(),
  survivors: count,
  processes: count,
  proof: z.string(),
  emptyBootMs: count,
  rows: z.array(processRow),
  unlisted: unlistedCounts.optional(),
});

export const grantView = z.strictObject({
  grantId: id,
  runId: id,
  host: hostName,
  subject: z.string(),
  uid: count,
  pid: count,
  command,
  cwd: z.string(),
  reason: z.string().optional(),
  credentials: z.array(held),
  policyRevision: count,
  policyIds: z.array(z.string()),
  freshness,
  containment,
  parent: id.optional(),
  epoch: count,
  grantedAt: timestamp,
  ceilingMs: count,
  /** After this wall-clock instant, plus grace, nothing of the tree can be alive: for people; the host's clock decides. */
  ceilingAt: timestamp,
  state: z.enum(['granted', 'running', 'ended', 'expired']),
  released: timestamp.optional(),
  root: z.strictObject({ pid: count, startTicks: z.string() }).optional(),
  ended: endReport.optional(),
});
export type GrantView = z.infer<typeof grantView>;

export const receiptStates = ['pending', 'killed', 'ended', 'never_released', 'unreachable', 'late'] as const;

/** What is expected of one grant that a revocation hit, and what came: docs/spec/revocation.md. */
export const receiptView = z.strictObject({
  host: hostName,
  grantId: id,
  runId: id,
  subject: z.string(),
  command,
  state: z.enum(receiptStates),
  /** Whether the host's own record says that nothing holds it. */
  proven: z.boolean(),
  /** By when freshness or ceiling ends it, where nothing comes. */
  boundAt: timestamp,
  heardAt: timestamp.optional(),
  signalledMicros: count.optional(),
  emptyMicros: count.optional(),
  /** By the control plane's clock. */
  receivedAt: timestamp.optional(),
  survivors: count.optional(),
  processes: count.optional(),
  escapes: count.optional(),
  containment: containment.optional(),
  why: z.string().optional(),
});
export type ReceiptView = z.infer<typeof receiptView>;

const revocationFacts = {
  epoch: z.int().positive(),
  target: revocationTarget,
  reason: z.string(),
  createdAt: timestamp,
  createdBy: z.string(),
  /** Refuses new grants until it is lifted. */
  standing: z.boolean(),
  lifted: z.strictObject({ at: timestamp, by: z.string(), reason: z.string() }).optional(),
};

export const revocationView = z.strictObject({
  ...revocationFacts,
  /** Over everything expected, by state. */
  counts: z.strictObject({ expected: count, proven: count, ...statesCounted() }),
  /** Those that are not proven come first. */
  receipts: z.array(receiptView).max(receiptRowsMax),
  /** How many more there are than `receipts` shows. */
  more: count,
  /** Every expected receipt has come. */
  proven: z.boolean(),
});
export type RevocationView = z.infer<typeof revocationView>;

function statesCounted(): Record<(typeof receiptStates)[number], typeof count> {
  return {
    pending: count,
    killed: count,
    ended: count,
    never_released: count,
    unreachable: count,
    late: count,
  };
}

export const revocationSummary = z.strictObject(revocationFacts);
export type RevocationSummary = z.infer<typeof revocationSummary>;

/** What a revocation would hit; nothing was written. */
export const revocationPreview = z.strictObject({
  dryRun: z.literal(true),
  target: revocationTarget,
  standing: z.boolean(),
  grants: count,
  hosts: z.array(z.strictObject({ host: hostName, grants: count })).max(listRowsMax),
  hits: z
    .array(
      z.strictObject({
        host: hostName,
        grantId: id,
        runId: id,
        subject: z.string(),
        command,
        paths: z.array(secretPath),
        boundAt: timestamp,
      }),
    )
    .max(receiptRowsMax),
  more: count,
});
export type RevocationPreview = z.infer<typeof revocationPreview>;

export const possessionRow = z.strictObject({
  path: secretPath,
  field: fieldName,
  version: count,
  name: z.string(),
  host: hostName,
  subject: z.string(),
  uid: count,
  grantId: id,
  runId: id,
  command,
  /** From the host's own ledger: released, and its tree found empty. */
  from: timestamp,
  to: timestamp.optional(),
  cause: z.string().optional(),
  rootPid: count.optional(),
  /** Of its tree, as far as they were accounted for by name; without the root. */
  processes: z.array(processRow),
  entry: z.strictObject({ epoch: count, seq: count }),
});
export type PossessionRow = z.infer<typeof possessionRow>;

export const ledgerAuthorView = z.strictObject({
  author: z.string(),
  name: z.string(),
  publicKey: base64Url,
  head: z.strictObject({ epoch: count, seq: count, hash: z.string() }),
  forked: z.boolean(),
});
export type LedgerAuthorView = z.infer<typeof ledgerAuthorView>;

export const ledgerLine = z.strictObject({
  /** Where `tail` stands. Grows with ingestion; may have gaps. */
  ordinal: count,
  author: z.string(),
  name: z.string(),
  ingestedAt: timestamp,
  /** The exact line, without its line feed: docs/spec/ledger.md. */
  line: z.string(),
});
export type LedgerLine = z.infer<typeof ledgerLine>;

export const explanation = z.strictObject({
  allow: z.boolean(),
  subject: z.string(),
  path: secretPath,
  revision: count,
  policyIds: z.array(z.string()),
  ceilingMs: count.optional(),
  freshness: freshness.optional(),
  /** What the host must offer, where a policy requires it. */
  containment: z.array(containment).optional(),
  /** The deliveries allowed, where some are not. */
  deliver: z.array(delivery).optional(),
  onExit: onExit.optional(),
  why: z.string(),
  next: z.string().optional(),
});
export type Explanation = z.infer<typeof explanation>;

const wholeNumber = z
  .string()
  .regex(/^\d{1,15}$/)
  .transform(Number);
/** An epoch or a sequence number of a chain, as far as a column of the ledger goes. */
const chainNumber = wholeNumber.refine((number) => number < 2 ** 31, 'is too large');
const flag = z.enum(['true', 'false']).transform((text) => text === 'true');

interface EndpointShape {
  readonly method: 'GET' | 'PUT' | 'POST' | 'DELETE';
  /** OpenAPI path template. A secret's path stands percent-encoded in one segment: `prod%2Fstripe`. */
  readonly path: string;
  readonly summary: string;
  readonly params?: z.ZodType;
  readonly query?: z.ZodType;
  readonly body?: z.ZodType;
  readonly reply: z.ZodType;
  /** The answer is a stream of server-sent events, each of the shape of `reply`. */
  readonly stream?: true;
}

/** Every endpoint, by the name of the action that `authorize` asks for. */
export const endpoints = {
  enroll: {
    method: 'POST',
    path: '/v1/enroll',
    summary: 'Enrol a host with a join token',
    body: z.strictObject({
      token: z.string().max(128),
      name: hostName.optional(),
      signingKey: base64Url,
      sealingKey: base64Url,
      busUserKey: z.string().regex(/^U[A-Z2-7]{55}$/),
      containment,
      agentVersion: plainText.max(64),
      /** Ed25519 over docs/spec/enrolment.md's statement, by the signing key: the host holds what it names. */
      proof: base64Url,
    }),
    reply: z.strictObject({
      hostId: id,
      name: hostName,
      busJwt: z.string(),
      busServers: z.array(z.string()),
      controlPlaneKey: base64Url,
    }),
  },
  'secret.list': {
    method: 'GET',
    path: '/v1/secrets',
    summary: 'List secrets under a folder',
    query: z.strictObject({ prefix: plainText.max(256).optional() }),
    reply: z.strictObject({ secrets: z.array(secretSummary).max(listRowsMax) }),
  },
  'secret.put': {
    method: 'PUT',
    path: '/v1/secrets/{path}',
    summary: 'Store a new version of a secret',
    params: path,
    body: z.strictObject({
      encoding: z.enum(['utf8', 'base64']).default('utf8'),
      fields: z
        .record(fieldName, z.string().max(Math.ceil(secretValueBytesMax / 3) * 4))
        .refine((fields) => Object.keys(fields).length > 0, 'is empty')
        .refine(
          (fields) => Object.keys(fields).length <= secretFieldsMax,
          `has more than ${secretFieldsMax} fields`,
        ),
    }),
    reply: secretSummary,
  },
  'secret.get': {
    method: 'GET',
    path: '/v1/secrets/{path}',
    summary: 'A secret without its values',
    params: path,
    reply: secretSummary,
  },
  'secret.versions': {
    method: 'GET',
    path: '/v1/secrets/{path}/versions',
    summary: 'The versions of a secret, newest first, without values',
    params: path,
    reply: z.strictObject({ versions: z.array(secretSummary) }),
  },
  'secret.reveal': {
    method: 'POST',
    path: '/v1/secrets/{path}/reveal',
    summary: 'The values of a secret; goes on record',
    params: path,
    body: z.strictObject({ version: z.int().positive().optional() }),
    reply: z.strictObject({ ...secretSummary.shape, values: z.record(fieldName, z.base64()) }),
  },
  'secret.remove': {
    method: 'DELETE',
    path: '/v1/secrets/{path}',
    summary: 'Remove a secret: every version is erased',
    params: path,
    reply: path,
  },
  'policy.apply': {
    method: 'POST',
    path: '/v1/policies',
    summary: 'Apply a policy set as the next revision',
    body: z.strictObject({ text: plainText.max(policyTextBytesMax) }),
    reply: policySummary,
  },
  'policy.validate': {
    method: 'POST',
    path: '/v1/policies/validate',
    summary: 'Check a policy set without applying it',
    body: z.strictObject({ text: plainText.max(policyTextBytesMax) }),
    reply: z.strictObject({ policies: policySummary.shape.policies }),
  },
  'policy.history': {
    method: 'GET',
    path: '/v1/policies',
    summary: 'Policy revisions, newest first',
    reply: z.strictObject({ revisions: z.array(policySummary).max(listRowsMax) }),
  },
  'policy.show': {
    method: 'GET',
    path: '/v1/policies/{revision}',
    summary: 'One policy revision, or `current`, with its text',
    params: z.strictObject({
      revision: z.string().regex(/^(?:current|\d{1,9})$/, 'is neither a number nor current'),
    }),
    reply: z.strictObject({ ...policySummary.shape, text: z.string() }),
  },
  'policy.explain': {
    method: 'POST',
    path: '/v1/policies/explain',
    summary: 'Whether a subject may hold a secret now, and why',
    body: z.strictObject({
      /** `HOST/UID` */
      subject,
      path: secretPath,
      command: z.array(z.string()).max(runArgumentsMax).default([]),
      reason: reason.optional(),
    }),
    reply: explanation,
  },
  'host.list': {
    method: 'GET',
    path: '/v1/hosts',
    summary: 'Enrolled hosts',
    reply: z.strictObject({ hosts: z.array(hostView).max(listRowsMax) }),
  },
  'host.get': {
    method: 'GET',
    path: '/v1/hosts/{name}',
    summary: 'One host',
    params: z.strictObject({ name: hostName }),
    reply: hostView,
  },
  'host.ban': {
    method: 'POST',
    path: '/v1/hosts/{name}/ban',
    summary: 'Ban a host: its runs end, its keys are wiped, and it is cut off; it has to enrol again',
    params: z.strictObject({ name: hostName }),
    body: z.strictObject({ reason }),
    reply: revocationView,
  },
  'host.token': {
    method: 'POST',
    path: '/v1/join-tokens',
    summary: 'Create a join token: one use, expiring',
    body: z.strictObject({
      ttlMs: z.int().min(1_000).max(joinTokenTtlMsMax).optional(),
      name: hostName.optional(),
      labels: labels.optional(),
    }),
    reply: z.strictObject({ tokenId: id, token: z.string(), expiresAt: timestamp }),
  },
  'grant.list': {
    method: 'GET',
    path: '/v1/grants',
    summary: 'Grants, newest first',
    query: z.strictObject({ active: flag.optional(), canaries: flag.optional() }),
    reply: z.strictObject({ grants: z.array(grantView).max(listRowsMax) }),
  },
  'grant.get': {
    method: 'GET',
    path: '/v1/grants/{grantId}',
    summary: 'One grant, with how it ended',
    params: z.strictObject({ grantId: id }),
    reply: z.strictObject({ ...grantView.shape, jws }),
  },
  'revocation.create': {
    method: 'POST',
    path: '/v1/revocations',
    summary:
      'Revoke a grant, run, host, subject, secret, prefix, policy revision, or everything; or ask what that would hit',
    body: z.strictObject({ target: namedTarget, reason, dryRun: z.boolean().default(false) }),
    reply: z.union([revocationView, revocationPreview]),
  },
  'revocation.lift': {
    method: 'POST',
    path: '/v1/revocations/lift',
    summary:
      'Lift a standing revocation, by its epoch or every one of a target: new grants are possible again',
    body: z.strictObject({
      what: z.union([z.strictObject({ epoch: z.int().positive() }), z.strictObject({ target: namedTarget })]),
      reason,
    }),
    reply: z.strictObject({ lifted: z.array(revocationSummary).max(listRowsMax) }),
  },
  'revocation.list': {
    method: 'GET',
    path: '/v1/revocations',
    summary: 'Revocations, newest first; with `standing` those that refuse new grants now',
    query: z.strictObject({ standing: flag.optional() }),
    reply: z.strictObject({ revocations: z.array(revocationSummary).max(listRowsMax) }),
  },
  'revocation.get': {
    method: 'GET',
    path: '/v1/revocations/{epoch}',
    summary:
      'One revocation and its receipts; waits up to waitMs for the next receipt while some are pending',
    params: z.strictObject({ epoch: wholeNumber }),
    query: z.strictObject({ waitMs: wholeNumber.optional() }),
    reply: revocationView,
  },
  'ledger.possession': {
    method: 'GET',
    path: '/v1/ledger/possession',
    summary: 'Who held a secret between two instants, over the whole fleet',
    query: z.strictObject({ path: secretPath, from: timestamp.optional(), to: timestamp.optional() }),
    reply: z.strictObject({ rows: z.array(possessionRow).max(possessionRowsMax) }),
  },
  'ledger.authors': {
    method: 'GET',
    path: '/v1/ledger/authors',
    summary: 'Whose chains the central ledger holds, with keys and heads',
    reply: z.strictObject({ authors: z.array(ledgerAuthorView).max(listRowsMax) }),
  },
  'ledger.lines': {
    method: 'GET',
    path: '/v1/ledger/lines',
    summary: 'Ledger lines: of one author in order of its chain, or of all in order of ingestion',
    query: z.strictObject({
      author: plainText.max(64).optional(),
      epoch: chainNumber.optional(),
      afterSeq: chainNumber.optional(),
      after: wholeNumber.optional(),
      last: flag.optional(),
      waitMs: wholeNumber.optional(),
    }),
    reply: z.strictObject({
      lines: z.array(ledgerLine).max(listRowsMax),
      /** The `after` to go on with: nothing at or before it can still come. Absent where one chain was asked for. */
      next: count.optional(),
    }),
  },
  'events.follow': {
    method: 'GET',
    path: '/v1/events',
    summary: 'What happens in the fleet, as server-sent events; goes on after `since` or Last-Event-ID',
    query: z.strictObject({
      since: wholeNumber.optional(),
      /** `false`: ends where the ledger ends. */
      follow: flag.optional(),
      /** Without `since` and `follow`: the newest so many. */
      last: wholeNumber.optional(),
    }),
    reply: fleetEvent,
    stream: true,
  },
  status: {
    method: 'GET',
    path: '/v1/status',
    summary: 'How the control plane is',
    reply: z.strictObject({
      version: z.string(),
      protocol: count,
      hosts: count,
      activeGrants: count,
      epoch: count,
      policyRevision: count,
      outboxPending: count,
      postgres: z.enum(['up', 'down']),
      bus: z.enum(['up', 'down']),
    }),
  },
} as const satisfies Record<string, EndpointShape>;

export type Endpoints = typeof endpoints;
export type Action = keyof Endpoints;
export type ReplyOf<Name extends Action> = z.output<Endpoints[Name]['reply']>;
type PartOf<Name extends Action, Part extends string> =
  Endpoints[Name] extends Record<Part, infer Schema>
    ? Schema extends z.ZodType
      ? z.input<Schema>
      : never
    : undefined;
export type BodyOf<Name extends Action> = PartOf<Name, 'body'>;
export type QueryOf<Name extends Action> = PartOf<Name, 'query'>;
export type ParamsOf<Name extends Action> = PartOf<Name, 'params'>;
