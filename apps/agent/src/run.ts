// Owns what the agent knows of one run while it is open.
import type { GrantClaims } from '@custody/wire/messages';
import type { Held } from '@custody/wire/schema';
import type { Closing, Heard } from './record.ts';
import type { KeeperEnd } from './runs.ts';

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
