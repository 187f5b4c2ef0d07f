// Owns the proof of what a release gives beside an environment, and of what is on record of it.
import { keeperReturnMsMax } from '@custody/core/limits';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ask, pass, peer, reborn, scene } from './fakes.ts';

// Timers stand still; everything else is real.
beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

describe('a release', () => {
  it('of such a value in a file is given, and where it stands goes on record', async () => {
    const s = await scene();
    s.link.values.set('STRIPE_KEY', Buffer.from('a\0b'));
    const wanted = [{ name: 'STRIPE_KEY', path: 'prod/stripe', field: 'api_key', deliver: 'file' }] as const;
    const release = await s.runs.admit(ask({ wanted, place: '/dev/shm' }), peer);
    expect(release.environment.map(([name]) => name)).toEqual(['MODE']);
    expect(release.delivered).toEqual([['file', 'STRIPE_KEY', Uint8Array.from(Buffer.from('a\0b'))]]);
    expect(s.spool.of('released')).toMatchObject([{ place: '/dev/shm', credentials: [{ deliver: 'file' }] }]);
    release.wipe();
    expect(release.delivered[0]?.[2].every((byte) => byte === 0)).toBe(true);
    s.living.delete(peer.pid);
    s.runs.started(release.grantId, 5000, '123');
    const next = await reborn(s);
    next.living.delete(peer.pid);
    next.runs.awaitKeepers();
    await pass(next, keeperReturnMsMax);
    expect(next.places).toEqual(['/dev/shm']);
  });

  it('says what a manifest asks for beyond last time, and remembers it once it had its way', async () => {
    const told: string[] = [];
    const manifests = {
      granted: (uid: number, asking: { path: string } | undefined) => {
        if (asking !== undefined) told.push(`${uid} ${asking.path}`);
        return asking === undefined ? [] : ['more'];
      },
    };
    const s = await scene({ manifests });
    const manifest = { path: '/srv/custody.json', content: { version: 1 as const } };
    expect((await s.runs.admit(ask({ manifest }), peer)).notes).toEqual(['more']);
    s.link.claims = { credentials: [] };
    await expect(s.runs.admit(ask({ manifest }), peer)).rejects.toThrow();
    expect(told).toEqual(['1000 /srv/custody.json']);
  });
});
