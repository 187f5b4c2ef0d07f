// Owns that the bus refuses banned hosts: what it should refuse follows from the database. A reconciler: no input.
import { connectBus } from '@custody/bus/nats-bus';
import { mintSystemUser, pushAccount, revokeUser, type Trust } from '@custody/bus/trust';
import { banGraceMs, pullTimeoutMs, reconcileIntervalMs } from '@custody/core/limits';
import { Secret } from '@custody/core/secret';
import type { Database } from '@custody/store/database';
import { hostsToCut } from '@custody/store/hosts';
import type { Log } from './log.ts';
import { Reconciler } from './reconciler.ts';

export interface BansOptions {
  readonly db: Database;
  readonly now: () => Date;
  readonly log: Log;
  /** Whether there is a bus to tell. */
  readonly joined: () => boolean;
  /** Gives the server the account of a trust: it ends the connections of users revoked in it, and refuses them. */
  readonly push: (revocations: Trust['revocations']) => Promise<void>;
}

/**
 * A banned host first has time to end its runs and to say so. The first round pushes whatever there is: the server may have
 * missed an earlier one.
 */
export function enforceBans({ db, now, log, joined, push }: BansOptions): Reconciler {
  let pushed: string | undefined;
  let pushedSecond = 0;
  const work = async (): Promise<void> => {
    if (!joined()) return;
    const cut = await hostsToCut(db, new Date(now().getTime() - banGraceMs));
    const revocations = Object.fromEntries(
      // Rounded up: a JWT of the same second is older than its ban, whatever the clocks say.
      cut.map(({ busUserKey, bannedAt }) => [busUserKey, Math.ceil(bannedAt.getTime() / 1_000)]),
    );
    const text = JSON.stringify(revocations);
    if (text === pushed || (pushed === undefined && cut.length === 0)) return;
    // The server tells two account JWTs apart by the second they were made in.
    const second = Math.floor(now().getTime() / 1_000);
    if (second === pushedSecond) return;
    await push(revocations);
    [pushed, pushedSecond] = [text, second];
    log.info({ hosts: cut.length }, 'the bus refuses banned hosts');
  };
  return new Reconciler(work, reconcileIntervalMs, (error) =>
    log.warn({ err: error }, 'the bus could not be told whom to refuse; the timer tries again'),
  );
}

/** A push over a connection of its own: bans are rare, and the system account's user should not lie about. */
export function pusher(trust: Trust, servers: readonly string[]): BansOptions['push'] {
  return async (revocations) => {
    let with_ = trust;
    for (const [publicKey, atSeconds] of Object.entries(revocations)) {
      with_ = await revokeUser(with_, { publicKey, atSeconds });
    }
    const { jwt, seed } = await mintSystemUser(trust);
    await using bus = await connectBus({
      servers: [...servers],
      jwt,
      seed: Secret.fromUtf8(seed),
      name: 'custody-control-plane-system',
    });
    await pushAccount(with_, bus, { timeoutMs: pullTimeoutMs });
  };
}
