// Owns the proof that more than last time is said, once, per user and place, across restarts, within bounds.
import { manifestsRememberedMax } from '@custody/core/limits';
import { readManifest, type Manifest } from '@custody/wire/manifest';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { Manifests } from '../src/manifests.ts';
import { captureLog, folder } from './support.ts';

const manifest = (more: object): Manifest =>
  readManifest(Buffer.from(JSON.stringify({ version: 1, ...more })), 'custody.json');
const small = manifest({ env: { A: 'custody://prod/a/b' }, ttl: '5m', scrub: true });
const large = manifest({
  env: { B: 'custody://prod/a/b' },
  commands: { 'npm publish': { file: { C: 'custody://prod/npm/token' } } },
});

it('says what is more, and nothing the first time, the same time, or when it is less', async () => {
  const file = join(folder(), 'manifests.json');
  const { log } = captureLog();
  const path = '/srv/custody.json';
  {
    await using manifests = await Manifests.open(file, log);
    expect(manifests.growth(1, { path, content: small })).toEqual([]);
    manifests.remember(1, { path, content: small });
    expect(manifests.growth(1, { path, content: small })).toEqual([]);
    expect(manifests.growth(2, { path, content: large })).toEqual([]);
  }
  await using manifests = await Manifests.open(file, log);
  expect(manifests.growth(1, { path, content: large })).toEqual([
    '/srv/custody.json asks for more than last time: credentials in your environment, custody://prod/npm/token by file for npm publish, a longer ttl',
  ]);
  manifests.remember(1, { path, content: large });
  expect(manifests.growth(1, { path, content: large })).toEqual([]);
  expect(manifests.growth(1, { path, content: small })).toEqual([]);
});

it('remembers so many and no more, and the oldest goes first', async () => {
  const file = join(folder(), 'manifests.json');
  {
    await using manifests = await Manifests.open(file, captureLog().log);
    for (let n = 0; n <= manifestsRememberedMax; n += 1)
      manifests.remember(1, { path: `/${n}/custody.json`, content: small });
  }
  const kept = JSON.parse(readFileSync(file, 'utf8')) as [string, unknown][];
  expect(kept).toHaveLength(manifestsRememberedMax);
  expect(kept[0]?.[0]).toBe('1:/1/custody.json');
});

it('a file that cannot be read is forgotten, and the log says so', async () => {
  const file = join(folder(), 'manifests.json');
  writeFileSync(file, '[');
  const { log, text } = captureLog();
  await using manifests = await Manifests.open(file, log);
  expect(manifests.growth(1, { path: '/x', content: large })).toEqual([]);
  expect(text()).toContain('forgotten');
});
