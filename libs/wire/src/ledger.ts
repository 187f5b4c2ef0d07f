// Owns the body of every kind of ledger entry: what hosts and control plane put on record.
import { z } from 'zod';
import { canaryNamesMax, processRowsMax } from '@custody/core/limits';
import { containment, count, freshness, held, id, secretPath, timestamp, ttlMs } from './schema.ts';
import { failure, revocationTarget } from './messages.ts';

const text = z.string().max(70_000);

/** In clock ticks since boot: with the pid it names a process for ever. */
const startTicks = z.string().regex(/^\d{1,20}$/);

/** One process of a tree, as the keeper accounted for it. */
export const processRow = z.strictObject({
  pid: count,
  ppid: count,
  startTicks,
  /** `exit:0`, `signal:15`, `killed:9` where custody sent the signal, `gone:0` where its own parent has its status. */
  how: z.string().max(32),
  name: z.string().max(64),
  /** When its end was seen, on the boot-time clock; absent in entries of 0.1.0. */
  endedBootMs: count.optional(),
  /** Alive when the root had exited. */
  survivor: z.literal(true).optional(),
});
export type ProcessRow = z.infer<typeof processRow>;

/** How many more processes ended in each way than have a row. */
export const unlistedCounts = z.strictObject({
  exit: count.optional(),
  signal: count.optional(),
  killed: count.optional(),
  gone: count.optional(),
});
export type UnlistedCounts = z.infer<typeof unlistedCounts>;

const run = { grantId: id, runId: id };

/** Kinds that a host writes. */
export const hostKinds = {
  agent_started: z.strictObject({ version: z.string(), openRuns: count }),
  refused: z.strictObject({ uid: count, pid: count, command: text, error: failure }),
  released: z.strictObject({
    ...run,
    uid: count,
    pid: count,
    /** When the keeper, of that pid, was started; absent where the host cannot say. */
    startTicks: startTicks.optional(),
    subject: z.string(),
    command: z.array(z.string()),
    cwd: z.string(),
    credentials: z.array(held),
    ceilingMs: count,
    ceilingBootMs: count,
    policyRevision: count,
    policyIds: z.array(z.string()),
    containment,
    parent: id.optional(),
    /** For how long the host may be cut off; absent where that was not acted on yet. */
    freshness: freshness.optional(),
    /** The revocation epoch at the decision: later entries alone can hit it. */
    epoch: count.optional(),
    reason: z.string().optional(),
    /** Where its files stand, in memory, in a folder named after the grant. */
    place: z.string().optional(),
  }),
  started: z.strictObject({ ...run, pid: count, startTicks: z.string() }),
  ended: z.strictObject({
    ...run,
    cause: z.enum(['exit', 'ceiling', 'stale', 'revoked', 'agent', 'lost', 'not_started']),
    /** Where the cause is `stale`: until when the grant was fresh. */
    freshUntilBootMs: count.optional(),
    rootStatus: z.string().optional(),
    emptyBootMs: count,
    survivors: count,
    processes: count,
    rows: z.array(processRow).max(processRowsMax),
    /** Beyond `rows`; absent where those are all. */
    unlisted: unlistedCounts.optional(),
    /** How the end is known: the keeper saw the tree empty, or the agent swept after losing the keeper. */
    proof: z.enum(['keeper', 'sweep']),
    containment,
  }),
  /** A process that holds a run's marker and stands outside of its tree, when it was first seen. */
  escape: z.strictObject({
    ...run,
    pid: count,
    ppid: count,
    startTicks,
    uid: count,
    name: z.string().max(64),
    cgroup: z.string().max(4_096),
  }),
  /** What one revocation did to one run here: docs/spec/revocation.md. The entry's signature makes it the host's receipt. */
  receipt: z.strictObject({
    ...run,
    epoch: z.int().positive(),
    outcome: z.enum(['killed', 'already_ended', 'not_here', 'not_empty']),
    heardAt: timestamp,
    /** Microseconds after it was heard, on the boot-time clock. */
    signalledMicros: count.optional(),
    emptyMicros: count.optional(),
    survivors: count,
    processes: count,
    /** Found outside of the tree while it ran. */
    escapes: count.optional(),
    containment: containment.optional(),
    why: z.string().max(1_024).optional(),
  }),
  /** The revocation log was set back: what this host followed, and what it was told instead. */
  log_changed: z.strictObject({
    from: z.strictObject({ log: id.optional(), epoch: count }),
    to: z.strictObject({ log: id, epoch: count }),
    openRuns: count,
  }),
  /** The last entry of a host that was banned, and what it removed before it wrote it. */
  banned: z.strictObject({ epoch: z.int().positive(), openRuns: count, wiped: z.array(z.string().max(256)) }),
} as const;

/** Kinds that the control plane writes. */
export const controlPlaneKinds = {
  control_plane_started: z.strictObject({ version: z.string() }),
  join_token_created: z.strictObject({ by: z.string(), tokenId: id, name: z.string().optional(), ttlMs }),
  host_enrolled: z.strictObject({
    hostId: id,
    name: z.string(),
    signingKey: z.string(),
    sealingKey: z.string(),
  }),
  secret_put: z.strictObject({
    by: z.string(),
    path: secretPath,
    version: count,
    fields: z.array(z.string()),
  }),
  secret_revealed: z.strictObject({ by: z.string(), path: secretPath, version: count }),
  secret_removed: z.strictObject({ by: z.string(), path: secretPath }),
  policy_applied: z.strictObject({ by: z.string(), revision: count, sha256: z.string() }),
  granted: z.strictObject({
    ...run,
    hostId: id,
    subject: z.string(),
    credentials: z.array(held),
    ceilingMs: count,
    policyRevision: count,
    policyIds: z.array(z.string()),
    epoch: count,
  }),
  denied: z.strictObject({ hostId: id, subject: z.string(), command: text, error: failure }),
  revoked: z.strictObject({
    by: z.string(),
    epoch: count,
    target: revocationTarget,
    reason: z.string(),
    /** How many receipts are expected. */
    expected: count.optional(),
  }),
  lifted: z.strictObject({ by: z.string(), epoch: count, target: revocationTarget, reason: z.string() }),
  /** After an older database was restored: the revocation log begins a new life. */
  log_renewed: z.strictObject({ from: id, to: id, epoch: count, reason: z.string() }),
  /** One round of canaries: which hosts did not prove that they can kill, and of which it met no canary. */
  canary_judged: z.strictObject({
    epoch: count,
    expected: count,
    killed: count,
    /** The slowest host, from hearing of it to an empty tree; 0 where none was killed. */
    slowestMicros: count,
    failedCount: count,
    failed: z.array(z.strictObject({ host: z.string(), state: z.string() })).max(canaryNamesMax),
    absentCount: count,
    absent: z.array(z.string()).max(canaryNamesMax),
  }),
  ledger_forked: z.strictObject({
    hostId: id,
    chainEpoch: count,
    seq: count,
    held: z.string(),
    offered: z.string(),
  }),
} as const;

export type HostKind = keyof typeof hostKinds;
export type HostBody<Kind extends HostKind> = z.infer<(typeof hostKinds)[Kind]>;
export type ControlPlaneKind = keyof typeof controlPlaneKinds;
export type ControlPlaneBody<Kind extends ControlPlaneKind> = z.infer<(typeof controlPlaneKinds)[Kind]>;

/** The author of the control plane's own chain. */
export const controlPlaneAuthor = 'control-plane';
