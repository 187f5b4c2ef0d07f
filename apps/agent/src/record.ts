// Owns the way from the keeper's words to the ledger's.
import type { ProcRow } from '@custody/keeper/frames';
import type { ProcessRow } from '@custody/wire/ledger';

/** A keeper's or a sweep's row of one process, as it goes on record. */
export function recorded({ pid, ppid, startTicks, how, name }: ProcRow): ProcessRow {
  return { pid, ppid, startTicks, how: `${how.kind}:${how.number}`, name: name.slice(0, 64) };
}
