// Owns the canary of this host: a run that is always open, for the control plane to revoke and so see that this host kills.
import { setTimeout as delay } from 'node:timers/promises';
import { canaryField, canaryPath } from '@custody/core/canary';
import {
  canaryEndMsMax,
  canaryPauseMsMax,
  canaryRetryMs,
  canaryTtlMs,
  reconcileIntervalMs,
} from '@custody/core/limits';
import type { CanaryRun } from '@custody/keeper/canary';
import type { Log } from './log.ts';

export interface CanaryOptions {
  /** Whether a grant can be asked for. */
  readonly ready: () => boolean;
  /** Whether a canary is open, also one that an earlier agent started. */
  readonly open: () => boolean;
  readonly start: (reference: string, ttlMs: number) => CanaryRun;
  /** Ends those that are open. */
  readonly end: () => void;
  readonly bootMs: () => number;
  /** From 0 to 1: all hosts of a fleet lose their canary at the same instant and should not come back at one. */
  readonly random: () => number;
  readonly log: Log;
}

/** A reconciler: nudge and timer do the same. */
export class Canary implements AsyncDisposable {
  readonly #options: CanaryOptions;
  readonly #timer: NodeJS.Timeout;
  #notBeforeBootMs = 0;
  #keeperPid: number | undefined;
  #ended: Promise<void> | undefined;
  #stopped = false;

  constructor(options: CanaryOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.tend(), reconcileIntervalMs);
  }

  /** Whether that process is the keeper of a canary that this agent started: nobody else gets its credential. */
  isKeeper(pid: number): boolean {
    return pid === this.#keeperPid;
  }

  tend(): void {
    const { ready, open, start, bootMs, random, log } = this.#options;
    if (open()) {
      this.#notBeforeBootMs = bootMs() + random() * canaryPauseMsMax;
      return;
    }
    if (this.#stopped || !ready() || this.#keeperPid !== undefined || bootMs() < this.#notBeforeBootMs)
      return;
    this.#notBeforeBootMs = bootMs() + canaryRetryMs;
    try {
      const { pid, ended } = start(`custody://${canaryPath}/${canaryField}`, canaryTtlMs);
      this.#keeperPid = pid;
      this.#ended = ended.then((how) => {
        this.#keeperPid = undefined;
        log.debug({ how }, 'a canary ended');
      });
    } catch (error) {
      log.error({ err: error }, 'a canary could not be started');
    }
  }

  /** Unlike a run that somebody asked for, it serves nobody while no agent does. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    this.#options.end();
    await Promise.race([this.#ended, delay(canaryEndMsMax, undefined, { ref: false })]);
  }
}
