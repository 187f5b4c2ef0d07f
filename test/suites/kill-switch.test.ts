// Owns the proof that every host proves its kill: rounds over two real hosts, one of which fails, is flagged, and recovers.
import { alive, exited, until, withConstellation } from '@custody/testkit/constellation';
import type { GrantView, HostView, RevocationView } from '@custody/wire/http';
import { describe, expect, test } from 'vitest';

const kit = withConstellation({
  hosts: 2,
  environment: async () => ({ CUSTODY_CANARY: 'on', CUSTODY_CANARY_INTERVAL: 'off' }),
});

const standing = async (): Promise<GrantView[]> => {
  const grants = await kit.json<GrantView[]>(['grant', 'list', '--active', '--canaries']);
  return grants.filter(({ state, root }) => state === 'running' && root !== undefined);
};
const canaryOf = async (name: string): Promise<HostView['canary']> =>
  (await kit.json<HostView>(['host', 'show', name])).canary;
const verdicts = async (): Promise<{ body: Record<string, unknown> }[]> => {
  const { stdout } = exited(0, await kit.custody(['events', '--json']));
  const events = stdout.split('\n').filter((line) => line !== '');
  return events
    .map((line) => JSON.parse(line) as { kind: string; body: Record<string, unknown> })
    .filter(({ kind }) => kind === 'canary_judged');
};
const round = ['revoke', '--prefix', 'custody/canary', '--reason', 'a drill'];

describe('a round of canaries', () => {
  test('finds the host whose agent does not act, and says so', { timeout: 60_000 }, async () => {
    await until(async () => (await standing()).length === 2, 'both canaries stand');
    expect(await kit.json<GrantView[]>(['grant', 'list'])).toEqual([]);
    const canaries = await standing();
    const rootOf = (host: string): number => canaries.find((grant) => grant.host === host)?.root?.pid ?? 0;
    const agent = kit.constellation.part('host-b').pid;
    process.kill(agent, 'SIGSTOP');
    try {
      const { epoch } = await kit.json<RevocationView>(round);
      await until(async () => (await verdicts()).length === 1, 'the round is judged');
      expect((await verdicts())[0]?.body).toMatchObject({
        ...{ epoch, expected: 2, killed: 1, failedCount: 1, absentCount: 0, absent: [] },
        failed: [{ host: 'host-b' }],
      });
      expect(await canaryOf('host-a')).toMatchObject({ state: 'proven', emptyMicros: expect.any(Number) });
      expect(await canaryOf('host-b')).toEqual({ state: 'failed' });
      const { stdout } = exited(0, await kit.custody(['host', 'list']));
      expect(stdout).toMatch(/host-b .* FAILED \(never\)/);
      expect([alive(rootOf('host-a')), alive(rootOf('host-b'))]).toEqual([false, true]);
    } finally {
      process.kill(agent, 'SIGCONT');
    }
    await until(() => !alive(rootOf('host-b')), 'the canary of host-b is dead');
    // Not before the next round: what it proved came late.
    expect(await canaryOf('host-b')).toMatchObject({ state: 'failed' });
  });

  test('and the next finds that all of them kill', { timeout: 60_000 }, async () => {
    // An agent that starts has no pause to keep.
    for (const name of ['host-a', 'host-b'])
      await (
        await kit.constellation.part(name).kill('SIGTERM')
      ).restarted;
    await until(async () => (await standing()).length === 2, 'both canaries stand again');
    exited(0, await kit.custody([...round, '--wait']));
    await until(async () => (await verdicts()).length === 2, 'the round is judged');
    expect((await verdicts())[1]?.body).toMatchObject({ expected: 2, killed: 2, failed: [], absent: [] });
    for (const name of ['host-a', 'host-b']) expect(await canaryOf(name)).toMatchObject({ state: 'proven' });
  });

  test('the credential of a canary is nobody else’s, and its folder takes no secret', async () => {
    const asked = await kit.run(['true'], { holds: ['X=custody://custody/canary/value'] });
    expect(asked).toMatchObject({ code: 125, stderr: expect.stringContaining('prove their kill') });
    const put = await kit.custody(['secret', 'put', 'custody/canary', '--field', 'value=1']);
    expect(put.code).not.toBe(0);
    expect(put.stderr).toContain('custody/canary');
  });
});
