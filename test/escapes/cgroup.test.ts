// Owns the proof that nothing leaves a tree which cgroup holds: every trick of fixtures/, against a real agent.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { keeperPath } from '@custody/keeper/native';
import { alive, exited, openPolicy, until } from '@custody/testkit/constellation';
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

describe('a process that somebody else starts', () => {
  test('with the environment of the run, as at(1) does, is an escape: on record, and dead after the revocation', async () => {
    const run = await on.run(['sh', '-c', 'env -0 > environment; echo ready; exec sleep 300'], {
      root: true,
    });
    const entries = fs.readFileSync(path.join(run.dir, 'environment'), 'utf8').split('\0').filter(Boolean);
    const env = Object.fromEntries(
      entries.map((entry) => [entry.slice(0, entry.indexOf('=')), entry.slice(entry.indexOf('=') + 1)]),
    );
    const spooled = spawn('sleep', ['300'], { env, stdio: 'ignore', detached: true });
    await once(spooled, 'spawn');
    const [escape] = await until(async () => {
      const found = await on.recorded(run, 'escape');
      return found.length > 0 && found;
    }, 'the escape on record');
    expect(escape).toMatchObject({
      pid: spooled.pid,
      ppid: process.pid,
      name: 'sleep',
      uid: process.getuid?.(),
    });
    expect(alive(spooled.pid ?? 0)).toBe(true);
    await on.revoke(run);
    expect(alive(spooled.pid ?? 0)).toBe(false);
    expect((await on.ended(run)).rows).toContainEqual(
      expect.objectContaining({ pid: spooled.pid, how: 'killed:9' }),
    );
    expect(await on.recorded(run, 'escape')).toHaveLength(1);
  });

  test('without it, as cron(8) and systemd-run(1) do, is not caught: nothing leads to it', async () => {
    const run = await on.run(['sh', '-c', 'echo ready; exec sleep 300']);
    const other = spawn('sleep', ['300'], { env: {}, stdio: 'ignore', detached: true });
    await once(other, 'spawn');
    await on.revoke(run);
    expect(alive(other.pid ?? 0)).toBe(true);
    other.kill('SIGKILL');
    expect(await on.recorded(run, 'escape')).toEqual([]);
  });

  test.runIf(has('tmux'))('a tmux server that the run started is of its tree, and dies with it', async () => {
    const run = await on.run(
      [
        'sh',
        '-c',
        'tmux -S ./s new-session -d "echo escapee=\\$\\$ > pid; exec sleep 300"; while ! [ -s pid ]; do sleep 0.02; done; cat pid; echo ready; exec sleep 300',
      ],
      { root: true },
    );
    expect(run.escapees().filter(alive)).toHaveLength(1);
    await on.revoke(run);
    expect(on.left(run)).toEqual([]);
  });

  test.runIf(has('tmux'))(
    'a tmux server that was there before starts what it is told, and that is not caught',
    async () => {
      const socket = path.join(on.kit.scratch, 'tmux');
      const tmux = (...args: string[]) => spawnSync('tmux', ['-S', socket, ...args], { encoding: 'utf8' });
      tmux('new-session', '-d', 'sleep 300');
      const run = await on.run(
        [
          'sh',
          '-c',
          `tmux -S ${socket} new-window -d "echo escapee=\\$\\$ > $PWD/pid; exec sleep 300"; while ! [ -s pid ]; do sleep 0.02; done; cat pid; echo ready; exec sleep 300`,
        ],
        { root: true },
      );
      await on.revoke(run);
      expect(run.escapees().filter(alive)).toHaveLength(1);
      tmux('kill-server');
    },
  );
});

function has(program: string): boolean {
  return spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
}
