// Owns the proof that a reader of the ledger's one order never skips an entry, however late it commits.
import { withDatabase } from '@custody/testkit/database';
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { beforeNewest, settledAfter, settledHead } from '../src/events.ts';

const t = withDatabase();
const open: pg.Client[] = [];
const { signal } = new AbortController();
let seq = 0;

beforeEach(async () => {
  await t.database.pool.query('TRUNCATE ledger_entries RESTART IDENTITY');
  seq = 0;
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((client) => client.end()));
});

/** A transaction of its own, which has written already: as every writer of the ledger has before it takes a number. */
async function begin(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: t.url });
  await client.connect();
  open.push(client);
  await client.query('BEGIN');
  await client.query('SELECT pg_current_xact_id()');
  return client;
}

/** Takes the next ordinal. */
async function write(on: { query: pg.Client['query'] }, kind = 'revoked'): Promise<void> {
  await on.query(
    `INSERT INTO ledger_entries (author, chain_epoch, seq, kind, at, boot_ms, hash, bytes, signature, body, ingested_at)
     VALUES ('x', 1, $1, $2, now(), 0, '', '', '', '{}', now())`,
    [(seq += 1), kind],
  );
}

const read = async (after: number, limit = 10): Promise<number[]> =>
  (await settledAfter(t.database, after, limit, signal)).map(({ ordinal }) => ordinal);

/** Whether it has resolved when everything that needs no commit has had its time. */
async function settledSoon(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  void promise.then(() => (settled = true));
  for (let look = 0; look < 5; look += 1) await t.database.pool.query('SELECT pg_sleep(0.02)');
  return settled;
}

describe('an entry that commits after a later one', () => {
  test('is waited for, and comes before it', async () => {
    const slow = await begin();
    await write(slow);
    await write(t.database.pool);
    const reading = read(0);
    expect(await settledSoon(reading)).toBe(false);
    await slow.query('COMMIT');
    expect(await reading).toEqual([1, 2]);
  });

  test('holds back what comes after it, and not what stands before it', async () => {
    await write(t.database.pool);
    const slow = await begin();
    await write(slow);
    await write(t.database.pool);
    expect(await read(0)).toEqual([1]);
    const reading = read(1);
    expect(await settledSoon(reading)).toBe(false);
    await slow.query('COMMIT');
    expect(await reading).toEqual([2, 3]);
  });

  test('of which two are open at once are both waited for', async () => {
    const [first, second] = [await begin(), await begin()];
    // The older transaction takes the higher number: an order by transaction alone would lose the other.
    await write(second);
    await write(first);
    await write(t.database.pool);
    await first.query('COMMIT');
    const reading = read(0);
    expect(await settledSoon(reading)).toBe(false);
    await second.query('COMMIT');
    expect(await reading).toEqual([1, 2, 3]);
  });

  test('is waited for also where its transaction is newer than every one that has ended', async () => {
    const [older, newer] = [await begin(), await begin()];
    await write(newer);
    await write(older);
    await older.query('COMMIT');
    const reading = read(0);
    expect(await settledSoon(reading)).toBe(false);
    await newer.query('COMMIT');
    expect(await reading).toEqual([1, 2]);
  });

  test('is not missed by a reader who begins while it is open', async () => {
    await write(t.database.pool);
    const slow = await begin();
    await write(slow);
    await write(t.database.pool);
    const beginning = settledHead(t.database, signal);
    expect(await settledSoon(beginning)).toBe(false);
    await slow.query('COMMIT');
    expect(await beginning).toBe(1);
  });
});

describe('a number that was rolled back', () => {
  test('stays a gap, and holds nobody up once it is decided', async () => {
    const undone = await begin();
    await write(undone);
    await write(t.database.pool);
    const reading = read(0);
    expect(await settledSoon(reading)).toBe(false);
    await undone.query('ROLLBACK');
    expect(await reading).toEqual([2]);
    expect(await settledHead(t.database, signal)).toBe(2);
  });
});

test('a reader who gives up while waiting is told nothing', async () => {
  const slow = await begin();
  await write(slow);
  await write(t.database.pool);
  const abort = new AbortController();
  const reading = settledAfter(t.database, 0, 10, abort.signal);
  abort.abort();
  expect(await reading).toEqual([]);
});

test('writers and a reader at once: each entry once, in order, whatever rolls back', async () => {
  const writersCount = 6;
  const each = 20;
  let done = false;
  const writers = Array.from({ length: writersCount }, async (_, writer) => {
    const client = new pg.Client({ connectionString: t.url });
    await client.connect();
    open.push(client);
    for (let n = 0; n < each; n += 1) {
      await client.query('BEGIN');
      await client.query('SELECT pg_current_xact_id()');
      await write(client);
      await client.query(`SELECT pg_sleep(${((writer * 7 + n * 3) % 5) / 1_000})`);
      await client.query((writer + n) % 7 === 0 ? 'ROLLBACK' : 'COMMIT');
    }
  });
  const all = Promise.all(writers).then(() => (done = true));
  const seen: number[] = [];
  for (;;) {
    const last = done;
    const rows = await read(seen.at(-1) ?? 0, 7);
    seen.push(...rows);
    if (last && rows.length === 0) break;
  }
  await all;
  const { rows } = await t.database.pool.query<{ ordinal: string }>(
    'SELECT ordinal FROM ledger_entries ORDER BY ordinal',
  );
  expect(seen).toEqual(rows.map(({ ordinal }) => Number(ordinal)));
  expect(seen.length).toBeLessThan(writersCount * each);
}, 30_000);

test('the newest of some kinds begin where they should', async () => {
  for (const kind of ['revoked', 'other', 'revoked', 'revoked', 'other']) await write(t.database.pool, kind);
  expect(await beforeNewest(t.database, ['revoked'], 2)).toBe(2);
  expect(await beforeNewest(t.database, ['revoked'], 50)).toBe(0);
  expect(await beforeNewest(t.database, ['none'], 2)).toBe(0);
});
