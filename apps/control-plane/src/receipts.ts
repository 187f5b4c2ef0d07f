// Owns what is shown of the receipts that a revocation expects: the state of each, and what is proven.
import { revokedBound } from '@custody/core/freshness';
import { receiptRowsMax, unreachableAfterMs } from '@custody/core/limits';
import type { ExpectedReceipt, RevocationRow } from '@custody/store/revocations';
import type { ReceiptView, RevocationSummary, RevocationView } from '@custody/wire/http';
import { hostKinds } from '@custody/wire/ledger';

export function revocationSummary(row: RevocationRow): RevocationSummary {
  const { epoch, target, reason, createdAt, createdBy, standing, lifted } = row;
  return {
    ...{ epoch, target, reason, createdAt: createdAt.toISOString(), createdBy, standing },
    ...(lifted === undefined ? {} : { lifted: { ...lifted, at: lifted.at.toISOString() } }),
  };
}

/** Every expected receipt is counted, whether it is shown or not. */
export function revocationView(
  row: RevocationRow,
  expected: readonly ExpectedReceipt[],
  now: Date,
): RevocationView {
  const receipts = expected.map((each) => receiptView(row, each, now));
  const counts = { pending: 0, killed: 0, ended: 0, never_released: 0, unreachable: 0, late: 0 };
  for (const { state } of receipts) counts[state] += 1;
  const proven = receipts.filter((receipt) => receipt.proven).length;
  return {
    ...revocationSummary(row),
    counts: { expected: receipts.length, proven, ...counts },
    receipts: receipts.toSorted((a, b) => Number(a.proven) - Number(b.proven)).slice(0, receiptRowsMax),
    more: Math.max(0, receipts.length - receiptRowsMax),
    proven: proven === receipts.length,
  };
}

/** What docs/spec/revocation.md says of one expected receipt. */
function receiptView(revocation: RevocationRow, expected: ExpectedReceipt, now: Date): ReceiptView {
  const { grantId, runId, host, subject, command } = expected;
  const bound = revokedBound(expected, revocation.createdAt);
  const receipt = hostKinds.receipt.safeParse(expected.receipt).data;
  const ended = hostKinds.ended.safeParse(expected.ended).data;
  const final = receipt !== undefined && receipt.outcome !== 'not_empty';
  const proven = final || ended !== undefined;
  const came = final ? expected.receivedAt : expected.endedAt;
  const state = (): ReceiptView['state'] => {
    if (!proven && bound < now) return 'late';
    if (!proven) {
      return now.getTime() - revocation.createdAt.getTime() < unreachableAfterMs ? 'pending' : 'unreachable';
    }
    if (came !== null && came > bound && came > revocation.createdAt) return 'late';
    if (!expected.released) return 'never_released';
    return final && receipt.outcome === 'killed' ? 'killed' : 'ended';
  };
  return {
    ...{ host, grantId, runId, subject, command: [...command] },
    ...{ state: state(), proven, boundAt: bound.toISOString() },
    ...(came === null || !proven ? {} : { receivedAt: came.toISOString() }),
    ...(receipt === undefined ? {} : said(receipt)),
  };
}

function said(
  receipt: NonNullable<ReturnType<typeof hostKinds.receipt.safeParse>['data']>,
): Partial<ReceiptView> {
  const { heardAt, signalledMicros, emptyMicros, survivors, processes, escapes, containment, why } = receipt;
  return {
    ...{ heardAt, survivors, processes },
    ...(signalledMicros === undefined ? {} : { signalledMicros }),
    ...(emptyMicros === undefined ? {} : { emptyMicros }),
    ...(escapes === undefined ? {} : { escapes }),
    ...(containment === undefined ? {} : { containment }),
    ...(why === undefined ? {} : { why }),
  };
}
