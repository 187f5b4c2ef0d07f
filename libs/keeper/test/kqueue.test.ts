// What only the keeper of macOS does, over its shim; and everything that a command can rely on, under that keeper.
import { copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { number, text } from '../src/frames.ts';
import { kqueue, underTest } from './builds.ts';
import { alive, children, FakeAgent, Keeper, nextGrant, processOf, running, until } from './fake-agent.ts';

underTest.build = kqueue;
await import('./invisible.test.ts');

const place = mkdtempSync(join(tmpdir(), 'kqueue-'));
afterAll(() => rmSync(place, { recursive: true, force: true }));

const held = (
  agent: FakeAgent,
  script: string,
  fields: readonly (readonly [string, string])[] = [],
  flags: readonly string[] = [],
) => running(kqueue, agent, script, { graceMs: 0, fields }, { flags, env: { SHIM_USER_TEMP_DIR: place } });
const revoke = (link: Awaited<ReturnType<FakeAgent['link']>>) =>
  link.send('end', [
    ['cause', 'revoked'],
    ['grace_ms', 0],
  ]);
const said = async (run: Keeper, pattern: RegExp) => Number((await run.says(pattern))[1]);

describe('whose parent is gone', () => {
  it('is of the tree while it stays in a session that was made there', async () => {
    await using agent = await FakeAgent.start();
    // The leader is seen; what it starts later, without the marker, it leaves at once to init.
    const leader = `sleep 0.2; (env -i ${place}/tool 300 & echo left=$!); exec sleep 300`;
    copyFileSync(join(kqueue.path.split(':')[0] ?? '', 'sleep'), join(place, 'tool'));
    const { run, link } = await held(agent, `setsid sh -c '${leader}' & wait`);
    await using _ = run;
    const left = await said(run, /left=([0-9]+)\n/);
    await until(() => processOf(left)?.ppid === 1, 'an orphan');
    revoke(link);
    expect(text(await link.expect('ended'), 'cause')).toBe('revoked');
    expect(alive(left)).toBe(false);
  });

  it('is found by its marker, whoever was not seen, and whatever its session', async () => {
    await using agent = await FakeAgent.start();
    const { run, link } = await held(
      agent,
      `(setsid sh -c 'echo left=$$; exec sleep 300' &); exec sleep 300`,
    );
    await using _ = run;
    const left = await said(run, /left=([0-9]+)\n/);
    await until(() => processOf(left)?.ppid === 1, 'an orphan');
    revoke(link);
    await link.expect('ended');
    expect(alive(left)).toBe(false);
  });

  it('is not ours where it only has the group of the caller', async () => {
    await using agent = await FakeAgent.start();
    // Somebody else of our session and group, started after the root, without a parent.
    const { run, link, root } = await held(agent, 'exec sleep 300');
    await using _ = run;
    const other = new Keeper('sh', ['-c', 'sleep 300 >/dev/null & echo left=$!'], {
      PATH: process.env['PATH'],
    });
    const left = await said(other, /left=([0-9]+)\n/);
    await other.exit;
    await until(() => processOf(left)?.ppid === 1, 'an orphan');
    revoke(link);
    await link.expect('ended');
    expect([alive(root.pid), alive(left)]).toEqual([false, true]);
    process.kill(left, 'SIGKILL');
  });
});

it('is not empty while an orphan of the tree lives, though no child is left', async () => {
  await using agent = await FakeAgent.start();
  const script = `(setsid sh -c 'echo left=$$; exec sleep 300' & sleep 0.2); exit 7`;
  const { run, link } = await held(agent, script, [['on_exit', 'wait']], ['--on-exit', 'wait']);
  await using _ = run;
  const left = await said(run, /left=([0-9]+)\n/);
  await until(() => children(run.pid).length === 0, 'no child is left');
  await until(() => processOf(run.pid)?.state === 'S', 'the keeper has looked who is left');
  process.kill(left, 'SIGKILL');
  const ended = await link.expect('ended');
  expect([text(ended, 'root_status'), number(ended, 'survivors')]).toEqual(['exit:7', 1]);
});

describe('what it delivers', () => {
  const encoded = (name: string, value: string) => `${name}=${Buffer.from(value).toString('base64')}`;

  it('stands in the folder of the user, for that user alone, and is gone with the tree', async () => {
    await using agent = await FakeAgent.start();
    const { run, link, request, id } = await held(
      agent,
      'cat "$KEY"; echo " $KEY"; read -r line < "$PIPE"; echo "$line"; while [ -e "$PIPE" ]; do sleep 0.01; done; cat <&$FD; echo up; sleep 300',
      [
        ['file', encoded('KEY', 'in a file')],
        ['fifo', encoded('PIPE', 'in a fifo\n')],
        ['fd', encoded('FD', 'in a descriptor\n')],
      ],
      ['--file', 'KEY=custody://a/b/c'],
    );
    await using _ = run;
    expect(text(request, 'place')).toBe(place);
    await run.says(/up\n/);
    const folder = join(place, `custody-${id}`);
    expect(run.stdout).toBe(`in a file ${folder}/KEY\nin a fifo\nin a descriptor\nup\n`);
    expect([statSync(folder).mode & 0o777, statSync(join(folder, 'KEY')).mode & 0o777]).toEqual([
      0o700, 0o600,
    ]);
    revoke(link);
    await link.expect('ended');
    expect([existsSync(folder), readdirSync(place).filter((name) => name.startsWith('custody'))]).toEqual([
      false,
      [],
    ]);
  });

  it('is nothing where a fifo would be empty: nobody could tell that it was read', async () => {
    await using agent = await FakeAgent.start();
    await using run = Keeper.run({
      keeper: kqueue.keeper,
      agent,
      command: ['echo', 'started'],
      flags: ['--fifo', 'PIPE=custody://a/b/c'],
      env: { SHIM_USER_TEMP_DIR: place },
    });
    const link = await agent.link();
    await link.expect('request');
    link.grant({ grant: nextGrant(), fields: [['fifo', 'PIPE=']] });
    expect((await run.exit).code).toBe(125);
    expect([run.stdout, readdirSync(place).filter((name) => name.startsWith('custody'))]).toEqual(['', []]);
  });
});
