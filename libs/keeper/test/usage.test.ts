// The command line: what is refused, what is said about it, and the help.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { release, strictest } from './builds.ts';

const folder = mkdtempSync(join(tmpdir(), 'keeper-usage-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function call(...args: string[]) {
  const env = { PATH: process.env['PATH'], CUSTODY_SOCKET: join(folder, 'none.sock') };
  const { status, stdout, stderr } = spawnSync(strictest.keeper, args, { env, encoding: 'utf8' });
  return { status, stdout, stderr };
}

function file(name: string, bytes: string | Buffer): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

describe('a mistake in usage exits 2 with one line that names it', () => {
  it.each([
    [[], /what to do/],
    [['fly'], /unknown command fly/],
    [['run'], /no command/],
    [['run', '--'], /no command/],
    [['run', '--', ''], /no command/],
    [['run', '--env', 'A=b'], /no command/],
    [['run', '--verbose', '--', 'true'], /unknown option --verbose/],
    [['run', '-v', '--', 'true'], /unknown option -v/],
    [['run', '--env-fil', 'x', '--', 'true'], /unknown option --env-fil/],
    [['run', '--env'], /--env wants a value/],
    [['run', '--env', 'NAME', '--', 'true'], /--env wants NAME=REF/],
    [['run', '--env', 'NAME=', '--', 'true'], /--env wants NAME=REF/],
    [['run', '--env', '=x', '--', 'true'], /--env wants NAME=REF/],
    [['run', '--env', '1A=x', '--', 'true'], /--env wants NAME=REF/],
    [['run', '--env', 'A-B=x', '--', 'true'], /--env wants NAME=REF/],
    [['run', '--env=Ä=x', '--', 'true'], /--env wants NAME=REF/],
    [['run', '--env', 'CUSTODY_GRANT=x', '--', 'true'], /custody sets this name itself/],
    [['run', '--ttl', '15', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', 'm', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', '0s', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', '015m', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', '-1s', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', '1.5h', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', '1w', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', '366d', '--', 'true'], /--ttl wants/],
    [['run', '--ttl', '99999999999999999999d', '--', 'true'], /--ttl wants/],
    [['run', '--reason', '', '--', 'true'], /--reason wants/],
    [['run', '--reason', 'x'.repeat(1025), '--', 'true'], /--reason wants/],
    [['run', '--socket', '', '--', 'true'], /--socket wants/],
    [['run', '--env-file', join(folder, 'missing'), '--', 'true'], /cannot open: No such file/],
    [['run', '--env-file', folder, '--', 'true'], /cannot read: Is a directory/],
    [['run', '--env-file', file('nul', 'A=b\0'), '--', 'true'], /holds a NUL byte/],
    [['run', '--env-file', file('large', 'x'.repeat(65_537)), '--', 'true'], /larger than 65536 bytes/],
    [['run', '--', ...Array.from({ length: 12 }, () => 'x'.repeat(100_000))], /more than one request holds/],
    [['sweep'], /wants a grant id/],
    [['sweep', ''], /wants a grant id/],
    [['sweep', 'x'.repeat(65)], /wants a grant id/],
    [['sweep', 'a', 'b'], /unexpected b/],
    [['sweep', '--fast', 'a'], /unexpected --fast/],
    [['sweep', 'a', '--grace-ms'], /--grace-ms wants/],
    [['sweep', 'a', '--grace-ms', '1s'], /--grace-ms wants/],
    [['sweep', 'a', '--grace-ms', '86400001'], /--grace-ms wants/],
  ] as [string[], RegExp][])('%j', (args, why) => {
    const { status, stdout, stderr } = call(...args);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(/^custody: [^\n]+\n$/);
    expect(stderr).toMatch(why);
  });

  it('a value that was meant as a reference is not repeated', () => {
    expect(call('run', '--env', 'my key=hunter2', '--', 'true').stderr).not.toContain('hunter2');
    expect(call('run', '--evn=KEY=hunter2', '--', 'true').stderr).not.toContain('hunter2');
  });
});

describe('what is accepted gets as far as the agent', () => {
  it.each([
    [['run', 'true']],
    [['run', '--', 'true']],
    [['run', '--', '--help']],
    [['run', 'true', '--unknown']],
    [['run', '--env', '_a1=x', '--env=B=c=d', '--ttl=500ms', '--reason', 'x'.repeat(1024), 'true']],
    [['run', '--ttl', '365d', 'true']],
    [['run', '--env-file', file('fits', 'x'.repeat(65_536)), 'true']],
  ])('%j', (args) => {
    const { status, stderr } = call(...args);
    expect(stderr).toMatch(/^custody: no agent at /);
    expect(status).toBe(125);
  });
});

describe('help and version', () => {
  it.each([
    ['keeper-help.txt', ['--help']],
    ['run-help.txt', ['run', '--help']],
    ['sweep-help.txt', ['sweep', '--help']],
  ])('%s', (name, args) => {
    const golden = new URL(`golden/${name}`, import.meta.url);
    const { status, stdout, stderr } = call(...args);
    if (process.env['CUSTODY_GOLDEN'] === 'write') writeFileSync(golden, stdout);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toBe(readFileSync(golden, 'utf8'));
  });

  it('the version is that of the package', () => {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
      version: string;
    };
    expect(call('--version').stdout).toBe(`custody-keeper ${version}\n`);
    expect(spawnSync(release.keeper, ['run', '--version'], { encoding: 'utf8' }).stdout).toBe(
      `custody-keeper ${version}\n`,
    );
  });
});
