// Owns the proof that agent and keeper stand in for each other: whichever dies first, nothing lives past its bound.
import { alive, until } from '@custody/testkit/constellation';
import { describe, expect, test } from 'vitest';
import { stage, type Case } from './story.ts';

const on = stage('cgroup');

/** Out of its session, deaf, without the marker, and its parent is gone: only the group leads to it. */
const unmarked = `(setsid env -i sh -c 'trap "" TERM HUP; echo escapee=$$; while :; do sleep 1; done' &)`;
const script = `${unmarked}; sleep 0.1; echo ready; exec sleep 300`;

async function gone(run: Case): Promise<void> {
  await until(() => on.left(run).length === 0, 'nothing left');
}

describe('a tree in a group', () => {
  test('whose keeper and agent are killed is emptied by the next agent, and closed with who was in it', async () => {
    const run = await on.run(['sh', '-c', script], { keeperDies: true });
    const part = on.kit.constellation.part('host-a');
    await part.down('SIGKILL');
    process.kill(run.pid, 'SIGKILL');
    await run.exit;
    expect(on.left(run)).toEqual(expect.arrayContaining(run.escapees()));
    await part.up();
    await gone(run);
    const ended = await on.ended(run);
    expect(ended).toMatchObject({ cause: 'lost', proof: 'sweep' });
    expect(ended.rows.map(({ pid }) => pid)).toEqual(expect.arrayContaining(run.escapees()));
  });

  test('whose keeper is killed is emptied at once', async () => {
    const run = await on.run(['sh', '-c', script], { keeperDies: true });
    const from = performance.now();
    process.kill(run.pid, 'SIGKILL');
    await gone(run);
    expect(performance.now() - from).toBeLessThan(10_000);
    expect(await on.ended(run)).toMatchObject({ cause: 'lost', proof: 'sweep' });
  });

  test('whose keeper is stopped, and stopped again, is dead at ceiling and grace, and so is the keeper', async () => {
    const run = await on.run(['sh', '-c', script], { flags: ['--ttl', '2s'], keeperDies: true });
    // Its own alarm continues it at the ceiling: once is not enough.
    const stopping = setInterval(() => alive(run.pid) && process.kill(run.pid, 'SIGSTOP'), 1);
    const from = performance.now();
    await gone(run).finally(() => clearInterval(stopping));
    expect(performance.now() - from).toBeLessThan(2_000 + 2_000 + 10_000);
    expect(await on.ended(run)).toMatchObject({ cause: 'ceiling' });
    await until(() => !alive(run.pid), 'the keeper is gone');
  });

  test('is adopted by the next agent with its group, and killed through it', async () => {
    const run = await on.run(['sh', '-c', script]);
    const { restarted } = await on.kit.constellation.part('host-a').kill('SIGKILL');
    await restarted;
    expect(await on.revoke(run)).toMatchObject({ containment: 'cgroup' });
    expect(on.left(run)).toEqual([]);
  });

  test('goes on to its ceiling under its keeper while the agent is stopped', async () => {
    const run = await on.run(['sh', '-c', script], { flags: ['--ttl', '3s'] });
    const part = on.kit.constellation.part('host-a');
    process.kill(part.pid, 'SIGSTOP');
    try {
      await gone(run);
    } finally {
      process.kill(part.pid, 'SIGCONT');
    }
    expect(await run.exit).toBe(124);
    expect(await on.ended(run)).toMatchObject({ cause: 'ceiling', proof: 'keeper' });
  });
});
