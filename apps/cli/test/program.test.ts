// Owns the proof of the command line itself: help, mistakes in one line, completion, and what a shell is told.
import { writeRecord, layoutOf } from '@custody/constellation/layout';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import type { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { table } from '../src/context.ts';
import { createProgram } from '../src/program.ts';
import { cli, folder, stub, token } from './support.ts';

const program = createProgram({
  environment: {},
  stdout: process.stdout,
  stderr: process.stderr,
  stdin: process.stdin,
  now: () => new Date(0),
});

function* commandsOf(
  command: Command,
  path: readonly string[],
): Generator<{ path: readonly string[]; command: Command }> {
  yield { path, command };
  for (const each of command.commands) yield* commandsOf(each, [...path, each.name()]);
}
const commands = [...commandsOf(program, [])];
// The keeper answers `run`, and has its own help and its own tests.
const ours = commands.filter(({ path }) => path[0] !== 'run');

describe('help', () => {
  it('of every command is the golden text (CUSTODY_GOLDEN=write)', async () => {
    const golden = new URL('golden/help.txt', import.meta.url);
    let text = '';
    for (const { path } of ours) {
      const { code, out, err } = await cli([...path, '--help']);
      expect([path, code, err]).toEqual([path, 0, '']);
      text += `$ custody ${[...path, '--help'].join(' ')}\n${out}\n`;
    }
    if (process.env['CUSTODY_GOLDEN'] === 'write') writeFileSync(golden, text);
    expect(text).toBe(readFileSync(golden, 'utf8'));
  });

  it('every command says in a line what it does', () => {
    for (const { path, command } of commands)
      expect([path, command.description().length > 10]).toEqual([path, true]);
  });

  it('every reading command takes --json', () => {
    const reading = /(?:list|get|show|versions|history|explain|query|verify|tail|status|env)$/;
    for (const { path, command } of commands.filter(({ path: each }) => reading.test(each.at(-1) ?? ''))) {
      expect([path, command.options.map(({ long }) => long)]).toEqual([
        path,
        expect.arrayContaining(['--json']),
      ]);
    }
  });

  it('the version is that of the package', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
      version: string;
    };
    expect(await cli(['--version'])).toEqual({ code: 0, out: `${version}\n`, err: '' });
  });
});

describe('a mistake is one clear line, and exit 2', () => {
  it.each<[string[]]>([
    [['--nope']],
    [['nonsense']],
    [['secret', 'nonsense']],
    [['secret', 'lsit']],
    [['secret', 'get']],
    [['secret', 'get', 'a', 'b']],
    [['secret', 'list', '--jsno']],
    [['secret', 'put', 'prod/x']],
    [['secret', 'put', '../x', '--field', 'a=b']],
    [['secret', 'put', 'prod/x', '--field']],
    [['secret', 'put', 'prod/x', '--field', '=b']],
    [['secret', 'put', 'prod/x', '--field', 'a']],
    [['secret', 'put', 'prod/x', '--field', 'a=@/nonexistent/file']],
    [['secret', 'put', 'prod/x', '--field', 'a=-', '--field', 'b=-']],
    [['secret', 'get', 'prod/x', '--reveal', '--version', 'x']],
    [['secret', 'rm', '/prod']],
    [['policy', 'validate', '/nonexistent/file']],
    [['policy', 'show', '--revision', 'x']],
    [['policy', 'explain', '--secret', 'prod/x']],
    [['host', 'token', 'create', '--ttl', 'soon']],
    [['host', 'token', 'create', '--label', 'x']],
    [['ledger', 'query']],
    [['ledger', 'query', '--secret', '..']],
    [['ledger', 'query', '--secret', 'prod/x', '--from', 'yesterday']],
    [['ledger', 'verify', '--file', '/nonexistent/file']],
    [['revoke']],
    [['revoke', '--reason', 'x']],
    [['revoke', '--grant', 'g_00000001']],
    [['revoke', '--all', '--grant', 'g_00000001', '--reason', 'x']],
    [['revoke', '--secret', 'prod/x@latest', '--reason', 'x']],
    [['revoke', '--policy-revision', '-1', '--reason', 'x']],
    [['revoke', '--all', '--reason', 'x', '--timeout', '5s']],
    [['revoke', '--all', '--reason', 'x', '--wait', '--timeout', 'soon']],
    [['lift', '--reason', 'x']],
    [['lift', '--epoch', '0', '--reason', 'x']],
    [['host', 'ban', 'host-a']],
    [['host', 'ban', 'host-a', '--reason', 'x', '--timeout', '5s']],
    [['events', '--since', 'yesterday']],
    [['up', '--hosts', '-1']],
    [['up', '--hosts', '27']],
    [['up', '--hosts', 'many']],
    [['completion', 'fish']],
    [['completion']],
    [['agent', 'enroll']],
  ])('%j', async (argv) => {
    const { environment, asked } = await stub();
    const { code, out, err } = await cli(argv, environment);
    expect({ code, out }).toEqual({ code: 2, out: '' });
    expect(err).toMatch(/^custody: [^\n]+\n$/);
    expect(asked).toEqual([]);
  });

  it('and none repeats a value that may be a secret', async () => {
    const { environment } = await stub();
    for (const argv of [
      ['secret', 'put', 'prod/x', '--feild', 'a=sk_live_canary'],
      ['secret', 'put', 'prod/x', '--field', 'a b=sk_live_canary'],
    ]) {
      expect((await cli(argv, environment)).err).not.toContain('sk_live_canary');
    }
  });
});

describe('without a control plane', () => {
  it('says which variables are missing, and what sets them', async () => {
    const { code, out, err } = await cli(['status']);
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toMatch(/^custody: CUSTODY_API and CUSTODY_TOKEN are not set; .*custody env.*\n$/);
  });

  it('that is wrong says so, in one line without the token', async () => {
    for (const CUSTODY_API of ['not an address', 'http://127.0.0.1:1']) {
      const { code, err } = await cli(['status'], { CUSTODY_API, CUSTODY_TOKEN: token });
      expect(code).toBeGreaterThan(0);
      expect(err).toMatch(/^custody: [^\n]+\n$/);
      expect(err).not.toContain(token);
    }
  });

  it('a refusal of the control plane is its words, and what to do next', async () => {
    const problem = {
      type: 'x',
      title: 'x',
      status: 404,
      detail: 'there is no secret a',
      code: 'secret_unknown',
      next: 'look',
    };
    const { environment } = await stub({ 'secret.get': () => ({ status: 404, body: problem }) });
    // 125 belongs to `custody run`.
    expect(await cli(['secret', 'get', 'a'], environment)).toEqual({
      code: 1,
      out: '',
      err: 'custody: there is no secret a; look\n',
    });
  });
});

describe('a table', () => {
  it('has its columns where its headings are', () => {
    const cell = fc.string({ unit: fc.constantFrom('a', 'b', '-', '/', '9'), maxLength: 12 });
    fc.assert(
      fc.property(fc.array(fc.tuple(cell, cell, cell), { maxLength: 8 }), (rows) => {
        const headings = ['NAME', '#', 'LAST'];
        const lines = table(headings, rows).split('\n');
        const [head = ''] = lines;
        const starts = headings.map((heading) => head.indexOf(heading));
        rows.forEach((cells, index) => {
          const line = lines[index + 1] ?? '';
          cells.forEach((text, column) =>
            expect(line.slice(starts[column], (starts[column] ?? 0) + text.length)).toBe(text),
          );
        });
      }),
    );
  });

  it('is not moved, and no terminal is spoken to, by what a cell holds', () => {
    const text = table(['A', 'B'], [['x\u001b[31m\n\u009b2J\u007f', 'y']]);
    expect(text.split('\n')).toHaveLength(2);
    expect(text.replaceAll('\n', '')).not.toMatch(/\p{Cc}/u);
  });
});

describe('completion', () => {
  async function complete(...words: string[]): Promise<string[]> {
    const script = join(folder(), 'completion.bash');
    writeFileSync(script, (await cli(['completion', 'bash'])).out);
    const ask =
      'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _custody; printf "%s\\n" "${COMPREPLY[@]}"';
    const out = execFileSync('bash', ['--norc', '-c', ask, 'bash', script, 'custody', ...words], {
      encoding: 'utf8',
    });
    return out.split('\n').filter((word) => word !== '');
  }

  it('in bash offers commands, then theirs, then flags', async () => {
    expect(await complete('')).toEqual(
      expect.arrayContaining(['up', 'secret', 'policy', 'run', 'revoke', 'ledger']),
    );
    expect(await complete('sec')).toEqual(['secret']);
    expect(await complete('secret', '')).toEqual(
      expect.arrayContaining(['put', 'get', 'list', 'versions', 'rm']),
    );
    expect(await complete('host', 'token', '')).toEqual(['create']);
    expect(await complete('secret', 'put', 'prod/stripe', '--f')).toEqual(['--field']);
    expect(await complete('revoke', '--')).toEqual(
      expect.arrayContaining(['--grant', '--reason', '--wait', '--json']),
    );
  });

  it('knows every command there is', async () => {
    for (const { path, command } of ours) {
      const words = command.commands.map((each) => each.name());
      if (words.length > 0) expect(await complete(...path, '')).toEqual(expect.arrayContaining(words));
    }
  }, 30_000);
});

describe('env', () => {
  it('prints lines that a shell takes as they are meant, whatever stands in them', async () => {
    const dir = join(folder(), `it's a "dir" $HOME \`id\` \\ ;`);
    mkdirSync(dir);
    writeFileSync(join(dir, 'token'), `${token}\n`);
    const socket = join(dir, 'a.sock');
    await writeRecord(layoutOf(dir), {
      ...{ pid: process.pid, api: 'http://127.0.0.1:4100', tokenFile: join(dir, 'token') },
      hosts: [{ name: 'host-a', socket, dataDir: dir }],
    });
    const { code, out, err } = await cli(['env', '--data', dir]);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    const show = 'eval "$1"; printf "%s\\n%s\\n%s\\n" "$CUSTODY_API" "$CUSTODY_TOKEN" "$CUSTODY_SOCKET"';
    const seen = execFileSync('sh', ['-c', show, 'sh', out], { encoding: 'utf8' });
    expect(seen).toBe(`http://127.0.0.1:4100\n${token}\n${socket}\n`);
    const missing = await cli(['env', '--data', dir, '--host', 'host-b']);
    expect(missing).toMatchObject({ code: 1, err: expect.stringContaining('there are: host-a') });
  });

  it('of a constellation that is not up says so', async () => {
    expect(await cli(['env', '--data', folder()])).toMatchObject({
      code: 1,
      out: '',
      err: expect.stringContaining('custody up'),
    });
  });
});
