// Owns the proof of a ban on its host: nothing is wiped before the trees are empty, and no restart forgets it.
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { encodeJson } from '@custody/wire/schema';
import type { RevocationClaims } from '@custody/wire/messages';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Ban, readMark, requireNotBanned } from '../src/ban.ts';
import { enroll } from '../src/identity.ts';
import { FakeSpool } from './fakes.ts';
import { at, captureLog, folder, hostId, settle, until } from './support.ts';

const files = ['identity.json', 'keys/sealing.seed', 'keys/signing.seed', 'keys/bus.nkey'];
const claims: RevocationClaims = {
  ...{ epoch: 4, reason: 'stolen', at },
  target: { kind: 'host', id: hostId, name: 'host-a', ban: true },
};

function home(): string {
  const dir = folder();
  mkdirSync(join(dir, 'keys'));
  for (const file of files) writeFileSync(join(dir, file), 'secret');
  return dir;
}

function opened(dir = home()) {
  const { log, text } = captureLog();
  const spool = new FakeSpool();
  const empty = Promise.withResolvers<void>();
  const scene = { dir, spool, empty, open: 1, forgot: 0, log: text };
  const ban = new Ban({
    ...{ dataDir: dir, hostId, name: 'host-a', log },
    runs: () => ({
      get open() {
        return scene.open;
      },
      whenNoneOpen: () => empty.promise,
    }),
    link: () => ({ forgetPolicy: () => void (scene.forgot += 1) }),
    spool: () => spool,
  });
  onTestFinished(() => ban[Symbol.asyncDispose]());
  return { ...scene, ban, end: () => ((scene.open = 0), empty.resolve()), forgot: () => scene.forgot };
}

const left = (dir: string): string[] => files.filter((file) => existsSync(join(dir, file)));

describe('a ban that is heard', () => {
  it('refuses at once, is on disk, waits for the trees, then wipes, then says so', async () => {
    const s = opened();
    expect(s.ban.refusal).toBeUndefined();
    s.ban.heard(claims);
    expect(s.ban.refusal).toMatchObject({
      code: 'revoked',
      publicMessage: 'host-a was banned (revocation 4: stolen)',
    });
    await s.ban.marked;
    expect(await readMark(s.dir)).toEqual(claims);
    await settle();
    expect([left(s.dir), s.spool.written, s.forgot()]).toEqual([files, [], 0]);
    s.end();
    await until(() => s.spool.written.length === 1);
    expect([left(s.dir), s.forgot()]).toEqual([[], 1]);
    expect(s.spool.of('banned')).toEqual([{ epoch: 4, openRuns: 0, wiped: files }]);
  });

  it.each<[string, RevocationClaims]>([
    ['of another host', { ...claims, target: { kind: 'host', id: 'h_other000', name: 'host-a', ban: true } }],
    ['that is a revocation alone', { ...claims, target: { kind: 'host', id: hostId, name: 'host-a' } }],
    ['of everything', { ...claims, target: { kind: 'all' } }],
  ])('%s changes nothing here', async (_, heard) => {
    const s = opened();
    s.ban.heard(heard);
    await s.ban.marked;
    expect([s.ban.refusal, await readMark(s.dir)]).toEqual([undefined, undefined]);
  });

  it('is carried out once', async () => {
    const s = opened();
    s.end();
    s.ban.heard(claims);
    s.ban.heard({ ...claims, epoch: 5 });
    await until(() => s.spool.written.length > 0);
    await settle();
    expect(s.spool.of('banned')).toMatchObject([{ epoch: 4 }]);
  });

  it('of an agent that stops before its trees are empty leaves the keys, for the next to finish', async () => {
    const s = opened();
    s.ban.heard(claims);
    await s.ban.marked;
    await s.ban[Symbol.asyncDispose]();
    expect([left(s.dir), s.spool.written]).toEqual([files, []]);
    await requireNotBanned(s.dir);
    const next = opened(s.dir);
    next.end();
    const revoked: RevocationClaims[] = [];
    await next.ban.resume((each) => void revoked.push(each));
    expect(revoked).toEqual([claims]);
    await until(() => next.spool.written.length === 1);
    expect(left(s.dir)).toEqual([]);
  });
});

describe('a folder whose host was banned', () => {
  it('serves nobody again, and what an interrupted wipe left is removed', async () => {
    const dir = home();
    writeFileSync(join(dir, 'banned.json'), encodeJson(claims));
    await requireNotBanned(dir);
    rmSync(join(dir, 'identity.json'));
    await expect(requireNotBanned(dir)).rejects.toMatchObject({
      code: 'revoked',
      publicMessage: 'host-a was banned (revocation 4: stolen)',
    });
    expect(left(dir)).toEqual([]);
    expect(JSON.parse(readFileSync(join(dir, 'banned.json'), 'utf8'))).toEqual(claims);
  });

  it('takes no other host', async () => {
    const dir = folder();
    writeFileSync(join(dir, 'banned.json'), encodeJson(claims));
    const options = { url: 'http://127.0.0.1:9', token: 'x', name: 'again', version: '0' };
    await expect(enroll({ ...options, dataDir: dir, containment: 'subreaper' })).rejects.toMatchObject({
      code: 'revoked',
    });
    expect(left(dir)).toEqual([]);
  });

  it('that was never banned is as it was', async () => {
    const dir = home();
    await requireNotBanned(dir);
    expect(left(dir)).toEqual(files);
  });
});
