// Owns what the agent knows of one run while it is open, and what it and the run's keeper are to each other.
import type { Delivery, OnExit } from '@custody/core/policy';
import type { GrantClaims } from '@custody/wire/messages';
import type { Held } from '@custody/wire/schema';
import type { Closing, Heard } from './record.ts';

/** What the kernel says of the process at the other end of the socket. */
export interface Peer {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** The keeper of one run, as runs see it. */
export interface KeeperEnd {
  end(cause: 'revoked' | 'ceiling' | 'agent', graceMs: number): void;
}

/** What the keeper is told once everything is on record. `wipe` must be called when it has been sent. */
export interface Release {
  readonly grantId: string;
  readonly ceilingBootMs: number;
  readonly graceMs: number;
  readonly environment: readonly (readonly [string, Uint8Array])[];
  /** What does not stand in the environment. */
  readonly delivered: readonly (readonly [Exclude<Delivery, 'env'>, string, Uint8Array])[];
  readonly onExit: OnExit;
  readonly keep: readonly string[] | undefined;
  readonly drop: readonly string[] | undefined;
  readonly notes: readonly string[];
  wipe(): void;
}

export interface Run {
  readonly grantId: string;
  readonly runId: string;
  readonly uid: number;
  readonly keeperPid: number;
  /** Unknown where /proc does not say. */
  readonly keeperStartTicks: string | undefined;
  readonly command: readonly string[];
  readonly credentials: readonly Held[];
  readonly containment: GrantClaims['containment'];
  readonly ceilingBootMs: number;
  readonly graceMs: number;
  /** The grants around it. */
  readonly within: readonly string[];
  /** Where its files stand. */
  readonly place: string | undefined;
  /** Sequence number of its `released` entry; infinite until that is durable. */
  releasedSeq: number;
  started: boolean;
  root: { pid: number; startTicks: string } | undefined;
  keeper: KeeperEnd | undefined;
  revoked: Heard | undefined;
  watch: NodeJS.Timeout | undefined;
  sweeping: boolean;
  /** When the agent began to empty the tree itself. */
  sweptBootMs: number | undefined;
  /** When the agent killed its group for a revocation. */
  killedBootMs: number | undefined;
  /** What the keeper said of the end, until nothing is left outside of the tree either. */
  told: Closing | undefined;
  readonly escapes: Set<string>;
}

/** Of a run that was just granted, or just found in the ledger. */
export function atStart() {
  return {
    started: false,
    root: undefined,
    keeper: undefined,
    revoked: undefined,
    watch: undefined,
    sweeping: false,
    sweptBootMs: undefined,
    killedBootMs: undefined,
    told: undefined,
    escapes: new Set<string>(),
  };
}
