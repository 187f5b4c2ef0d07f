// What reaches the child otherwise than in its environment, what does not reach it, and that nothing of it stays.
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { number, text, textMaybe } from '../src/frames.ts';
import { sweep } from '../src/sweep.ts';
import { builds, release } from './builds.ts';
import { alive, FakeAgent, Keeper, processOf, started, until, type GrantToSend } from './fake-agent.ts';

let grants = 0;
const nextGrant = () => `deliver-${process.pid}-${++grants}`;
const encoded = (name: string, value: string | Buffer) => `${name}=${Buffer.from(value).toString('base64')}`;
const place = '/dev/shm';
const nul = Buffer.from([0, 1, 2, 0xff, 0x3d, 0x0a, 0]);

async function granted(
  keeper: string,
  agent: FakeAgent,
  command: readonly string[],
  grant: GrantToSend,
  flags: readonly string[] = [],
  env: Record<string, string> = {},
) {
  const id = nextGrant();
  const run = Keeper.run({ keeper, agent, command, flags, env });
  const link = await agent.link();
  const request = await link.expect('request');
  link.grant({ grant: id, ...grant });
  return { run, link, request, id, folder: `${place}/custody-${id}` };
}

const file = ['--file', 'KEY=custody://a/b/c'];

describe.each(builds)('delivery ($name)', ({ keeper }) => {
  it('a file stands in a folder of its own in memory, for its user alone, and is gone with the tree', async () => {
    await using agent = await FakeAgent.start();
    const script =
      'stat -c "%a %n" "$KEY" "${KEY%/*}"; od -An -tx1 "$KEY"; mkdir "${KEY%/*}/more"; exec sleep 300';
    const { run, link, request, folder } = await granted(
      keeper,
      agent,
      ['sh', '-c', `umask; ${script}`],
      { fields: [['file', encoded('KEY', nul)]] },
      file,
    );
    await using _ = run;
    expect(text(request, 'place')).toBe(place);
    const root = await started(link);
    await run.says(/3d 0a 00\n/);
    const umask = spawnSync('sh', ['-c', 'umask'], { encoding: 'utf8' }).stdout;
    expect(run.stdout).toBe(`${umask}600 ${folder}/KEY\n700 ${folder}\n 00 01 02 ff 3d 0a 00\n`);
    await until(() => existsSync(`${folder}/more`), 'the child puts a folder there');
    process.kill(root.pid, 'SIGKILL');
    await link.expect('ended');
    expect(existsSync(folder)).toBe(false);
  });

  it('a file of 64 KiB and an empty one arrive whole', async () => {
    await using agent = await FakeAgent.start();
    const large = Buffer.alloc(65_536, 'x');
    const { run } = await granted(
      keeper,
      agent,
      ['sh', '-c', 'cat "$A" "$B"'],
      {
        fields: [
          ['file', encoded('A', '')],
          ['file', encoded('B', large)],
        ],
      },
      file,
    );
    expect(await run.output()).toBe(large.toString());
  });

  it('a fifo is read once, to its end, and nobody finds it again', async () => {
    await using agent = await FakeAgent.start();
    const script =
      'cat "$KEY" | od -An -tx1; while [ -e "$KEY" ]; do sleep 0.01; done; cat "$KEY" 2>/dev/null; echo "$?"; ls "${KEY%/*}"';
    const { run, folder } = await granted(
      keeper,
      agent,
      ['sh', '-c', script],
      {
        fields: [
          ['fifo', encoded('KEY', nul)],
          ['fifo', encoded('OTHER', 'x'.repeat(65_536))],
        ],
      },
      ['--fifo=KEY=custody://a/b/c'],
    );
    expect(await run.output()).toBe(' 00 01 02 ff 3d 0a 00\n1\nOTHER\n');
    expect(existsSync(folder)).toBe(false);
  });

  it('a descriptor is the lowest free one, sealed, and of no other name', async () => {
    await using agent = await FakeAgent.start();
    const script =
      'echo "$A $B"; od -An -tx1 <&$A; cat /dev/fd/$B; echo x 2>/dev/null >/proc/self/fd/$A || echo sealed; ls /proc/self/fd | grep -x .';
    const id = nextGrant();
    const run = new Keeper(
      'sh',
      [
        '-c',
        `exec 3</dev/null; exec "$@"`,
        'sh',
        keeper,
        'run',
        '--fd',
        'A=custody://a/b/c',
        '--',
        'sh',
        '-c',
        script,
      ],
      { PATH: process.env['PATH'], CUSTODY_SOCKET: agent.path },
    );
    const link = await agent.link();
    const request = await link.expect('request');
    expect(textMaybe(request, 'place')).toBeUndefined();
    link.grant({
      grant: id,
      fields: [
        ['fd', encoded('A', nul)],
        ['fd', encoded('B', 'second\n')],
      ],
    });
    expect(await run.output()).toBe(
      ' 4 5\n 00 01 02 ff 3d 0a 00\nsecond\nsealed\n0\n1\n2\n3\n4\n5\n6\n'.slice(1),
    );
  });

  it('what cannot be delivered starts nothing and leaves nothing', async () => {
    await using agent = await FakeAgent.start();
    const id = nextGrant();
    const cases = [
      {
        fields: [
          ['file', encoded('KEY', 'a')],
          ['file', encoded('KEY', 'b')],
        ],
        why: /cannot deliver KEY as file: File exists/,
      },
      {
        fields: [
          ['file', encoded('KEY', 'a')],
          ['fifo', 'OTHER=!'],
        ],
        why: /broke the keeper protocol/,
      },
      { fields: [['file', encoded('../KEY', 'a')]], why: /broke the keeper protocol/ },
    ] as const;
    for (const { fields, why } of cases) {
      const { run, link } = await granted(keeper, agent, ['echo', 'started'], { grant: id, fields }, file);
      await link.expect('failed');
      expect((await run.exit).code).toBe(125);
      expect(run.stderr).toMatch(why);
      expect(run.stdout).toBe('');
      expect(existsSync(`${place}/custody-${id}`)).toBe(false);
    }
  });

  it('a folder that somebody has put there first is not used', async () => {
    await using agent = await FakeAgent.start();
    const id = nextGrant();
    symlinkSync(agent.folder, `${place}/custody-${id}`);
    const { run, link } = await granted(
      keeper,
      agent,
      ['true'],
      { grant: id, fields: [['file', encoded('KEY', 'a')]] },
      file,
    );
    await link.expect('failed');
    expect((await run.exit).code).toBe(125);
    expect(readdirSync(agent.folder)).toEqual(['agent.sock']);
    spawnSync('rm', [`${place}/custody-${id}`]);
  });

  it('a command that cannot be executed leaves no file', async () => {
    await using agent = await FakeAgent.start();
    const { run, link, folder } = await granted(
      keeper,
      agent,
      ['/none'],
      { fields: [['file', encoded('KEY', 'a')]] },
      file,
    );
    await link.expect('failed');
    expect(existsSync(folder)).toBe(false);
    expect((await run.exit).code).toBe(127);
  });

  it('a folder of the caller that is not memory is not offered', async () => {
    await using agent = await FakeAgent.start();
    const { run, request } = await granted(
      keeper,
      agent,
      ['true'],
      { fields: [['file', encoded('K', 'a')]] },
      file,
      {
        XDG_RUNTIME_DIR: process.cwd(),
      },
    );
    expect(text(request, 'place')).toBe(place);
    expect((await run.exit).code).toBe(0);
  });

  it('keeps and drops what the grant says of its environment', async () => {
    await using agent = await FakeAgent.start();
    const env = { AWS_KEY: '1', KEPT: '2', LC_ALL: 'C', LC_KEY: '3', ODD: '4' };
    const clean = await granted(
      keeper,
      agent,
      ['env'],
      {
        env: ['ODD=granted'],
        fields: [
          ['keep', 'PATH'],
          ['keep', 'LC_*'],
          ['drop', '*_KEY'],
          ['on_exit', 'kill'],
        ],
      },
      ['--keep', 'LC_*', '--scrub-also', '*_KEY', '--on-exit=kill'],
      env,
    );
    expect(clean.request.fields.map(([key, value]) => `${key}=${value.toString()}`).slice(3, 8)).toEqual([
      'on_exit=kill',
      'clean=1',
      'scrub=1',
      'keep=LC_*',
      'drop=*_KEY',
    ]);
    expect(
      (await clean.run.output())
        .split('\n')
        .map((line) => line.replace(/=.*/, ''))
        .toSorted(),
    ).toEqual(['', 'CUSTODY_GRANT', 'LC_ALL', 'ODD', 'PATH']);
    const scrub = await granted(
      keeper,
      agent,
      ['env'],
      {
        fields: [
          ['drop', 'A*S_*'],
          ['drop', 'X'],
        ],
      },
      ['--scrub'],
      env,
    );
    const names = (await scrub.run.output()).split('\n').map((line) => line.split('=')[0]);
    expect(names).toContain('LC_KEY');
    expect(names).not.toContain('AWS_KEY');
  });

  it.each([['--clean'], ['--scrub'], ['--on-exit=wait'], ['--file=KEY=custody://a/b/c']])(
    'does not go on where the agent does not know %s',
    async (flag) => {
      await using agent = await FakeAgent.start();
      const { run } = await granted(keeper, agent, ['echo', 'started'], {}, [flag]);
      expect((await run.exit).code).toBe(125);
      expect(run.stderr).toMatch(/did not answer to/);
      expect(run.stdout).toBe('');
    },
  );

  it('on-exit wait lets what is left behind end by itself, and counts it', async () => {
    await using agent = await FakeAgent.start();
    const script = `(setsid sh -c 'trap "" TERM; echo left; read -r _ < "$FIFO"; echo done' &) ; while [ ! -e "$GO" ]; do :; done; exit 7`;
    const fifo = join(agent.folder, 'gate');
    spawnSync('mkfifo', [fifo]);
    const { run, link } = await granted(
      keeper,
      agent,
      ['sh', '-c', script],
      { graceMs: 10, fields: [['on_exit', 'wait']] },
      ['--on-exit', 'wait'],
      { FIFO: fifo, GO: join(agent.folder, 'go') },
    );
    const { pid } = await started(link);
    await run.says(/left\n/);
    writeFileSync(join(agent.folder, 'go'), '');
    await until(() => !existsSync(`/proc/${pid}`), 'the root is reaped');
    await until(() => processOf(run.pid)?.state === 'S', 'the keeper has looked who is left');
    writeFileSync(fifo, '\n');
    const ended = await link.expect('ended');
    expect([text(ended, 'cause'), text(ended, 'root_status'), number(ended, 'survivors')]).toEqual([
      'exit',
      'exit:7',
      1,
    ]);
    expect(textMaybe(ended, 'signalled_boot_us')).toBeUndefined();
    expect(run.stdout).toContain('done');
    expect((await run.exit).code).toBe(7);
  });

  it('on-exit wait ends at the ceiling, and when it is asked to end', async () => {
    await using agent = await FakeAgent.start();
    const script = `(setsid sleep 300 &) ; exit 0`;
    const flags = ['--on-exit', 'wait'];
    const bounded = await granted(
      keeper,
      agent,
      ['sh', '-c', script],
      { ceilingInMs: 300, graceMs: 10, fields: [['on_exit', 'wait']] },
      flags,
    );
    await started(bounded.link);
    expect(text(await bounded.link.expect('ended'), 'cause')).toBe('ceiling');
    expect((await bounded.run.exit).code).toBe(124);
    const asked = await granted(
      keeper,
      agent,
      ['sh', '-c', script],
      { graceMs: 50, fields: [['on_exit', 'wait']] },
      flags,
    );
    const root = await started(asked.link);
    await until(() => !alive(root.pid), 'the root is gone');
    process.kill(asked.run.pid, 'SIGTERM');
    expect(text(await asked.link.expect('ended'), 'cause')).toBe('exit');
    expect((await asked.run.exit).code).toBe(0);
  });
});

describe('the manifest', () => {
  it('of the working directory goes with the request, unless it is left alone or another is named', async () => {
    await using agent = await FakeAgent.start();
    writeFileSync(join(agent.folder, 'custody.json'), '{"version":1}');
    writeFileSync(join(agent.folder, 'other.json'), '{}');
    for (const [flags, wanted] of [
      ['', ['custody.json', '{"version":1}']],
      ['--manifest other.json', ['other.json', '{}']],
      ['--no-manifest', [undefined, undefined]],
    ] as const) {
      const run = new Keeper(
        'sh',
        ['-c', `cd ${agent.folder} && exec ${release.keeper} run ${flags} -- true`],
        {
          PATH: process.env['PATH'],
          CUSTODY_SOCKET: agent.path,
        },
      );
      const link = await agent.link();
      const request = await link.expect('request');
      expect([textMaybe(request, 'manifest_path'), textMaybe(request, 'manifest')]).toEqual(wanted);
      link.grant({ fields: [['on_exit', 'kill']] });
      expect((await run.exit).code).toBe(0);
    }
  });

  it.each([
    ['a folder', (path: string) => mkdirSync(path), 0],
    ['a fifo', (path: string) => spawnSync('mkfifo', [path]), 0],
    ['too large', (path: string) => writeFileSync(path, 'x'.repeat(65_537)), 2],
    ['with a NUL', (path: string) => writeFileSync(path, '\0'), 2],
  ])('%s of that name', async (_what, make, code) => {
    await using agent = await FakeAgent.start();
    make(join(agent.folder, 'custody.json'));
    const run = new Keeper('sh', ['-c', `cd ${agent.folder} && exec ${release.keeper} run true`], {
      PATH: process.env['PATH'],
      CUSTODY_SOCKET: agent.path,
    });
    if (code === 0) void agent.link().then(async (link) => (await link.expect('request'), link.grant()));
    expect((await run.exit).code).toBe(code);
  });
});

describe('when the keeper was killed', () => {
  it('the sweep removes the files', async () => {
    await using agent = await FakeAgent.start();
    const { run, link, folder, id } = await granted(
      release.keeper,
      agent,
      ['sleep', '300'],
      { fields: [['file', encoded('KEY', 'a')]] },
      file,
    );
    await started(link);
    expect(existsSync(`${folder}/KEY`)).toBe(true);
    process.kill(run.pid, 'SIGKILL');
    await run.exit;
    expect((await sweep(id, { place })).emptyBootMs).toBeGreaterThan(0);
    expect(existsSync(folder)).toBe(false);
    expect((await sweep(id, { place })).complaints).toEqual([]);
  });

  it('a sweep follows no link and touches no disk', async () => {
    await using agent = await FakeAgent.start();
    const id = nextGrant();
    mkdirSync(join(agent.folder, `custody-${id}`));
    writeFileSync(join(agent.folder, `custody-${id}`, 'precious'), '');
    chmodSync(agent.folder, 0o755);
    symlinkSync(join(agent.folder, `custody-${id}`), `${place}/custody-${id}`);
    expect((await sweep(id, { place })).complaints).toHaveLength(1);
    expect((await sweep(id, { place: agent.folder })).complaints.length).toBeLessThan(2);
    spawnSync('rm', [`${place}/custody-${id}`]);
    const onDisk =
      spawnSync('stat', ['-f', '-c', '%T', agent.folder], { encoding: 'utf8' }).stdout.trim() !== 'tmpfs';
    expect(existsSync(join(agent.folder, `custody-${id}`, 'precious'))).toBe(onDisk);
  });
});
