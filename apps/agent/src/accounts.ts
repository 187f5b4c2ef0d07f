// Owns this host's answers about grants whose receipts are owed, and that no run here holds: docs/spec/revocation.md.
import type { Bus } from '@custody/bus/bus';
import { accountsKeptMax } from '@custody/core/limits';
import { verifyJws } from '@custody/crypto/jws';
import type { SweepResult } from '@custody/keeper/sweep';
import { accountClaims, accountMessage, signedTypes, type AccountClaims } from '@custody/wire/messages';
import { parse, parseJson } from '@custody/wire/schema';
import { hostDown } from '@custody/wire/subjects';
import type { Link } from './link.ts';
import type { Log } from './log.ts';
import type { Runs } from './runs.ts';
import type { Spool } from './spool.ts';

export interface AccountsOptions {
  readonly hostId: string;
  readonly controlPlaneKey: string;
  readonly runs: () => Pick<Runs, 'accountsFor'>;
  readonly link: () => Pick<Link, 'cursor' | 'catchUp'>;
  readonly spool: () => Pick<Spool, 'append'>;
  readonly sweep: (grantId: string, options: Record<string, never>) => Promise<SweepResult>;
  readonly wallClock: () => Date;
  readonly bootMs: () => number;
  readonly log: Log;
}

/**
 * A grant whose answer was lost on the way, or that was forgotten with a spool, leaves nothing here that could write a receipt by
 * itself. `#given` belongs to the one answer that is under way.
 */
export class Accounts {
  readonly #options: AccountsOptions;
  readonly #given = new Set<string>();
  #answering: Promise<void> | undefined;

  constructor(options: AccountsOptions) {
    this.#options = options;
  }

  /** Ends, when disposed, after the answer that is under way. */
  async start(bus: Pick<Bus, 'subscribe'>): Promise<AsyncDisposable> {
    const subject = hostDown(this.#options.hostId, 'account');
    const subscription = await bus.subscribe(subject, ({ data }) => this.#heard(data));
    return {
      [Symbol.asyncDispose]: async () => {
        await subscription[Symbol.asyncDispose]();
        await this.#answering;
      },
    };
  }

  /** What comes while one is being answered is let go: the control plane asks again for as long as it is owed something. */
  #heard(data: Uint8Array): void {
    this.#answering ??= this.#answer(data)
      .catch((error: unknown) => this.#options.log.warn({ err: error }, 'an account could not be given'))
      .finally(() => {
        this.#answering = undefined;
      });
  }

  async #answer(data: Uint8Array): Promise<void> {
    const { hostId, controlPlaneKey, link: linkOf, wallClock, bootMs } = this.#options;
    const { account } = parseJson(accountMessage, data, 'account');
    const claims = parse(
      accountClaims,
      await verifyJws(controlPlaneKey, signedTypes.account, account),
      signedTypes.account,
    );
    if (claims.hostId !== hostId) throw new Error('it was for another host');
    const link = linkOf();
    // Only a host that has applied the revocation can say that it will never release the grant.
    if (link.cursor < claims.epoch) return link.catchUp();
    const heard = { at: wallClock(), bootMs: bootMs() };
    for (const grant of claims.grants) await this.#notHere(claims, grant, heard);
  }

  async #notHere(
    { epoch }: AccountClaims,
    { grantId, runId }: AccountClaims['grants'][number],
    heard: { readonly at: Date; readonly bootMs: number },
  ): Promise<void> {
    const { runs, spool, sweep, log } = this.#options;
    // An open run writes its own receipt when its tree is empty; what one wrote may still be on its way.
    if (this.#given.has(grantId) || runs().accountsFor(grantId)) return;
    const { processes, emptyBootMs, complaints } = await sweep(grantId, {});
    if (emptyBootMs === undefined) {
      log.error({ grantId, complaints }, 'processes of a grant that no run holds could not be ended');
      return;
    }
    // It may have been released meanwhile only if it is open now.
    if (runs().accountsFor(grantId)) return;
    await spool().append('receipt', {
      ...{ grantId, runId, epoch, outcome: 'not_here', heardAt: heard.at.toISOString() },
      emptyMicros: Math.max(0, Math.round((emptyBootMs - heard.bootMs) * 1_000)),
      ...{ survivors: processes.length, processes: processes.length },
    });
    if (this.#given.size >= accountsKeptMax) this.#given.clear();
    this.#given.add(grantId);
  }
}
