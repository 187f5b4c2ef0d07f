// The clocks of a keeper: whatever it does in a run, no question of it goes to the clock that people can set.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { text as textOf } from 'node:stream/consumers';
import { expect, it } from 'vitest';
import { text } from '../src/frames.ts';
import { clockCalls, release } from './builds.ts';
import { FakeAgent, started } from './fake-agent.ts';

/** In a container that forbids ptrace(2). */
const refused = 77;
const wallClock = 0;
const bootClock = 7;

it('asks the boot-time clock alone, from the start to ceiling, grace and the last report', async ({
  skip,
}) => {
  const control = spawnSync(clockCalls, ['date'], { stdio: ['ignore', 'ignore', 'inherit', 'pipe'] });
  if (control.status === refused) skip('ptrace is refused here');
  expect(String(control.output[3])).toContain(`clock_gettime ${wallClock}\n`);

  await using agent = await FakeAgent.start();
  const deaf = `(setsid sh -c 'trap "" TERM; sleep 300; sleep 300' &); trap '' TERM; sleep 300; sleep 300`;
  const run = spawn(clockCalls, [release.keeper, 'run', '--', 'sh', '-c', deaf], {
    env: { PATH: process.env['PATH'], CUSTODY_SOCKET: agent.path },
    stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
  });
  const exit = once(run, 'exit');
  const calls = textOf(run.stdio[3] as NodeJS.ReadableStream);
  const link = await agent.link();
  await link.expect('request');
  link.grant({ ceilingInMs: 300, graceMs: 200 });
  await started(link);
  // Away from its agent for a while: it times its attempts to come back, too.
  await agent.die();
  await agent.listen();
  const back = await agent.link();
  await back.expect('resume');
  back.send('adopted');
  expect(text(await back.expect('ended'), 'cause')).toBe('ceiling');
  expect(await exit).toEqual([124, null]);
  expect((await calls).trim().split('\n').toSorted()).toEqual([
    `clock_gettime ${bootClock}`,
    `timer_create ${bootClock}`,
  ]);
});
