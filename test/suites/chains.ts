// Owns the check that the central ledger lost and doubled nothing: every chain is sound, and held once without a gap.
import { openDatabase, type Database } from '@custody/store/database';
import { exited, type TestConstellation } from '@custody/testkit/constellation';
import { expect } from 'vitest';

/** Of the control plane and of one host. The database, for what else there is to ask: the caller disposes it. */
export async function wholeChains(kit: TestConstellation): Promise<Database> {
  exited(0, await kit.custody(['ledger', 'verify']));
  const database = await openDatabase({ connectionString: kit.constellation.databaseUrl, poolMax: 1 });
  const { rows } = await database.pool.query<{ author: string; entries: number; last: number }>(
    `SELECT author, count(DISTINCT (chain_epoch, seq))::int AS entries, max(seq) AS last
       FROM ledger_entries GROUP BY author`,
  );
  expect(rows).toHaveLength(2);
  for (const { entries, last } of rows) expect(entries).toBe(last);
  return database;
}
