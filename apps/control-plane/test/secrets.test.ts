// Owns the proof that a secret is kept sealed and bound to its place, that a removal erases, and that no number comes twice.

import { CustodyError } from '@custody/core/errors';
import { withDatabase } from '@custody/testkit/database';
import { beforeAll, describe, expect, it } from 'vitest';
import { canary, hexOf, ownEntries, sceneOf, type Scene } from './support.ts';

const t = withDatabase();
let s: Scene;
beforeAll(async () => {
  s = await sceneOf(t.database);
});

const put = (path: string, fields: Record<string, string>) => s.secrets.put('operator', path, 'utf8', fields);
const reveal = async (path: string, version?: number): Promise<Record<string, string>> => {
  const { values } = await s.secrets.reveal('operator', path, version);
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [name, Buffer.from(value, 'base64').toString()]),
  );
};

/** Every byte that the database holds of every table, as text and as hex. */
async function everything(): Promise<string> {
  const { rows: tables } = await t.database.pool.query<{ name: string }>(
    `SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'`,
  );
  const dumps = await Promise.all(
    tables.map(({ name }) =>
      t.database.pool.query<{ row: string }>(`SELECT row_to_json(x)::text AS row FROM "${name}" x`),
    ),
  );
  return dumps.flatMap(({ rows }) => rows.map(({ row }) => row)).join('\n');
}

describe('at rest', () => {
  it('a value is nowhere in the database, in no encoding, and its name and fields are', async () => {
    await put('prod/rest', { api_key: canary, other: 'x' });
    const dump = await everything();
    expect(dump).toContain('prod/rest');
    expect(dump).toContain('api_key');
    for (const form of [canary, hexOf(canary), Buffer.from(canary).toString('base64').slice(0, 30)]) {
      expect(dump).not.toContain(form);
    }
    expect(await reveal('prod/rest')).toEqual({ api_key: canary, other: 'x' });
  });

  it('equal values of two versions are not seen to be equal', async () => {
    await put('prod/equal', { a: canary });
    await put('prod/equal', { a: canary });
    const rows = await t.database.prisma.secretVersion.findMany({ where: { path: 'prod/equal' } });
    const sealed = rows.flatMap((row) =>
      [row.ciphertext, row.nonce, row.wrappedKey].map((bytes) => Buffer.from(bytes).toString('hex')),
    );
    expect(new Set(sealed).size).toBe(6);
  });

  it.each<[string, { path: string; version: number }, { path: string; version: number }]>([
    ['another version', { path: 'prod/bound', version: 1 }, { path: 'prod/bound', version: 2 }],
    ['another path', { path: 'prod/bound', version: 1 }, { path: 'prod/bound2', version: 1 }],
  ])('a value moved to %s does not open', async (_, from, to) => {
    if ((await s.secrets.list('prod/bound')).length === 0) {
      await put('prod/bound', { a: 'one' });
      await put('prod/bound', { a: 'two' });
      await put('prod/bound2', { a: 'three' });
    }
    const { wrappedKey, nonce, ciphertext } = await t.database.prisma.secretVersion.findUniqueOrThrow({
      where: { path_version: from },
    });
    await t.database.prisma.secretVersion.update({
      where: { path_version: to },
      data: { wrappedKey, nonce, ciphertext },
    });
    await expect(s.secrets.reveal('operator', to.path, to.version)).rejects.toMatchObject({
      code: 'cannot_open',
    });
    expect(await reveal(from.path, from.version)).toEqual({ a: 'one' });
  });

  it('a value whose bytes were changed does not open', async () => {
    await put('prod/flip', { a: canary });
    const where = { path_version: { path: 'prod/flip', version: 1 } };
    const { ciphertext } = await t.database.prisma.secretVersion.findUniqueOrThrow({ where });
    const changed = Uint8Array.from(ciphertext);
    changed[0] = (changed[0] ?? 0) ^ 1;
    await t.database.prisma.secretVersion.update({ where, data: { ciphertext: changed } });
    await expect(s.secrets.reveal('operator', 'prod/flip', undefined)).rejects.toMatchObject({
      code: 'cannot_open',
    });
  });
});

describe('versions', () => {
  it('count up, newest first, and each can be read', async () => {
    for (const value of ['one', 'two', 'three']) await put('prod/v', { a: value });
    expect((await s.secrets.versions('prod/v')).map(({ version }) => version)).toEqual([3, 2, 1]);
    expect(await reveal('prod/v', 2)).toEqual({ a: 'two' });
    expect(await s.secrets.newest('prod/v')).toMatchObject({
      version: 3,
      fields: ['a'],
      createdBy: 'operator',
    });
  });

  it('have no gap and no double when many are put at once', async () => {
    const rows = await Promise.all(
      Array.from({ length: 20 }, (_, index) => put('prod/many', { a: String(index) })),
    );
    expect(rows.map(({ version }) => version).toSorted((a, b) => a - b)).toEqual(
      Array.from({ length: 20 }, (_, index) => index + 1),
    );
  });

  it('a removal erases every one, and no number is used again', async () => {
    await put('prod/gone', { a: 'one' });
    await put('prod/gone', { a: 'two' });
    await s.secrets.remove('operator', 'prod/gone');
    expect(await t.database.prisma.secretVersion.count({ where: { path: 'prod/gone' } })).toBe(0);
    for (const act of [
      () => s.secrets.newest('prod/gone'),
      () => s.secrets.versions('prod/gone'),
      () => s.secrets.reveal('operator', 'prod/gone', 1),
      () => s.secrets.remove('operator', 'prod/gone'),
    ]) {
      await expect(act()).rejects.toBeInstanceOf(CustodyError);
    }
    expect(await put('prod/gone', { a: 'three' })).toMatchObject({ version: 3 });
    expect(await reveal('prod/gone')).toEqual({ a: 'three' });
    await expect(s.secrets.reveal('operator', 'prod/gone', 1)).rejects.toMatchObject({ code: 'not_found' });
  });
});

describe('a list', () => {
  it('is of a folder and what lies in it, and of no name that begins alike', async () => {
    for (const path of ['l', 'l/a', 'l/b/c', 'l2/x', 'l_/x', 'lx']) await put(path, { a: '1' });
    const listed = async (prefix: string): Promise<string[]> =>
      (await s.secrets.list(prefix)).map(({ path }) => path);
    expect(await listed('l')).toEqual(['l', 'l/a', 'l/b/c']);
    expect(await listed('l/')).toEqual(['l', 'l/a', 'l/b/c']);
    expect(await listed('l/b')).toEqual(['l/b/c']);
    expect(await listed('%')).toEqual([]);
    expect(await listed('_')).toEqual([]);
  });
});

describe('what is not a value', () => {
  it.each([
    ['base64 that is none', 'base64', 'not base64!'],
    ['base64 in another spelling', 'base64', 'QQ'],
  ] as const)('%s is refused, and not shown', async (_, encoding, value) => {
    const error = await s.secrets
      .put('operator', 'prod/bad', encoding, { a: value })
      .catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'bad_request' });
    expect((error as Error).message).not.toContain(value);
  });

  it('too large is refused', async () => {
    await expect(put('prod/bad', { a: 'x'.repeat(65_537) })).rejects.toMatchObject({ code: 'too_large' });
    expect(await s.secrets.list('prod/bad')).toEqual([]);
  });

  it('any bytes survive', async () => {
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index)).toString('base64');
    await s.secrets.put('operator', 'prod/bytes', 'base64', { a: bytes, empty: '' });
    expect((await s.secrets.reveal('operator', 'prod/bytes', undefined)).values).toEqual({
      a: bytes,
      empty: '',
    });
  });
});

it('every put, reveal and removal is on record, by whom, and none holds a value', async () => {
  await put('prod/record', { a: canary });
  await s.secrets.reveal('auditor-1', 'prod/record', undefined);
  await s.secrets.remove('operator', 'prod/record');
  const entries = (await ownEntries(s)).filter(({ body }) => body['path'] === 'prod/record');
  expect(entries.map(({ kind, body }) => [kind, body['by']])).toEqual([
    ['secret_put', 'operator'],
    ['secret_revealed', 'auditor-1'],
    ['secret_removed', 'operator'],
  ]);
  expect(JSON.stringify(entries)).not.toContain(canary);
});
