// Owns what agent and control plane say to each other over NATS, and the claims of what the control plane signs.
import { z } from 'zod';
import { CustodyError, errorCodes, type ErrorCode } from '@custody/core/errors';
import { accountGrantsMax, revocationPageMax, runCredentialsMax } from '@custody/core/limits';
import {
  base64,
  command,
  containment,
  count,
  freshness,
  held,
  hostName,
  id,
  jws,
  labels,
  onExit,
  plainText,
  reason,
  secretPath,
  subject,
  timestamp,
  ttlMs,
  wanted,
} from './schema.ts';

/** The `typ` of each thing that is signed, so that none can pass for another. */
export const signedTypes = {
  grant: 'custody-grant',
  revocation: 'custody-revocation',
  beacon: 'custody-beacon',
  head: 'custody-head',
  policy: 'custody-policy',
  account: 'custody-account',
} as const;

export const failure = z.strictObject({
  code: z.enum(errorCodes as [ErrorCode, ...ErrorCode[]]),
  message: z.string().max(4_096),
  next: z.string().max(4_096).optional(),
});
export type Failure = z.infer<typeof failure>;

export function failureOf(error: unknown): Failure {
  if (!(error instanceof CustodyError))
    return { code: 'internal', message: 'the control plane failed; its log says why' };
  const { code, publicMessage, next } = error;
  return { code, message: publicMessage, ...(next === undefined ? {} : { next }) };
}

export function errorOf(told: Failure): CustodyError {
  return new CustodyError(told.code, told.message, told.next === undefined ? {} : { next: told.next });
}

function answer<Shape extends z.ZodRawShape>(shape: Shape) {
  return z.discriminatedUnion('ok', [
    z.strictObject({ ok: z.literal(true), ...shape }),
    z.strictObject({ ok: z.literal(false), error: failure }),
  ]);
}

/** `up.grant` */
export const grantRequest = z.strictObject({
  version: z.literal(1),
  /** Made by the agent for this one request; comes back in the grant, so that no older grant can be replayed. */
  requestId: id,
  runId: id,
  uid: count,
  gid: count,
  pid: count,
  command,
  cwd: plainText.max(4_096),
  reason: reason.optional(),
  ttlMs: ttlMs.optional(),
  credentials: z.array(wanted).max(runCredentialsMax),
  containment,
  /** What the run asks for; absent: as the policy says, else `kill`. */
  onExit: onExit.optional(),
  parent: z.strictObject({ grantId: id, remainingMs: count }).optional(),
});
export type GrantRequest = z.infer<typeof grantRequest>;

/** The claims of a grant (JWS, `typ` custody-grant). */
export const grantClaims = z.strictObject({
  grantId: id,
  requestId: id,
  runId: id,
  hostId: id,
  subject: z.string(),
  credentials: z.array(held),
  /** Counted on the host's boot-time clock from the instant the host asked. */
  ceilingMs: count,
  graceMs: count,
  freshness,
  policyRevision: count,
  policyIds: z.array(z.string()),
  containment,
  parent: id.optional(),
  /** What becomes of what the root leaves behind; absent: `kill`. */
  onExit: onExit.optional(),
  /** The revocation epoch at the decision: the host must have applied it before it releases. */
  epoch: count,
  /** SHA-256 of the sealed box that comes with the grant, hex: nobody on the way can put another in its place. */
  sealedSha256: z.string().regex(/^[0-9a-f]{64}$/),
  grantedAt: timestamp,
});
export type GrantClaims = z.infer<typeof grantClaims>;

export const grantAnswer = answer({
  grant: jws,
  /** The values, one field per variable name, sealed to the host: docs/spec/sealing.md. */
  sealed: base64,
  notes: z.array(z.string()),
});
export type GrantAnswer = z.infer<typeof grantAnswer>;

const revision = z.int().positive();
/** Every target that people and programs write alike. */
const targets = [
  z.strictObject({ kind: z.literal('grant'), id }),
  z.strictObject({ kind: z.literal('run'), id }),
  z.strictObject({ kind: z.literal('subject'), subject }),
  z.strictObject({
    kind: z.literal('secret'),
    path: secretPath,
    version: z
      .int()
      .positive()
      .max(2 ** 31 - 1)
      .optional(),
  }),
  z.strictObject({ kind: z.literal('prefix'), path: secretPath }),
  z.strictObject({ kind: z.literal('policy_revision'), revision: revision.max(2 ** 31 - 1) }),
  z.strictObject({ kind: z.literal('all') }),
] as const;
export const revocationTarget = z.discriminatedUnion('kind', [
  ...targets,
  z.strictObject({ kind: z.literal('host'), id, name: hostName, ban: z.literal(true).optional() }),
]);
/** What people name: of a host they know the name alone. */
export const namedTarget = z.discriminatedUnion('kind', [
  ...targets,
  z.strictObject({ kind: z.literal('host'), name: hostName }),
]);
export type NamedTarget = z.infer<typeof namedTarget>;

/** The claims of one entry of the revocation log (JWS, `typ` custody-revocation). */
export const revocationClaims = z.strictObject({
  epoch: z.int().positive(),
  target: revocationTarget,
  reason: z.string(),
  at: timestamp,
  /** The log it stands in; absent in the log that a database began with. */
  log: id.optional(),
});
export type RevocationClaims = z.infer<typeof revocationClaims>;

/** `fleet.revocation`: the newest entry. `up.revocations` asks for those after a cursor. */
export const revocationBroadcast = z.strictObject({ entry: jws });
export const revocationsRequest = z.strictObject({
  after: count,
  /** Random, and never used before: what is signed with it was signed after the host asked. */
  nonce: id.optional(),
});
export const revocationsAnswer = answer({
  entries: z.array(jws).max(revocationPageMax),
  head: count,
  /** Where the log stood when this was answered; absent where no nonce was given. */
  proof: jws.optional(),
});
export type RevocationsAnswer = z.infer<typeof revocationsAnswer>;

/** `fleet.beacon` (JWS, `typ` custody-beacon): every revocation made before `at` has at most that epoch. */
export const beaconClaims = z.strictObject({
  log: id,
  /** The epoch at which it was begun anew: later entries name it. Absent in the log that a database began with. */
  since: count.optional(),
  epoch: count,
  at: timestamp,
});
export type BeaconClaims = z.infer<typeof beaconClaims>;
export const beaconBroadcast = z.strictObject({ beacon: jws });

/** The same in answer to one host's question (JWS, `typ` custody-head). */
export const headClaims = z.strictObject({ ...beaconClaims.shape, nonce: id });
export type HeadClaims = z.infer<typeof headClaims>;

/** The claims of a question for grants whose receipts are owed (JWS, `typ` custody-account), in `down.account`. */
export const accountClaims = z.strictObject({
  hostId: id,
  epoch: z.int().positive(),
  grants: z
    .array(z.strictObject({ grantId: id, runId: id }))
    .min(1)
    .max(accountGrantsMax),
  at: timestamp,
});
export type AccountClaims = z.infer<typeof accountClaims>;
export const accountMessage = z.strictObject({ account: jws });

/** The claims of a policy set (JWS, `typ` custody-policy); `labels` are the asking host's own. */
export const policyClaims = z.strictObject({
  revision: count,
  text: z.string(),
  hostId: id,
  labels,
  at: timestamp,
});
export type PolicyClaims = z.infer<typeof policyClaims>;

/** `fleet.policy` says only that there is a newer one; `up.policy` fetches it signed. */
export const policyNotice = z.strictObject({ revision: count });
export const policyRequest = z.strictObject({ have: count });
export const policyAnswer = answer({ signed: jws });

/** `down.ledger`: what the control plane durably holds of this host's ledger (JWS, docs/spec/ledger.md). */
export const ledgerReceiptMessage = z.strictObject({ receipt: jws });
