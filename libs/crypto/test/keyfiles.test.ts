// Tests key files on a real file system: whole or not at all, and the owner's alone.
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadOrCreateSeed, readKeyFile, writeFileAtomic } from '../src/keyfiles.ts';
import { generateSigningKeySeed } from '../src/keys.ts';
import { codeOfAsync } from './support.ts';

let folder = '';
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'custody-keyfiles-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const modeOf = async (path: string): Promise<number> => (await stat(path)).mode & 0o777;

test('a written file has exactly the bytes and the mode, and nothing stays beside it', async () => {
  const path = join(folder, 'state');
  await writeFileAtomic(path, Buffer.from('one'), 0o600);
  await writeFileAtomic(path, Buffer.from('two'), 0o666);
  expect(await readFile(path, 'utf8')).toBe('two');
  expect(await modeOf(path)).toBe(0o666);
  expect(await readdir(folder)).toEqual(['state']);
});

test('a write that fails leaves the old file and no temporary', async () => {
  const path = join(folder, 'is-a-folder');
  await mkdir(join(path, 'full'), { recursive: true });
  await expect(writeFileAtomic(path, Buffer.from('x'), 0o600)).rejects.toThrow();
  expect(await readdir(folder)).toEqual(['is-a-folder']);
});

test('creates a seed once: 0600 in a folder of 0700, and finds it again', async () => {
  const path = join(folder, 'a', 'b', 'host.key');
  const seed = await loadOrCreateSeed(path, generateSigningKeySeed);
  expect(seed.byteLength).toBe(32);
  expect(seed.some((byte) => byte !== 0)).toBe(true);
  expect(await modeOf(path)).toBe(0o600);
  expect(await modeOf(join(folder, 'a', 'b'))).toBe(0o700);
  expect(await loadOrCreateSeed(path, () => expect.unreachable())).toEqual(seed);
  expect(await readdir(join(folder, 'a', 'b'))).toEqual(['host.key']);
});

test('two that start at once get the same seed', async () => {
  const path = join(folder, 'race', 'host.key');
  const seeds = await Promise.all(
    Array.from({ length: 8 }, () => loadOrCreateSeed(path, generateSigningKeySeed)),
  );
  expect(new Set(seeds.map((seed) => Buffer.from(seed).toString('hex'))).size).toBe(1);
  expect(await readdir(join(folder, 'race'))).toEqual(['host.key']);
});

test('refuses a key that group or others can reach, and does not replace it', async () => {
  const path = join(folder, 'host.key');
  for (const mode of [0o640, 0o604, 0o620, 0o610, 0o601]) {
    await writeFile(path, Buffer.alloc(32, 1));
    await chmod(path, mode);
    expect(await codeOfAsync(readKeyFile(path))).toBe('key_file_exposed');
    expect(await codeOfAsync(loadOrCreateSeed(path, generateSigningKeySeed))).toBe('key_file_exposed');
  }
  expect(await readFile(path)).toEqual(Buffer.alloc(32, 1));
});

test('refuses a folder in which others could replace the key', async () => {
  const open = join(folder, 'open');
  await mkdir(open);
  await chmod(open, 0o777);
  expect(await codeOfAsync(loadOrCreateSeed(join(open, 'host.key'), generateSigningKeySeed))).toBe(
    'key_file_exposed',
  );
});

test('refuses a wrong size, a folder, and says when there is none', async () => {
  const path = join(folder, 'host.key');
  expect(await codeOfAsync(readKeyFile(path))).toBe('key_file_missing');
  await writeFile(path, Buffer.alloc(31), { mode: 0o600 });
  expect(await codeOfAsync(readKeyFile(path))).toBe('key_file_bad_size');
  expect(await codeOfAsync(loadOrCreateSeed(path, generateSigningKeySeed))).toBe('key_file_bad_size');
  expect(await codeOfAsync(readKeyFile(folder))).toBe('key_file_unreadable');
  await symlink('nowhere', join(folder, 'dangling'));
  expect(await codeOfAsync(readKeyFile(join(folder, 'dangling')))).toBe('key_file_missing');
});
