// Holds what the tests of this room share: a host's key, and chains made with it.
import { signingKeyFromSeed, type SigningKey } from '@custody/crypto/keys';
import { appendEntry, type EntryFields, type Head } from '../src/chain.ts';
import { LedgerError } from '../src/errors.ts';

export const host = 'host-1';
export const key = signingKeyFromSeed(new Uint8Array(32).fill(1));
export const stranger = signingKeyFromSeed(new Uint8Array(32).fill(2));

export interface Chain {
  /** Each with its line feed. */
  readonly lines: string[];
  /** `heads[i]` follows `lines[i]`. */
  readonly heads: Head[];
}

export function fieldsOf(index: number, more: Partial<EntryFields> = {}): EntryFields {
  return {
    host,
    at: new Date(Date.UTC(2026, 10, 21, 9, 30, 0, index)).toISOString(),
    boot_ms: 1_000 + index,
    kind: index % 2 === 0 ? 'grant.released' : 'run.ended',
    body: { run: `r${index}`, n: index },
    ...more,
  };
}

/** `count` entries after `head`. `more` makes one history differ from another. */
export function grow(
  head: Head | undefined,
  count: number,
  more: Partial<EntryFields> = {},
  by: SigningKey = key,
): Chain {
  const lines: string[] = [];
  const heads: Head[] = [];
  let last = head;
  for (let index = 0; index < count; index++) {
    const appended = appendEntry(last, fieldsOf((last?.seq ?? 0) + 1, more), by);
    lines.push(Buffer.from(appended.line).toString('utf8'));
    last = appended.head;
    heads.push(last);
  }
  return { lines, heads };
}

export function at<T>(list: readonly T[], index: number): T {
  const item = list.at(index);
  if (item === undefined) throw new Error(`no item ${index}`);
  return item;
}

export function codeOf(act: () => unknown): string | undefined {
  try {
    act();
    return undefined;
  } catch (error) {
    if (error instanceof LedgerError) return error.code;
    throw error;
  }
}
