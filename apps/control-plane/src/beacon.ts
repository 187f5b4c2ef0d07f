// Owns the beacon: every few seconds, one signed word to the whole fleet on where the revocation log stands.
import type { Bus } from '@custody/bus/bus';
import { beaconIntervalMs } from '@custody/core/limits';
import type { Database } from '@custody/store/database';
import { logHead, type LogHead } from '@custody/store/revocation-log';
import { counter } from '@custody/telemetry/telemetry';
import type { BeaconClaims } from '@custody/wire/messages';
import { encodeJson } from '@custody/wire/schema';
import { fleet } from '@custody/wire/subjects';
import type { Authority } from './authority.ts';
import type { Log } from './log.ts';

export interface BeaconOptions {
  readonly db: Database;
  readonly authority: Pick<Authority, 'signBeacon'>;
  readonly bus: () => Pick<Bus, 'connected' | 'publish'> | undefined;
  readonly log: Log;
}

const beaconsSent = counter('custody.beacons', 'beacons sent');

/**
 * Says it at every nudge and on a timer, and only what the database has just said: one that does not answer, or a
 * bus that is away, means silence. Each control plane has its own.
 */
export class Beacon implements AsyncDisposable {
  readonly #options: BeaconOptions;
  readonly #timer: NodeJS.Timeout;
  #running: Promise<void> | undefined;

  constructor(options: BeaconOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.nudge(), beaconIntervalMs);
  }

  /** One at a time: a database that answers slowly gets no second question. */
  nudge(): void {
    this.#running ??= this.#send().finally(() => {
      this.#running = undefined;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    await this.#running;
  }

  async #send(): Promise<void> {
    const { db, authority, bus: busOf, log } = this.#options;
    if (busOf()?.connected !== true) return;
    try {
      const beacon = await authority.signBeacon(headStatement(await logHead(db)));
      busOf()?.publish(fleet('beacon'), encodeJson({ beacon }));
      beaconsSent.add(1);
    } catch (error) {
      log.warn({ err: error }, 'no beacon was sent; the timer tries again');
    }
  }
}

/** What is signed of where the log stands. */
export function headStatement({ id, since, epoch, at }: LogHead): BeaconClaims {
  return { log: id, ...(since === undefined ? {} : { since }), epoch, at: at.toISOString() };
}
