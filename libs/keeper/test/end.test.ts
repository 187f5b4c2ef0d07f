// How a tree ends: by itself, at its ceiling, by the agent's word, and when the keeper or the agent dies.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { constants } from 'node:os';
import { afterEach, describe, expect, it } from 'vitest';
import { fieldAll, number, parseProcRow, text, type Frame } from '../src/frames.ts';
import { bootTimeMs } from '../src/native.ts';
import { sweep } from '../src/sweep.ts';
import { flood, keepers, kqueue, release, variant, type Build } from './builds.ts';
import {
  alive,
  children,
  FakeAgent,
  Keeper,
  nextGrant,
  processOf,
  running,
  sleeps,
  started,
  until,
  type GrantToSend,
  type Link,
} from './fake-agent.ts';

/** Every process that holds the marker of a grant, by the kernel's own account. */
function holders(grant: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const held = readFileSync(`/proc/${pid}/environ`, 'latin1')
          .split('\0')
          .includes(`CUSTODY_GRANT=${grant}`);
        return held && alive(pid);
      } catch {
        return false;
      }
    });
}

const bootMs = (ended: Frame, key: string) => number(ended, key) / 1_000;
const rows = (ended: Frame) => fieldAll(ended, 'proc').map(parseProcRow);
const end = (link: Link, cause: string, graceMs: number) =>
  link.send('end', [
    ['cause', cause],
    ['grace_ms', graceMs],
  ]);

// A double fork, out of the session, with a name and an environment of its own: only ancestry leads to it. Without a
// subreaper the fork between must be seen while it lives.
const daemon = (after: string, { containment, path }: Build) =>
  `(setsid env -i PATH='${path}' sh -c 'echo daemon=$$; exec sleep 300' &${containment === 'kqueue' ? ' sleep 0.2' : ''}) ; ${after}`;

describe.each([...keepers, ...(variant === undefined ? [] : [variant])])(
  'the end of a tree ($name)',
  (build) => {
    const { keeper: program, containment } = build;
    it('a daemon that double-forked, left its session and dropped the marker dies with its root, and is accounted for', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root } = await running(build, agent, daemon('exec sleep 300', build), {
        graceMs: 5000,
      });
      await using _ = run;
      const left = Number((await run.says(/daemon=([0-9]+)\n/))[1]);
      // The root too: a fork between that it has not collected would go on record.
      await until(() => sleeps(left) && sleeps(root.pid), 'daemon and root run');
      const ticks = processOf(left)?.startTicks;
      const init = processOf(left)?.ppid;
      process.kill(root.pid, 'SIGUSR1');
      const ended = await link.expect('ended');
      expect(alive(left)).toBe(false);
      expect(text(ended, 'cause')).toBe('exit');
      expect(text(ended, 'root_status')).toBe(`signal:${constants.signals.SIGUSR1}`);
      expect(number(ended, 'survivors')).toBe(1);
      expect(rows(ended).find(({ pid }) => pid === left)).toMatchObject({
        ...{
          ppid: containment === 'kqueue' ? init : run.pid,
          startTicks: ticks,
          how: { kind: 'killed', number: 15 },
          name: 'sleep',
        },
        survivor: true,
      });
      expect(rows(ended)).toHaveLength(2);
      expect(bootMs(ended, 'signalled_boot_us')).toBeLessThanOrEqual(bootMs(ended, 'empty_boot_us'));
      expect((await run.exit).signal).toBe('SIGUSR1');
    });

    it('a canary is a root and a daemon that only KILL ends, both accounted for', async () => {
      await using agent = await FakeAgent.start();
      await using run = Keeper.run({ keeper: program, agent, command: [program, 'canary', '60'] });
      const link = await agent.link();
      await link.expect('request');
      const grant = nextGrant();
      link.grant({ grant });
      const root = await started(link);
      await until(
        () => holders(grant).length === 2 && children(root.pid).length === 0,
        'its daemon stands, and who forked it has gone',
      );
      const left = holders(grant);
      for (const pid of left) process.kill(pid, 'SIGTERM');
      expect(left.filter(alive)).toHaveLength(2);
      end(link, 'revoked', 0);
      const ended = await link.expect('ended');
      expect(left.filter(alive)).toEqual([]);
      expect(new Set(rows(ended).map(({ pid }) => pid))).toEqual(new Set(left));
      expect((await run.exit).code).toBe(123);
    });

    it('what ignores TERM is dead when ceiling and grace have passed, and not before the ceiling', async () => {
      await using agent = await FakeAgent.start();
      const from = bootTimeMs();
      const { run, link, root } = await running(build, agent, `trap '' TERM; sleep 300 & wait; sleep 300`, {
        ceilingInMs: 300,
        graceMs: 200,
      });
      await using _ = run;
      const ended = await link.expect('ended');
      const now = bootTimeMs();
      expect(alive(root.pid)).toBe(false);
      expect(text(ended, 'cause')).toBe('ceiling');
      expect(bootMs(ended, 'signalled_boot_us')).toBeGreaterThanOrEqual(from + 298);
      expect(bootMs(ended, 'empty_boot_us')).toBeGreaterThanOrEqual(from + 498);
      expect(now).toBeLessThan(from + 10_000);
      expect(rows(ended).find((row) => row.pid === root.pid)?.how).toEqual({ kind: 'killed', number: 9 });
      expect((await run.exit).code).toBe(124);
    });

    it('a revocation without grace kills at once, whatever the tree does', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root, id } = await running(
        build,
        agent,
        `trap '' TERM INT HUP; ${daemon(`(trap '' TERM; while :; do sleep 300; done) & echo up; while :; do sleep 300; done`, build)}`,
        { graceMs: 60_000 },
      );
      await using _ = run;
      await run.says(/up\n/);
      const left = Number((await run.says(/daemon=([0-9]+)\n/))[1]);
      const from = bootTimeMs();
      end(link, 'revoked', 0);
      const ended = await link.expect('ended');
      expect(text(ended, 'cause')).toBe('revoked');
      expect(bootMs(ended, 'empty_boot_us') - from).toBeLessThan(10_000);
      expect([alive(root.pid), alive(left), holders(id)]).toEqual([false, false, []]);
      expect(rows(ended).every((row) => row.how.kind === 'killed' && row.how.number === 9)).toBe(true);
      expect((await run.exit).code).toBe(123);
    });

    it('a parent that is killed with its child sees nothing of it', async () => {
      await using agent = await FakeAgent.start();
      const script = 'echo up; while :; do sleep 300; echo again; done';
      const { run, link, root } = await running(build, agent, script);
      await using _ = run;
      await run.says(/up\n/);
      await until(() => children(root.pid).length === 1, 'it waits for its child');
      end(link, 'revoked', 0);
      await link.expect('ended');
      expect((await run.exit).code).toBe(123);
      expect(await run.output()).toBe('up\n');
    });

    it('a later end only shortens the grace, and the first cause stays', async () => {
      await using agent = await FakeAgent.start();
      const { run, link } = await running(
        build,
        agent,
        `trap 'echo term' TERM; echo up; while :; do sleep 0.05; done`,
      );
      await using _ = run;
      await run.says(/up\n/);
      const from = bootTimeMs();
      end(link, 'agent', 60_000);
      await run.says(/term\n/);
      end(link, 'revoked', 300);
      end(link, 'revoked', 60_000);
      const ended = await link.expect('ended');
      expect(text(ended, 'cause')).toBe('agent');
      expect(bootMs(ended, 'empty_boot_us') - from).toBeGreaterThanOrEqual(298);
      expect(bootMs(ended, 'empty_boot_us') - from).toBeLessThan(5000);
      expect((await run.exit).signal).toBe('SIGKILL');
    });

    it('a stopped tree still acts on TERM at the ceiling', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root } = await running(
        build,
        agent,
        `trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done`,
        {
          ceilingInMs: 1_500,
          graceMs: 20_000,
        },
      );
      await using _ = run;
      await run.says(/up\n/);
      process.kill(root.pid, 'SIGSTOP');
      const ended = await link.expect('ended');
      expect(text(ended, 'cause')).toBe('ceiling');
      expect(text(ended, 'root_status')).toBe('exit:9');
      expect((await run.exit).code).toBe(124);
    });

    it('forks faster than a walk do not escape', async () => {
      await using agent = await FakeAgent.start();
      // It ends by itself, for the sake of the machine: nothing else bounds a storm of root's.
      const round = '(sleep 300 & sleep 300 &); i=$((i+1))';
      const storm = `echo up; f() { i=0; while [ $i -lt 700 ]; do ${round}; done; }; f & f & f; sleep 300`;
      const { run, link, id } = await running(build, agent, storm);
      await using _ = run;
      await run.says(/up\n/);
      await until(() => holders(id).length > 60, 'the storm has begun', 15_000);
      end(link, 'revoked', 0);
      const ended = await link.expect('ended');
      expect(holders(id)).toEqual([]);
      expect(number(ended, 'processes')).toBeGreaterThan(containment === 'kqueue' ? 0 : 30); // reaped by us
      expect((await run.exit).code).toBe(123);
    });

    it('a keeper that is killed takes its root along, and a sweep finds the rest', async () => {
      await using agent = await FakeAgent.start();
      const script = `(setsid sh -c 'echo daemon=$$; env -i sleep 300 & wait' &) ; exec sleep 300`;
      const { run, link, root, id } = await running(build, agent, script);
      await using _ = run;
      const left = Number((await run.says(/daemon=([0-9]+)\n/))[1]);
      await until(() => children(left).length === 1, 'the daemon has its child');
      const [hidden = 0] = children(left);
      process.kill(run.pid, 'SIGKILL');
      await link.closed;
      if (containment === 'subreaper') await until(() => !alive(root.pid), 'the root dies with its keeper');
      expect([alive(left), alive(hidden), alive(root.pid)]).toEqual([true, true, containment === 'kqueue']);
      const from = bootTimeMs();
      const swept = await sweep(id, { root, program });
      expect([alive(left), alive(hidden), alive(root.pid)]).toEqual([false, false, false]);
      expect(swept.complaints).toEqual([]);
      expect(swept.emptyBootMs).toBeGreaterThanOrEqual(Math.floor(from));
      expect(new Set(swept.processes.map(({ pid, how }) => `${pid} ${how.kind}:${how.number}`))).toEqual(
        new Set(
          [left, hidden, ...(containment === 'kqueue' ? [root.pid] : [])].map((pid) => `${pid} killed:9`),
        ),
      );
      expect((await sweep(id, { program })).processes).toEqual([]);
    });

    it('a run outlives its agent, tells the next one who it is, and obeys it', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root, id } = await running(build, agent, 'exec sleep 300', {
        ceilingInMs: 60_000,
      });
      await using _ = run;
      await agent.die();
      await link.closed;
      await agent.listen();
      const next = await agent.link();
      const resume = await next.expect('resume');
      expect(text(resume, 'version')).toBe('1');
      expect(text(resume, 'grant')).toBe(id);
      expect(number(resume, 'pid')).toBe(root.pid);
      expect(text(resume, 'start_ticks')).toBe(root.startTicks);
      expect(number(resume, 'ceiling_boot_ms')).toBeGreaterThan(bootTimeMs());
      expect(text(resume, 'containment')).toBe(containment);
      next.send('adopted');
      expect(alive(root.pid)).toBe(true);
      end(next, 'revoked', 0);
      expect(text(await next.expect('ended'), 'cause')).toBe('revoked');
      expect((await run.exit).code).toBe(123);
    });

    it.each([
      { told: 'end', cause: 'revoked', code: 123 },
      { told: 'adopted', cause: 'exit', code: 137 },
    ])('a KILL while no agent is on the link is explained by the one that comes: $told', async (answer) => {
      await using agent = await FakeAgent.start();
      const { run, root } = await running(build, agent, 'exec sleep 300', { ceilingInMs: 60_000 });
      await using _ = run;
      await agent.die();
      await agent.listen();
      process.kill(root.pid, 'SIGKILL');
      const next = await agent.link();
      await next.expect('resume');
      if (answer.told === 'end') end(next, 'revoked', 0);
      else next.send('adopted');
      const ended = await next.expect('ended');
      expect([text(ended, 'cause'), number(ended, 'survivors')]).toEqual([answer.cause, 0]);
      expect(await run.exit).toMatchObject(
        answer.code === 137 ? { signal: 'SIGKILL' } : { code: answer.code },
      );
    });

    it.each([
      { tree: 'an empty tree', script: 'echo ready; exec sleep 300', rest: [] },
      {
        tree: 'a tree that goes on',
        script: `(trap "" TERM; echo ready; while :; do sleep 300; done) & wait`,
        rest: ['killed:9'],
      },
    ])(
      'a KILL by an agent that cannot be asked yet is explained by its first word: $tree',
      async ({ script, rest }) => {
        await using agent = await FakeAgent.start();
        const { run, root } = await running(build, agent, script, { ceilingInMs: 60_000, graceMs: 5_000 });
        await using _ = run;
        await run.says(/ready\n/);
        await agent.die();
        process.kill(root.pid, 'SIGKILL');
        await until(() => !alive(root.pid), 'the root dead');
        await agent.listen();
        const next = await agent.link();
        await next.expect('resume');
        end(next, 'revoked', 0);
        const ended = await next.expect('ended');
        expect([text(ended, 'cause'), number(ended, 'survivors')]).toEqual(['revoked', 0]);
        const found = rows(ended).filter(({ name }) => name !== 'sleep' || rest.length === 0);
        expect(found.map(({ how, survivor }) => `${how.kind}:${how.number} ${survivor}`)).toEqual(
          ['killed:9', ...rest].map((how) => `${how} false`),
        );
        expect((await run.exit).code).toBe(123);
      },
    );

    it('an end that arrives with the grant is heard', async () => {
      await using agent = await FakeAgent.start();
      const run = Keeper.run({ keeper: program, agent, command: ['sleep', '300'] });
      await using _ = run;
      const link = await agent.link();
      await link.expect('request');
      link.grant({ grant: nextGrant() });
      end(link, 'revoked', 0);
      await started(link);
      expect(text(await link.expect('ended'), 'cause')).toBe('revoked');
      expect((await run.exit).code).toBe(123);
    });
  },
);

it('without an agent the ceiling holds, and the account is offered for two seconds at most', async () => {
  await using agent = await FakeAgent.start();
  const { run, root } = await running(release, agent, 'exec sleep 300', { ceilingInMs: 500 });
  await using _ = run;
  const from = performance.now();
  await agent.die();
  await until(() => !alive(root.pid), 'the ceiling ends the root');
  expect((await run.exit).code).toBe(124);
  expect(performance.now() - from).toBeLessThan(4000);
});

it.each([release, kqueue])('a flood of signals does not keep the ceiling off ($name)', async (build) => {
  await using agent = await FakeAgent.start();
  const { run, root } = await running(build, agent, `exec ${flood}`, {
    ceilingInMs: 3_000,
    graceMs: 200,
  });
  await using _ = run;
  await run.says(/up\n/);
  await agent.die();
  await until(() => !alive(root.pid), 'the ceiling ends the root', 10_000);
  expect((await run.exit).code).toBe(124);
});

it('an agent that comes back in time still gets the account', async () => {
  await using agent = await FakeAgent.start();
  const { run, root } = await running(release, agent, 'exec sleep 300', { ceilingInMs: 400 });
  await using _ = run;
  await agent.die();
  await until(() => !alive(root.pid), 'the ceiling ends the root');
  await agent.listen();
  const link = await agent.link();
  await link.expect('resume');
  expect(text(await link.expect('ended'), 'cause')).toBe('ceiling');
});

it('a run inside a run says whose it is, and ends with it', async () => {
  await using agent = await FakeAgent.start();
  const inner = `exec ${release.keeper} run -- sh -c 'echo inner; exec sleep 300'`;
  const outer = await running(release, agent, inner, { graceMs: 3000 });
  await using _ = outer.run;
  const link = await agent.link();
  expect(text(await link.expect('request'), 'parent')).toBe(outer.id);
  link.grant({ grant: nextGrant() });
  const root = await started(link);
  await outer.run.says(/inner\n/);
  end(outer.link, 'revoked', 0);
  await outer.link.expect('ended');
  await link.closed;
  expect(alive(root.pid)).toBe(false);
});

describe.each([release, kqueue])('signals ($name)', (build) => {
  const numbers = Array.from({ length: 31 }, (_, index) => index + 1);
  const { SIGKILL, SIGSTOP, SIGCHLD, SIGPIPE, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS } =
    constants.signals;
  const not = new Set<number>([
    SIGKILL,
    SIGSTOP,
    SIGCHLD,
    SIGPIPE,
    SIGSEGV,
    SIGBUS,
    SIGFPE,
    SIGILL,
    SIGTRAP,
    SIGSYS,
  ]);
  it.each(numbers.filter((signal) => !not.has(signal)))('signal %i reaches the root', async (signal) => {
    await using agent = await FakeAgent.start();
    const { run } = await running(
      build,
      agent,
      `trap 'exit 42' ${signal}; echo up; while :; do sleep 0.02; done`,
    );
    await using _ = run;
    await run.says(/up\n/);
    process.kill(run.pid, signal);
    expect((await run.exit).code).toBe(42);
  });

  it('whoever asks again while survivors have their grace does not wait for it', async () => {
    await using agent = await FakeAgent.start();
    const script = `(setsid sh -c 'trap "echo asked" TERM; echo left; while :; do sleep 0.05; done' &) ; exec sleep 300`;
    const { run, root, link } = await running(build, agent, script, { graceMs: 60_000 });
    await using _ = run;
    await run.says(/left\n/);
    process.kill(root.pid, 'SIGKILL');
    await run.says(/asked\n/);
    process.kill(run.pid, 'SIGTERM');
    expect(text(await link.expect('ended'), 'cause')).toBe('exit');
    expect((await run.exit).signal).toBe('SIGKILL');
  });
});

describe.runIf(existsSync('/bin/bash')).each([release, kqueue])(
  'a run that job control has stopped ($name)',
  ({ keeper: program }) => {
    let shell: ReturnType<typeof spawn> | undefined;
    let told = ''; // on its standard error
    afterEach(async () => {
      if (shell === undefined || shell.exitCode !== null || shell.signalCode !== null) return;
      shell.kill('SIGKILL');
      await once(shell, 'exit');
    });

    /** A run as a job of a shell of its own session, its root stopped and the keeper stopped with it. */
    async function stopped(agent: FakeAgent, grant: GrantToSend) {
      // The stop of a job needs a parent in another process group of the same session, and so `set -m`.
      const line = `set -m; ${program} run --socket ${agent.path} -- sleep 300 & echo keeper=$!; read _`;
      shell = spawn('bash', ['-c', line], { detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
      let said = '';
      told = '';
      shell.stdout?.on('data', (chunk: Buffer) => (said += chunk.toString('latin1')));
      shell.stderr?.on('data', (chunk: Buffer) => (told += chunk.toString('latin1')));
      const link = await agent.link();
      await link.expect('request');
      link.grant({ grant: nextGrant(), ...grant });
      const root = await started(link);
      const keeper = Number(/keeper=([0-9]+)/.exec(said)?.[1]);
      process.kill(root.pid, 'SIGSTOP');
      await until(() => processOf(keeper)?.state === 'T', 'the keeper stops with its root');
      return { link, root, keeper };
    }

    it('ends at its ceiling all the same', async () => {
      await using agent = await FakeAgent.start();
      const { link, root } = await stopped(agent, { ceilingInMs: 600 });
      expect(text(await link.expect('ended'), 'cause')).toBe('ceiling');
      expect(alive(root.pid)).toBe(false);
    });

    it('hears a revocation all the same', async () => {
      await using agent = await FakeAgent.start();
      const { link, root } = await stopped(agent, {});
      end(link, 'revoked', 0);
      expect(text(await link.expect('ended'), 'cause')).toBe('revoked');
      expect(alive(root.pid)).toBe(false);
    });

    it('goes on when the shell continues it, and stays stopped for a word that does not end it', async () => {
      await using agent = await FakeAgent.start();
      const { link, root, keeper } = await stopped(agent, {});
      link.send('note', [['line', 'heard']]);
      await until(() => told.includes('custody: heard\n'), 'it is awake');
      await until(() => processOf(keeper)?.state === 'T', 'stopped again');
      expect(processOf(root.pid)?.state).toBe('T');
      process.kill(keeper, 'SIGCONT');
      await until(() => processOf(root.pid)?.state === 'S', 'the root goes on');
      await until(() => processOf(keeper)?.state === 'S', 'the keeper goes on');
      end(link, 'revoked', 0);
      await link.expect('ended');
    });
  },
);

describe('sweep', () => {
  it('gives a grace, and KILL to what ignores it', async () => {
    const id = nextGrant();
    const script = `sh -c 'trap "" TERM; echo up; while :; do sleep 0.02; done' & sleep 300 & wait`;
    const root = spawn('sh', ['-c', script], {
      env: { PATH: process.env['PATH'], CUSTODY_GRANT: id },
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    await once(root.stdout, 'data');
    await until(() => children(root.pid ?? 0).length === 2, 'it has started both');
    const swept = await sweep(id, { graceMs: 200, program: release.keeper });
    expect(holders(id)).toEqual([]);
    expect(swept.emptyBootMs).toBeDefined();
    const how = (pid: number | undefined) => swept.processes.find((row) => row.pid === pid)?.how;
    expect(how(root.pid)).toEqual({ kind: 'killed', number: 15 });
    expect(swept.processes.some((row) => row.how.number === 9)).toBe(true);
  });

  it('touches no process of a grant whose id only begins the same', async () => {
    const id = nextGrant();
    const other = spawn('sleep', ['300'], {
      env: { PATH: process.env['PATH'], CUSTODY_GRANT: `${id}0`, X: `CUSTODY_GRANT=${id}` },
    });
    await once(other, 'spawn');
    const swept = await sweep(id, { program: release.keeper });
    expect(swept.processes).toEqual([]);
    expect(alive(other.pid ?? 0)).toBe(true);
    other.kill('SIGKILL');
    await once(other, 'exit');
  });

  it('throws what a sweep that could not run says', async () => {
    await expect(sweep('x'.repeat(65))).rejects.toMatchObject({ code: 'sweep_failed' });
    await expect(sweep('g', { program: '/no/such/keeper' })).rejects.toMatchObject({ code: 'sweep_failed' });
  });
});
