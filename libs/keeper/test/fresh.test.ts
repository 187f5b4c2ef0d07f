// How a strict grant ends when its host is cut off: by the keeper alone, at the instant that no beacon has moved on.
import { describe, expect, it } from 'vitest';
import { field, number, text } from '../src/frames.ts';
import { bootTimeMs } from '../src/native.ts';
import { keepers, release, variant } from './builds.ts';
import {
  alive,
  FakeAgent,
  Keeper,
  nextGrant,
  processOf,
  running,
  started,
  until,
  type GrantToSend,
  type Link,
} from './fake-agent.ts';
import { Terminal } from './pty.ts';

/** What a loaded machine may add. */
const slackMs = 5_000;

async function freshFor(keeper: string, agent: FakeAgent, freshForMs: number, grant: GrantToSend = {}) {
  const freshUntil = Math.round(bootTimeMs() + freshForMs);
  const fields = [['fresh_until_boot_ms', freshUntil]] as const;
  return { ...(await running({ keeper }, agent, 'exec sleep 300', { ...grant, fields })), freshUntil };
}

const fresh = (link: Link, untilBootMs: number) => link.send('fresh', [['until_boot_ms', untilBootMs]]);

describe.each([...keepers, ...(variant === undefined ? [] : [variant])])(
  'a run whose host is cut off ($name)',
  ({ keeper: program }) => {
    it('ends when its freshness has passed, and says so', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root, freshUntil } = await freshFor(program, agent, 300);
      await using _ = run;
      const ended = await link.expect('ended');
      expect(alive(root.pid)).toBe(false);
      expect(text(ended, 'cause')).toBe('stale');
      expect(number(ended, 'signalled_boot_us') / 1_000).toBeGreaterThanOrEqual(freshUntil);
      expect(number(ended, 'empty_boot_us') / 1_000).toBeLessThan(freshUntil + slackMs);
      expect((await run.exit).code).toBe(122);
      expect(run.stderr).toMatch(/^custody: this host has been cut off from the control plane .*\n$/);
    });

    it('goes on as long as beacons come, and ends when they stop', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root, freshUntil } = await freshFor(program, agent, 400);
      await using _ = run;
      const last = freshUntil + 600;
      fresh(link, freshUntil + 300);
      fresh(link, last);
      // A word that was under way for long moves nothing back.
      fresh(link, freshUntil + 1);
      await until(() => bootTimeMs() > freshUntil + 400, 'the first two bounds have passed');
      expect(alive(root.pid)).toBe(true);
      const ended = await link.expect('ended');
      expect(text(ended, 'cause')).toBe('stale');
      expect(number(ended, 'signalled_boot_us') / 1_000).toBeGreaterThanOrEqual(last);
    });

    it('ends at its ceiling, however fresh', async () => {
      await using agent = await FakeAgent.start();
      const { run, link } = await freshFor(program, agent, 200, { ceilingInMs: 400 });
      await using _ = run;
      fresh(link, Math.round(bootTimeMs() + 60_000));
      expect(text(await link.expect('ended'), 'cause')).toBe('ceiling');
      expect((await run.exit).code).toBe(124);
    });

    it('that ignores TERM is killed when the grace has passed too', async () => {
      await using agent = await FakeAgent.start();
      const run = Keeper.run({
        ...{ keeper: program, agent },
        command: ['sh', '-c', `trap '' TERM; while :; do sleep 0.05; done`],
      });
      await using _ = run;
      const link = await agent.link();
      await link.expect('request');
      const freshUntil = Math.round(bootTimeMs() + 300);
      const fields = [['fresh_until_boot_ms', freshUntil] as const];
      link.grant({ grant: nextGrant(), graceMs: 300, fields });
      await started(link);
      const ended = await link.expect('ended');
      expect(text(ended, 'root_status')).toBe('signal:9');
      expect(number(ended, 'empty_boot_us') / 1_000).toBeGreaterThanOrEqual(freshUntil + 300);
      expect(number(ended, 'empty_boot_us') / 1_000).toBeLessThan(freshUntil + 300 + slackMs);
    });

    it('ends though the agent is gone', async () => {
      await using agent = await FakeAgent.start();
      const { run, root, freshUntil } = await freshFor(program, agent, 500);
      await using _ = run;
      await agent.die();
      await until(() => !alive(root.pid), 'the root is gone');
      expect(bootTimeMs()).toBeGreaterThanOrEqual(freshUntil);
      expect(bootTimeMs()).toBeLessThan(freshUntil + slackMs);
      expect((await run.exit).code).toBe(122);
    });

    it('tells the next agent until when it is fresh, and is renewed by it', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root, freshUntil } = await freshFor(program, agent, 3_000);
      await using _ = run;
      await agent.die();
      await link.closed;
      await agent.listen();
      const next = await agent.link();
      expect(number(await next.expect('resume'), 'fresh_until_boot_ms')).toBe(freshUntil);
      next.send('adopted');
      fresh(next, freshUntil + 300);
      await until(() => bootTimeMs() > freshUntil + 150, 'the old bound has passed');
      expect(alive(root.pid)).toBe(true);
      expect(text(await next.expect('ended'), 'cause')).toBe('stale');
    });

    it('is renewed by what the agent wrote in time, though the keeper was stopped meanwhile', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root, freshUntil } = await freshFor(program, agent, 400);
      await using _ = run;
      const stopping = setInterval(() => process.kill(run.pid, 'SIGSTOP'), 1);
      await until(() => processOf(run.pid)?.state === 'T', 'the keeper is stopped');
      fresh(link, freshUntil + 60_000);
      await until(() => bootTimeMs() > freshUntil + 50, 'the bound has passed');
      clearInterval(stopping);
      process.kill(run.pid, 'SIGCONT');
      await until(() => processOf(run.pid)?.state === 'S', 'the keeper sleeps again');
      expect(alive(root.pid)).toBe(true);
      link.send('end', [
        ['cause', 'revoked'],
        ['grace_ms', 0],
      ]);
      expect(text(await link.expect('ended'), 'cause')).toBe('revoked');
    });

    it('of best effort has no such bound, and none is given to it later', async () => {
      await using agent = await FakeAgent.start();
      const run = Keeper.run({ keeper: program, agent, command: ['sleep', '300'] });
      await using _ = run;
      const link = await agent.link();
      await link.expect('request');
      link.grant({ grant: nextGrant() });
      const root = await started(link);
      fresh(link, 1);
      await agent.die();
      await link.closed;
      await agent.listen();
      const next = await agent.link();
      expect(field(await next.expect('resume'), 'fresh_until_boot_ms')).toBeUndefined();
      expect(alive(root.pid)).toBe(true);
    });

    it('whose grant has a freshness that is no number never starts', async () => {
      await using agent = await FakeAgent.start();
      const run = Keeper.run({ keeper: program, agent, command: ['sleep', '300'] });
      await using _ = run;
      const link = await agent.link();
      await link.expect('request');
      link.grant({ fields: [['fresh_until_boot_ms', '-1']] });
      expect((await run.exit).code).toBe(125);
    });
  },
);

it('a job that is stopped hears of its freshness, stays stopped, and goes on where it was', async () => {
  await using agent = await FakeAgent.start();
  await using terminal = new Terminal(['bash', '--norc', '--noprofile', '-i'], {
    ...{
      PATH: process.env['PATH'],
      CUSTODY_SOCKET: agent.path,
      TERM: 'xterm',
      PS1: 'ready> ',
      HOME: '/nonexistent',
    },
  });
  const job = `bash -c 'trap "echo continued" CONT; echo up; read -r line; echo "got $line"'`;
  terminal.type(`${release.keeper} run -- ${job}\r`);
  const link = await agent.link();
  await link.expect('request');
  const freshUntil = Math.round(bootTimeMs() + 8_000);
  link.grant({ grant: nextGrant(), fields: [['fresh_until_boot_ms', freshUntil]] });
  const root = await started(link);
  const keeper = processOf(root.pid)?.ppid ?? 0;
  await terminal.shows(/[\r\n]up\r/);
  terminal.type('\x1a');
  await terminal.shows(/Stopped/);
  await until(() => processOf(keeper)?.state === 'T', 'the keeper is stopped');
  fresh(link, freshUntil + 60_000);
  await until(() => bootTimeMs() > freshUntil + 100, 'the first bound has passed', 10_000);
  expect([processOf(root.pid)?.state, processOf(keeper)?.state]).toEqual(['T', 'T']);
  // The shell has its terminal all the while, and the job is continued once: by the shell.
  terminal.type('echo still here; fg\r');
  await terminal.shows(/[\r\n]still here[^]*[\r\n]continued\r/);
  terminal.type('word\r');
  await terminal.shows(/[\r\n]got word/);
  expect(text(await link.expect('ended'), 'cause')).toBe('exit');
  expect(terminal.shown.match(/[\r\n]continued\r/g)).toHaveLength(1);
});
