// One run from request to exit code: what the agent is asked, what the child finds, what the caller gets back.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, mkdirSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { fieldAll, number, parseProcRow, parseRootStatus, text, textMaybe } from '../src/frames.ts';
import { keepers, release, variant } from './builds.ts';
import { FakeAgent, Keeper, started, type KeeperStart } from './fake-agent.ts';

/** Starts a run and grants it at once. */
async function granted(start: KeeperStart & { agent: FakeAgent }, ...grant: Parameters<FakeLink['grant']>) {
  const keeper = Keeper.run(start);
  const link = await start.agent.link();
  const request = await link.expect('request');
  link.grant(...grant);
  return { keeper, link, request };
}
type FakeLink = Awaited<ReturnType<FakeAgent['link']>>;

describe.each(keepers)('a run ($name)', ({ name, keeper: program, containment }) => {
  it('asks with the command, the place and every flag, in order', async () => {
    await using agent = await FakeAgent.start();
    const file = join(agent.folder, '.env');
    writeFileSync(file, 'A=custody://a/b/c\nB=plain\n');
    const flags = ['--env', 'K=custody://prod/stripe/api_key', '--env-file', file, '--ttl', '15m'];
    const { keeper, link, request } = await granted({
      keeper: program,
      agent,
      flags: [...flags, '--reason=nightly sync', '--env=L=custody://x/y/z'],
      command: ['sh', '-c', 'exit 3', 'ü'],
      env: { CUSTODY_GRANT: 'g-outer', TRACEPARENT: '00-1-2-01' },
    });
    await using _ = keeper;
    expect(request.fields.map(([key, value]) => `${key}=${value.toString('utf8')}`)).toEqual([
      'version=1',
      `cwd=${process.cwd()}`,
      `containment=${containment}`,
      'ttl_ms=900000',
      'reason=nightly sync',
      'env=K=custody://prod/stripe/api_key',
      'env=L=custody://x/y/z',
      'env_file=A=custody://a/b/c\nB=plain\n',
      'parent=g-outer',
      'traceparent=00-1-2-01',
      'arg=sh',
      'arg=-c',
      'arg=exit 3',
      'arg=ü',
    ]);
    const root = await started(link);
    expect(root.pid).toBeGreaterThan(1);
    expect(root.startTicks).toMatch(/^[0-9]+$/);
    const ended = await link.expect('ended');
    expect(textMaybe(ended, 'cause')).toBe('exit');
    expect(parseRootStatus(text(ended, 'root_status'))).toEqual({ kind: 'exit', number: 3 });
    expect(number(ended, 'survivors')).toBe(0);
    expect(number(ended, 'processes')).toBe(1);
    expect(fieldAll(ended, 'proc').map(parseProcRow)).toMatchObject([{ pid: root.pid, name: 'sh' }]);
    expect(await keeper.exit).toEqual({ code: 3, signal: null });
  });

  it('puts the values in the environment of the child and nowhere else', async () => {
    await using agent = await FakeAgent.start();
    const { keeper } = await granted(
      {
        keeper: program,
        agent,
        command: ['env'],
        env: {
          KEPT: 'yes',
          KEY: 'theirs',
          CUSTODY_TOKEN: 'operator',
          CUSTODY_API: 'https://c',
          CUSTODY_GRANT: 'g-0',
        },
      },
      {
        env: [
          'KEY=s3cret with = and blanks',
          'EMPTY=',
          Buffer.from('RAW=\xff', 'latin1'),
          'CUSTODY_GRANT=forged',
        ],
      },
    );
    await using _ = keeper;
    const lines = (await keeper.output()).split('\n').slice(0, -1).toSorted();
    expect(lines).toEqual(
      [
        'CUSTODY_API=https://c',
        'CUSTODY_GRANT=g-1',
        `CUSTODY_SOCKET=${agent.path}`,
        'EMPTY=',
        'KEPT=yes',
        'KEY=s3cret with = and blanks',
        `PATH=${process.env['PATH']}`,
        'RAW=\xff',
      ].toSorted(),
    );
    expect(keeper.stderr).toBe('');
  });

  // The sanitizer's runtime binds lazily, which spills vector registers, and what they held, to the stack.
  it.runIf(name === 'release')(
    'keeps no copy of a value in its own memory once the child has it',
    async () => {
      await using agent = await FakeAgent.start();
      const value = `canary-${process.pid}-${'x'.repeat(20_000)}-end`;
      const { keeper, link } = await granted(
        { keeper: program, agent, command: ['sleep', '60'] },
        { env: [`KEY=${value}`] },
      );
      await using _ = keeper;
      await started(link);
      const found = spawnSync('sh', ['-c', memorySearch, 'sh', String(keeper.pid), value.slice(0, 20)], {
        encoding: 'utf8',
      });
      if (process.getuid?.() === 0) expect(found.stdout.trim()).toBe('0');
      else expect(found.stdout.trim()).toBe('unreadable');
      link.send('end', [
        ['cause', 'revoked'],
        ['grace_ms', 0],
      ]);
      expect((await keeper.exit).code).toBe(123);
    },
  );

  it('passes no descriptor of its own to the child', async () => {
    await using agent = await FakeAgent.start();
    const list = ['sh', '-c', 'ls /proc/$$/fd; ls -l /proc/$$/fd'] as const;
    const { keeper } = await granted({ keeper: program, agent, command: list });
    await using _ = keeper;
    const output = await keeper.output();
    const bare = spawnSync(list[0], list.slice(1), {
      stdio: ['ignore', 'pipe', 'pipe'],
      encoding: 'utf8',
    }).stdout;
    const numbers = (said: string) => said.slice(0, said.indexOf('total'));
    expect(numbers(output)).toBe(numbers(bare));
    expect(output).not.toMatch(/signalfd|anon_inode/);
  });

  it('gives the child the signal mask and dispositions that the caller had', async () => {
    await using agent = await FakeAgent.start();
    const report = 'grep -E "^Sig(Blk|Ign|Cgt)" /proc/self/status';
    const ignoring = (command: string) => ['-c', `trap "" USR1 PIPE HUP TSTP; exec ${command}`];
    const bare = spawnSync('sh', ignoring(report), { encoding: 'utf8' }).stdout;
    const keeper = new Keeper(
      'sh',
      ignoring(`${program} run --socket ${agent.path} ${report.replaceAll('"', "'")}`),
      {
        PATH: process.env['PATH'],
      },
    );
    await using _ = keeper;
    const link = await agent.link();
    await link.expect('request');
    link.grant();
    expect(await keeper.output()).toBe(bare);
    expect(bare).toMatch(/SigIgn:\s+0*[0-9a-f]+/);
  });

  it('finds the command on the PATH that the child gets', async () => {
    await using agent = await FakeAgent.start();
    const tool = join(agent.folder, 'granted-tool');
    writeFileSync(tool, 'echo from-a-script-without-a-first-line\n');
    chmodSync(tool, 0o755);
    const { keeper } = await granted(
      { keeper: program, agent, command: ['granted-tool'] },
      { env: [`PATH=${agent.folder}:/usr/bin:/bin`] },
    );
    await using _ = keeper;
    expect(await keeper.output()).toBe('from-a-script-without-a-first-line\n');
  });

  it.each([['SIGKILL'], ['SIGTERM'], ['SIGINT'], ['SIGSEGV']] as const)(
    'ends by %s when that ended the command',
    async (signal) => {
      await using agent = await FakeAgent.start();
      const { keeper, link } = await granted({
        keeper: program,
        agent,
        command: ['sh', '-c', `ulimit -c 0; kill -${signal.slice(3)} $$`],
      });
      await using _ = keeper;
      await started(link);
      expect(text(await link.expect('ended'), 'root_status')).toBe(`signal:${constants.signals[signal]}`);
      expect(await keeper.exit).toEqual({ code: null, signal });
    },
  );

  it.each([
    ['no-such-program', 127, constants.errno.ENOENT, 'No such file or directory'],
    ['/no/such/program', 127, constants.errno.ENOENT, 'No such file or directory'],
    ['/etc/passwd', 126, constants.errno.EACCES, 'Permission denied'],
    ['/', 126, constants.errno.EACCES, 'Permission denied'],
  ])('says that %s cannot be executed and exits %i', async (command, code, errno, why) => {
    await using agent = await FakeAgent.start();
    const { keeper, link } = await granted({ keeper: program, agent, command: [command] });
    await using _ = keeper;
    expect(number(await link.expect('failed'), 'errno')).toBe(errno);
    expect(await keeper.exit).toEqual({ code, signal: null });
    expect(keeper.stderr).toBe(`custody: cannot run ${command}: ${why}\n`);
  });

  it.each([
    [125, 125],
    [2, 2],
    [0, 125],
  ])('a refusal with exit %i starts nothing, tells why and exits %i', async (said, code) => {
    await using agent = await FakeAgent.start();
    const keeper = Keeper.run({ keeper: program, agent, command: ['echo', 'started'] });
    await using _ = keeper;
    const link = await agent.link();
    await link.expect('request');
    link.send('refused', [
      ['exit', said],
      ['code', 'policy_denied'],
      ['line', 'policy forbids prod/stripe for ci\x1b[31m'],
      ['line', 'ask security for a permit'],
    ]);
    expect(await keeper.output()).toBe('');
    expect(await keeper.exit).toEqual({ code, signal: null });
    expect(keeper.stderr).toBe(
      'custody: refused: policy forbids prod/stripe for ci?[31m\n  ask security for a permit\n',
    );
  });

  it('shows every note', async () => {
    await using agent = await FakeAgent.start();
    const keeper = Keeper.run({ keeper: program, agent, command: ['true'] });
    await using _ = keeper;
    const link = await agent.link();
    await link.expect('request');
    link.send('note', [
      ['line', 'ceiling clamped to 15m by policy'],
      ['line', 'second'],
    ]);
    link.send('note', [['line', 'third']]);
    link.grant();
    expect((await keeper.exit).code).toBe(0);
    expect(keeper.stderr).toBe(
      'custody: ceiling clamped to 15m by policy\ncustody: second\ncustody: third\n',
    );
  });

  it('exits 125 when the agent closes before it answers', async () => {
    await using agent = await FakeAgent.start();
    const keeper = Keeper.run({ keeper: program, agent, command: ['true'] });
    await using _ = keeper;
    const link = await agent.link();
    await link.expect('request');
    link.close();
    expect((await keeper.exit).code).toBe(125);
    expect(keeper.stderr).toMatch(/^custody: agent closed the connection before it answered/);
  });

  it.each([
    ['a length out of range', Buffer.alloc(4), /length/],
    [
      'a word that is not due',
      Buffer.from('00000008' + Buffer.from('adopted\0').toString('hex'), 'hex'),
      /unexpected/,
    ],
    [
      'a grant without a ceiling',
      Buffer.from('\0\0\0\x12granted\0grant=g-1\0', 'latin1'),
      /without a usable/,
    ],
  ])('exits 125 on %s', async (_what, bytes, why) => {
    await using agent = await FakeAgent.start();
    const keeper = Keeper.run({ keeper: program, agent, command: ['true'] });
    await using _ = keeper;
    const link = await agent.link();
    await link.expect('request');
    link.sendBytes(bytes);
    expect((await keeper.exit).code).toBe(125);
    expect(keeper.stderr).toMatch(why);
  });

  it('a signal before the grant ends it as it would end any program', async () => {
    await using agent = await FakeAgent.start();
    const keeper = Keeper.run({ keeper: program, agent, command: ['echo', 'started'] });
    await using _ = keeper;
    const link = await agent.link();
    await link.expect('request');
    process.kill(keeper.pid, 'SIGINT');
    expect(await keeper.exit).toEqual({ code: null, signal: 'SIGINT' });
    await link.closed;
    expect(keeper.stdout).toBe('');
  });
});

// Counts a string in every readable mapping of a process; needs the rights to read its memory.
const memorySearch = `
  exec 2>/dev/null
  head -c 1 /proc/$1/maps >/dev/null && head -c 0 /proc/$1/mem >/dev/null || { echo unreadable; exit; }
  exec ${process.execPath} -e '
    const { readFileSync, openSync, readSync } = require("node:fs");
    const mem = openSync("/proc/" + process.argv[1] + "/mem");
    let found = 0;
    for (const line of readFileSync("/proc/" + process.argv[1] + "/maps", "latin1").split("\\n")) {
      const [, from, to, flags] = /^([0-9a-f]+)-([0-9a-f]+) (....)/.exec(line) || [];
      if (!flags || !flags.startsWith("rw") || /\\[v/.test(line)) continue;
      const bytes = Number.parseInt(to, 16) - Number.parseInt(from, 16);
      if (bytes > 64 * 1024 * 1024) continue;
      const held = Buffer.alloc(bytes);
      try { readSync(mem, held, 0, bytes, Number.parseInt(from, 16)); } catch { continue; }
      for (let at = held.indexOf(process.argv[2]); at >= 0; at = held.indexOf(process.argv[2], at + 1)) found++;
    }
    console.log(found);
  ' "$1" "$2"`;

it('returns each of the 256 exit codes', async () => {
  await using agent = await FakeAgent.start();
  const answering = (async () => {
    for (;;) {
      const link = await agent.link();
      void link.expect('request').then(() => link.grant());
    }
  })();
  answering.catch(() => {});
  const codes = Array.from({ length: 256 }, (_, code) => code);
  const got: (number | null)[] = [];
  for (let from = 0; from < 256; from += 16) {
    const runs = codes.slice(from, from + 16).map(async (code) => {
      const keeper = Keeper.run({ keeper: release.keeper, agent, command: ['sh', '-c', `exit ${code}`] });
      return (await keeper.exit).code;
    });
    got.push(...(await Promise.all(runs)));
  }
  expect(got).toEqual(codes);
});

describe('no agent', () => {
  it.runIf(variant !== undefined)(
    'gives an agent up that is silent for so long, and not one that says it waits',
    async () => {
      await using agent = await FakeAgent.start();
      const from = performance.now();
      await using keeper = Keeper.run({ keeper: variant?.keeper ?? '', agent, command: ['echo', 'started'] });
      const link = await agent.link();
      await link.expect('request');
      await new Promise((resolve) => setTimeout(resolve, 500)); // a word half-way starts the wait anew
      link.send('note', [['line', 'waiting for security']]);
      expect((await keeper.exit).code).toBe(125);
      expect(performance.now() - from).toBeGreaterThan(1490);
      expect(keeper.stderr).toContain(`no answer from the agent at ${agent.path} in 1 s`);
      expect(keeper.stdout).toBe('');
    },
  );

  it('exits 125, naming the socket and the next step', async () => {
    await using agent = new FakeAgent();
    const keeper = Keeper.run({ keeper: release.keeper, agent, command: ['true'] });
    expect((await keeper.exit).code).toBe(125);
    expect(keeper.stderr).toBe(
      `custody: no agent at ${agent.path}: No such file or directory; \`custody agent status\` tells more, ` +
        '`custody up` starts one on this machine\n',
    );
  });

  it('a socket at a well-known path is used, and not the next one where nobody answers there', async () => {
    await using agent = new FakeAgent('custody');
    mkdirSync(agent.path);
    await using there = new FakeAgent();
    Object.assign(there, { path: join(agent.path, 'agent.sock') });
    await there.listen();
    const env = { XDG_RUNTIME_DIR: agent.folder };
    const first = Keeper.run({ keeper: release.keeper, command: ['true'], env });
    const link = await there.link();
    await link.expect('request');
    link.grant();
    expect((await first.exit).code).toBe(0);
    await there.die();
    writeFileSync(there.path, '');
    const second = Keeper.run({ keeper: release.keeper, command: ['true'], env });
    expect((await second.exit).code).toBe(125);
    expect(second.stderr).toContain(there.path);
  });

  it.runIf(process.getuid?.() === 0)(
    'refuses a well-known socket that another user has put there',
    async () => {
      await using agent = new FakeAgent('custody');
      mkdirSync(agent.path);
      chownSync(agent.path, 65534, 65534);
      chmodSync(agent.folder, 0o755);
      const path = join(agent.path, 'agent.sock');
      const program = 'require("node:net").createServer().listen(process.argv[1], () => console.log("up"))';
      const other = spawn(process.execPath, ['-e', program, path], {
        uid: 65534,
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(other.stdout, 'data');
      const runtime = Keeper.run({
        keeper: release.keeper,
        command: ['true'],
        env: { XDG_RUNTIME_DIR: agent.folder },
      });
      expect((await runtime.exit).code).toBe(125);
      expect(runtime.stderr).toContain('belongs to another user');
      other.kill();
      await once(other, 'exit');
    },
  );
});
