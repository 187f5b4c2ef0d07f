// Owns asking hosts for an account of grants whose receipts are owed. A reconciler: no input.
import type { Bus } from '@custody/bus/bus';
import {
  accountAfterMs,
  accountGrantsMax,
  accountRowsMax,
  accountSeenMs,
  reconcileIntervalMs,
} from '@custody/core/limits';
import type { Database } from '@custody/store/database';
import { owedReceipts, type Owed } from '@custody/store/revocations';
import { encodeJson } from '@custody/wire/schema';
import { hostDown } from '@custody/wire/subjects';
import type { Authority } from './authority.ts';
import type { Log } from './log.ts';
import { Reconciler } from './reconciler.ts';

export interface AccountsOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly bus: () => Pick<Bus, 'connected' | 'publish'> | undefined;
  readonly now: () => Date;
  readonly log: Log;
}

/** Most receipts come by themselves within milliseconds. What is asked for here is what a host cannot know that it owes. */
export function askForAccounts(options: AccountsOptions): Reconciler {
  const { log } = options;
  return new Reconciler(
    () => ask(options),
    reconcileIntervalMs,
    (error) =>
      log.warn({ err: error }, 'hosts could not be asked for receipts they owe; the timer tries again'),
  );
}

async function ask({ db, authority, bus: busOf, now }: AccountsOptions): Promise<void> {
  const bus = busOf();
  if (bus?.connected !== true) return;
  const at = now();
  const earlier = (ms: number): Date => new Date(at.getTime() - ms);
  const wanted = { before: earlier(accountAfterMs), seenSince: earlier(accountSeenMs) };
  const owed = await owedReceipts(db, wanted, accountRowsMax);
  for (const [hostId, rows] of Map.groupBy(owed, (each) => each.hostId)) {
    for (const page of pagesOf(rows)) {
      const account = await authority.signAccount({
        hostId,
        epoch: Math.max(...page.map(({ epoch }) => epoch)),
        grants: page.map(({ grantId, runId }) => ({ grantId, runId })),
        at: at.toISOString(),
      });
      bus.publish(hostDown(hostId, 'account'), encodeJson({ account }));
    }
  }
}

function pagesOf(rows: readonly Owed[]): Owed[][] {
  const pages = Math.ceil(rows.length / accountGrantsMax);
  return Array.from({ length: pages }, (_, page) =>
    rows.slice(page * accountGrantsMax, (page + 1) * accountGrantsMax),
  );
}
