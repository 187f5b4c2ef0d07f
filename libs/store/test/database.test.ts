// Owns the proof of what a transaction promises: retries for collisions only, and errors with a stable code.
import { withDatabase } from '@custody/testkit/database';
import { expect, test } from 'vitest';
import { openDatabase, sqlTransaction, transaction, type Transaction } from '../src/database.ts';
import { createDatabase } from '../src/databases.ts';
import { StoreError } from '../src/errors.ts';

const t = withDatabase();
const at = new Date('2026-01-02T03:04:05.678Z');

function host(id: string, name = id): Parameters<Transaction['host']['create']>[0] {
  return {
    data: { id, name, labels: {}, signingKey: 's', sealingKey: 'e', busUserKey: 'b', enrolledAt: at },
  };
}

/** Two transactions that each read what the other one writes: one of them must be rolled back. */
async function collide(attemptsMax: number, key: string): Promise<{ results: unknown[]; calls: number }> {
  await t.database.prisma.meta.createMany({
    data: [
      { key: `${key}-a`, value: 0 },
      { key: `${key}-b`, value: 0 },
    ],
  });
  let calls = 0;
  const bothHaveRead = Promise.withResolvers<void>();
  let readers = 0;
  const one = (read: string, write: string): Promise<void> =>
    transaction(
      t.database,
      async (tx) => {
        calls++;
        await tx.meta.findUniqueOrThrow({ where: { key: read } });
        if (++readers === 2) bothHaveRead.resolve();
        await bothHaveRead.promise;
        await tx.meta.update({ where: { key: write }, data: { value: 1 } });
      },
      { isolation: 'Serializable', attemptsMax, operation: 'collide' },
    );
  const results = await Promise.allSettled([one(`${key}-a`, `${key}-b`), one(`${key}-b`, `${key}-a`)]);
  return { results, calls };
}

test('bytes, times, arrays, JSON and 64-bit numbers come back as they were written', async () => {
  const { prisma } = t.database;
  await prisma.host.create(host('h_types'));
  const written = {
    id: 'g_1',
    runId: 'r_1',
    hostId: 'h_types',
    uid: 4_294_967,
    pid: 7,
    subject: 'uid:0',
    command: ['a b', '', 'ü'],
    cwd: '/',
    reason: null,
    credentials: [{ name: 'K', path: 'prod/x', field: 'f', version: 1 }],
    paths: ['prod/x'],
    policyRevision: 1,
    policyIds: ['p'],
    ceilingMs: 1_000,
    grantedAt: at,
    containment: 'cgroup',
    freshness: { kind: 'best_effort' },
    parentGrant: null,
    epoch: 9_007_199_254_740_993n,
    jws: 'x',
    ceilingAt: at,
    endedAt: null,
  };
  await prisma.grant.create({ data: written });
  expect(await prisma.grant.findFirst({ where: { paths: { has: 'prod/x' } } })).toEqual(written);

  const head = {
    author: 'h_types',
    chainEpoch: 1,
    seq: 1,
    hash: new Uint8Array([0, 255, 10]),
    forkedAt: null,
  };
  await prisma.ledgerHead.create({ data: head });
  expect(await prisma.ledgerHead.findUnique({ where: { author: 'h_types' } })).toMatchObject(head);
});

test('a collision is retried until both transactions have committed', async () => {
  const { results, calls } = await collide(5, 'retried');
  expect(results.map((result) => (result as PromiseSettledResult<void>).status)).toEqual([
    'fulfilled',
    'fulfilled',
  ]);
  expect(calls).toBe(3);
});

test('a collision in the last allowed attempt is too_many_retries', async () => {
  const { results } = await collide(1, 'bounded');
  const failed = results.filter((result) => (result as PromiseSettledResult<void>).status === 'rejected');
  expect(failed).toHaveLength(1);
  expect((failed[0] as PromiseRejectedResult).reason).toMatchObject({ code: 'too_many_retries' });
});

test('a deadlock between plain SQL transactions is retried', async () => {
  await t.database.prisma.meta.createMany({
    data: [
      { key: 'dead-a', value: 0 },
      { key: 'dead-b', value: 0 },
    ],
  });
  const bothHaveOne = Promise.withResolvers<void>();
  let holders = 0;
  let calls = 0;
  const one = (first: string, second: string): Promise<void> =>
    sqlTransaction(t.database, async (client) => {
      calls++;
      await client.query(`UPDATE meta SET value = '1' WHERE key = $1`, [first]);
      if (++holders === 2) bothHaveOne.resolve();
      await bothHaveOne.promise;
      await client.query(`UPDATE meta SET value = '1' WHERE key = $1`, [second]);
    });
  await Promise.all([one('dead-a', 'dead-b'), one('dead-b', 'dead-a')]);
  expect(calls).toBe(3);
});

test('an existing key is a conflict that is not retried and names the constraint, not the value', async () => {
  await t.database.prisma.host.create(host('h_first', 'taken-name'));
  let calls = 0;
  const error: unknown = await transaction(
    t.database,
    (tx) => {
      calls++;
      return tx.host.create(host('h_second', 'taken-name'));
    },
    { operation: 'enrol host' },
  ).catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(StoreError);
  expect(error).toMatchObject({ code: 'conflict', publicMessage: 'enrol host: it exists already' });
  expect((error as StoreError).constraint).toContain('name');
  expect((error as StoreError).publicMessage).not.toContain('taken-name');
  expect(calls).toBe(1);
});

test('the same conflict from plain SQL and from raw SQL through Prisma has the same code', async () => {
  const insert = `INSERT INTO meta (key, value) VALUES ('twice', '1')`;
  await t.database.pool.query(insert);
  await expect(sqlTransaction(t.database, (client) => client.query(insert))).rejects.toMatchObject({
    code: 'conflict',
    constraint: 'meta_pkey',
  });
  await expect(transaction(t.database, (tx) => tx.$executeRawUnsafe(insert))).rejects.toMatchObject({
    code: 'conflict',
  });
});

test('a missing row and a broken reference have codes of their own', async () => {
  await expect(
    transaction(t.database, (tx) => tx.host.update({ where: { id: 'none' }, data: { name: 'x' } })),
  ).rejects.toMatchObject({ code: 'not_found' });
  await expect(
    transaction(t.database, (tx) =>
      tx.secretVersion.create({
        data: {
          path: 'none',
          version: 1,
          fieldNames: [],
          keyId: 'k',
          wrappedKey: new Uint8Array(),
          nonce: new Uint8Array(),
          ciphertext: new Uint8Array(),
          createdAt: at,
          createdBy: 'x',
        },
      }),
    ),
  ).rejects.toMatchObject({ code: 'constraint' });
});

test("the caller's own error rolls back and passes unchanged", async () => {
  const own = new TypeError('mine');
  await expect(
    transaction(t.database, async (tx) => {
      await tx.meta.create({ data: { key: 'undone', value: 1 } });
      throw own;
    }),
  ).rejects.toBe(own);
  await expect(
    sqlTransaction(t.database, async (client) => {
      await client.query(`INSERT INTO meta (key, value) VALUES ('undone', '1')`);
      throw own;
    }),
  ).rejects.toBe(own);
  expect(await t.database.prisma.meta.findUnique({ where: { key: 'undone' } })).toBeNull();
});

test('a session that the server ends inside a transaction is unreachable, and the pool lives on', async () => {
  await expect(
    sqlTransaction(t.database, async (client) => {
      await client.query('SELECT pg_terminate_backend(pg_backend_pid())');
    }),
  ).rejects.toMatchObject({ code: 'unreachable' });
  await expect(
    transaction(t.database, (tx) => tx.$queryRaw`SELECT pg_terminate_backend(pg_backend_pid())`),
  ).rejects.toMatchObject({ code: 'unreachable' });
  expect(await t.database.prisma.meta.count({ where: { key: 'none' } })).toBe(0);
});

test('a statement that takes too long is a timeout', async () => {
  await expect(
    sqlTransaction(t.database, async (client) => {
      await client.query(`SET LOCAL statement_timeout = '20ms'`);
      await client.query('SELECT pg_sleep(5)');
    }),
  ).rejects.toMatchObject({ code: 'timeout' });
});

test('opening says at once whether the server is absent or refuses', async () => {
  const absent = { connectionString: 'postgresql://nobody:x@127.0.0.1:1/none', poolMax: 1 };
  await expect(openDatabase(absent)).rejects.toMatchObject({ code: 'unreachable' });
  const wrong = new URL(t.url);
  wrong.password = 'wrong';
  const refused: unknown = await openDatabase({ connectionString: wrong.href, poolMax: 1 }).catch(
    (e: unknown) => e,
  );
  expect(refused).toMatchObject({ code: 'access_denied' });
  expect((refused as StoreError).publicMessage).not.toContain(new URL(t.url).password);
  const missing = new URL(t.url);
  missing.pathname = '/none';
  await expect(openDatabase({ connectionString: missing.href, poolMax: 1 })).rejects.toMatchObject({
    code: 'access_denied',
  });
});

test('a call that Prisma refuses is internal, and its message holds none of its arguments', async () => {
  // oxlint-disable-next-line typescript/unbound-method -- the methods of a Prisma model do not use `this`
  const create = t.database.prisma.meta.create as (args: unknown) => Promise<unknown>;
  const error: unknown = await transaction(t.database, () =>
    create({ data: { key: 'row-value', value: 1, unknown: 'row-value' } }),
  ).catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ code: 'internal' });
  const cause = (error as StoreError).cause as Error;
  expect(cause.message).toContain('Unknown argument `unknown`');
  expect(`${cause.message}${cause.stack}`).not.toContain('row-value');
});

test('making a database that exists is a conflict', async () => {
  const name = new URL(t.url).pathname.slice(1);
  await expect(createDatabase({ connectionString: t.url, name })).rejects.toMatchObject({ code: 'conflict' });
});

test('the unsent rows of the outbox are found by their own index', async () => {
  const { rows } = await t.database.pool.query<{ indexdef: string }>(
    `SELECT indexdef FROM pg_indexes WHERE indexname = 'outbox_unsent_idx'`,
  );
  expect(rows[0]?.indexdef).toContain('WHERE (sent_at IS NULL)');
});
