// Owns every bound of the system: queues, bodies, lists, retries, times. Units stand last in each name.

/** One secret version: its fields and their values. */
export const secretFieldsMax = 64;
export const secretValueBytesMax = 65_536;
export const secretPathBytesMax = 256;
export const secretPathDepthMax = 16;
export const fieldNameBytesMax = 64;

/** One HTTP request body, and one answer that lists things. */
export const httpBodyBytesMax = 1_048_576;
export const listRowsMax = 1_000;
export const reasonBytesMax = 1_024;
export const labelsMax = 32;

/** One policy set as text. */
export const policyTextBytesMax = 262_144;
export const policiesMax = 1_000;
/** Decisions remembered by one policy engine; the same question to the same set has the same answer. */
export const decisionsKeptMax = 1_024;

/** One run. */
export const runCredentialsMax = 64;
export const runArgumentsMax = 4_096;
export const runCommandBytesMax = 65_536;
/** @public The keeper's ENV_FILE_BYTES_MAX; test/tidy holds the two together. */
export const envFileBytesMax = 65_536;
/** A manifest, its sections, and of how many an agent remembers what they asked for. */
/** @public The keeper's MANIFEST_BYTES_MAX; test/tidy holds the two together. */
export const manifestBytesMax = 65_536;
export const manifestCommandsMax = 64;
export const manifestsRememberedMax = 1_024;
export const patternsMax = 256;
export const patternBytesMax = 256;
export const runsPerHostMax = 4_096;
export const processRowsMax = 256;
export const ttlMsMin = 100;
export const ttlMsMax = 7 * 24 * 3_600_000;
/** What a policy without `@ceiling` allows. */
export const ceilingMsDefault = 15 * 60_000;
/** Between TERM and KILL at a ceiling and after the root's exit. A revocation has none. */
export const graceMsDefault = 2_000;
/** How long the agent waits past ceiling + grace for the keeper before it empties the tree itself. */
export const keeperLagMsMax = 500;

/** How long a caller of the API waits for one answer. Waiting for receipts asks again. */
export const callTimeoutMs = 15_000;

/** Containment. Processes and threads of one run, where the kernel's pids controller is at hand. */
export const runTasksMax = 8_192;
/** How often a removed group is tried again while its last processes leave the kernel, and with which pause. */
export const groupRemovalsMax = 100;
export const groupRemovalPauseMs = 50;
/** How often a killed group is looked at until it is empty, and with which pause. */
export const groupLooksMax = 400;
export const groupLookPauseMs = 5;
/** How long the end of a run that exited by itself may wait to share its look for escapes with others. */
export const escapeLookShareMs = 100;
/** How often a living run's escapes are looked for, and how many of one run go on record. */
export const escapeScanIntervalMs = 5_000;
export const escapeRecordsMax = 64;

/** Enrolment and tokens. */
export const joinTokenTtlMsDefault = 3_600_000;
export const joinTokenTtlMsMax = 7 * 24 * 3_600_000;
export const hostNameBytesMax = 63;

/** The link between agent and control plane. */
/** After an agent's start: how long a run may wait for the link to be joined for the first time. */
export const linkJoinMsMax = 5_000;
export const grantRequestTimeoutMs = 5_000;
export const pullTimeoutMs = 5_000;
export const busMessageBytesMax = 1_000_000;
export const reconnectWaitMs = 250;
export const revocationPageMax = 500;
export const possessionRowsMax = 10_000;

/** The agent's socket. */
export const socketConnectionsMax = 8_192;
export const keeperRequestTimeoutMs = 10_000;

/** The ledger. */
export const ledgerEntryBytesMax = 65_536;
export const ledgerBatchEntriesMax = 256;
export const ledgerBatchBytesMax = 524_288;
export const ledgerSegmentBytesMax = 16_777_216;
export const ledgerReceiptTimeoutMs = 5_000;
/** How long a shipped batch waits for company. A receipt of a revocation waits for nobody. */
export const ledgerLingerMs = 10;
/** The longest wait before what stays unconfirmed is sent again. */
export const ledgerResendMsMax = 60_000;
/** How often a batch is looked at whose predecessor is missing, before its host is asked for it, and the first pause between. */
export const ledgerGapDeliveriesMax = 4;
export const ledgerGapPauseMs = 50;
/** How long a ledger receipt may wait to be written down. */
export const ledgerReceiptKeepMs = 250;
export const spoolBytesMax = 1_073_741_824;

/** Reconcilers and the outbox. */
export const outboxBatchMax = 256;
export const reconcileIntervalMs = 2_000;
export const waitForReceiptMsDefault = 30_000;
/** Receipts of one revocation that one answer shows; the rest is counted. */
export const receiptRowsMax = 10_000;
/** After how long without a receipt a host is asked for an account, and after how long it counts as unreachable. */
export const accountAfterMs = 1_000;
export const unreachableAfterMs = 5_000;
export const accountGrantsMax = 256;
/** A host that was heard of within this may be asked; for how many grants one round asks. */
export const accountSeenMs = 180_000;
export const accountRowsMax = 4_096;
/** How many accounts a host remembers to have given, so as not to give them twice. */
export const accountsKeptMax = 4_096;
/** How many runs that are over an agent remembers, so as not to answer for them twice. */
export const closedRunsKeptMax = 16_384;
/** How long a banned host may take to empty its trees and say so, before it is cut off. */
export const banGraceMs = 10_000;
/** How long a banned host waits for its trees before it writes its last entry all the same. */
export const banEmptyMs = 6_000;

/** Events: streams at once, one page, and how long a reader may leave what it was sent unread. */
export const eventStreamsMax = 64;
export const eventPageMax = 128;
export const eventPollMs = 500;
export const eventHeartbeatMs = 15_000;
export const eventStallMs = 15_000;
export const eventsShownDefault = 50;
/** How many applied revocations an agent remembers to judge a grant that was decided before them. */
export const revocationsKeptMax = 4_096;
/** After an agent's start: how long a keeper whose run it finds open may take to come back. */
export const keeperReturnMsMax = 2_500;
/** Freshness (docs/adr/0008-freshness.md). How often the control plane says where the revocation log stands. */
export const beaconIntervalMs = 5_000;
/** By how much a beacon may come from the future before clocks must have been set. */
export const beaconSkewMsMax = 1_000;
/** How often a host asks the control plane for the time itself, and how long that answer may be relied on. */
export const anchorIntervalMs = 60_000;
export const anchorMsMax = 300_000;
/** The least bound of `@freshness("strict …")`: two beacons in a row may be lost. */
export const freshnessMsMin = 15_000;
/** Open refusal records that may wait for the disk: past that, refusals go unrecorded rather than unbounded. */
export const refusalRecordsMax = 256;

/** The canary of a host: how long one may stand, and the pauses before the next after a kill and after a failure. */
export const canaryTtlMs = 24 * 3_600_000;
export const canaryPauseMsMax = 60_000;
export const canaryRetryMs = 10_000;
/** How long an agent that stops waits for its canary to end. */
export const canaryEndMsMax = 1_000;
/** Between two rounds in which every host proves its kill; how long receipts have; how many hosts a verdict names. */
export const canaryIntervalMsDefault = 3_600_000;
export const canaryJudgedAfterMs = 10_000;
export const canaryNamesMax = 200;
