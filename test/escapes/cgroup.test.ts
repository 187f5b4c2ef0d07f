// Owns the proof that nothing leaves a tree which cgroup holds: every trick of fixtures/, against a real agent.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { keeperPath } from '@custody/keeper/native';
import { exited, openPolicy } from '@custody/testkit/constellation';
import { call } from '@custody/wire/client';
import { describe, expect, test } from 'vitest';
import { outlastsNoCeiling, revokesEveryTrick, stage } from './story.ts';

const on = stage('cgroup');
revokesEveryTrick('cgroup', on);
outlastsNoCeiling('cgroup', on, [
  'double-fork.c',
  'ignores-everything.c',
  'stopped.c',
  'handler-respawns.c',
  'floods-the-keeper.c',
  'blinds-the-keeper.c',
  'clears-environment.c',
  'subreaper-stays.c',
  'stops-the-keeper.c',
  'kills-the-keeper.c',
  'kills-the-keeper-unmarked.c',
]);

describe('runs in runs', () => {
  test('three levels end with the outermost, and every one of them is closed on record', async () => {
    const keeper = keeperPath();
    const level = (inner: string): string =>
      `${keeper} run --env KEY=custody://prod/stripe/api_key -- sh -c '${inner}'`;
    const quoted = (inner: string): string => inner.replaceAll("'", String.raw`'\''`);
    const last =
      'trap "" TERM; (setsid env -i sleep 300 &); echo escapee=$$; echo ready; while :; do sleep 1; done';
    const run = await on.run(['sh', '-c', level(quoted(level(last)))]);
    const { grants } = await call(on.client(), 'grant.list', {});
    const chain = [run.grantId];
    for (const each of chain)
      chain.push(...grants.filter(({ parent }) => parent === each).map(({ grantId }) => grantId));
    expect(chain).toHaveLength(3);
    expect(
      grants.filter(({ grantId }) => chain.includes(grantId)).map(({ containment }) => containment),
    ).toEqual(['cgroup', 'cgroup', 'cgroup']);
    await on.revoke(run);
    expect(on.left(run)).toEqual([]);
    for (const grantId of chain) expect(await on.ended({ ...run, grantId })).toBeDefined();
  });
});

describe('policy', () => {
  test('that requires a mechanism which this host does not offer is refused, and says what there is', async () => {
    const policy = path.join(on.kit.scratch, 'strict.cedar');
    fs.writeFileSync(policy, openPolicy.replace('@ceiling', '@containment("kqueue")\n@ceiling'));
    exited(0, await on.kit.custody(['policy', 'apply', policy]));
    const { stderr } = exited(
      125,
      await on.kit.run(['true'], { holds: ['KEY=custody://prod/stripe/api_key'] }),
    );
    expect(stderr).toContain('requires containment kqueue; this host offers cgroup');
    fs.writeFileSync(policy, openPolicy.replace('@ceiling', '@containment("cgroup")\n@ceiling'));
    exited(0, await on.kit.custody(['policy', 'apply', policy]));
    exited(0, await on.kit.run(['true'], { holds: ['KEY=custody://prod/stripe/api_key'] }));
  });
});
