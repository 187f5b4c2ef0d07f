// Owns the proof, over the whole constellation, of how values reach a command, and that nothing of them stays.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { exited, openPolicy, until, withConstellation } from '@custody/testkit/constellation';
import { beforeAll, describe, expect, test } from 'vitest';

const kit = withConstellation({ hosts: 1 });
const reference = 'custody://prod/stripe/api_key';

function file(name: string, content: string): string {
  const made = path.join(kit.scratch, name);
  fs.writeFileSync(made, content);
  return made;
}

/** A project folder, and the `sh` that enters it: runs have no folder of their own here. */
function project(name: string, manifest: object): (command: string) => string[] {
  const dir = path.join(kit.scratch, name);
  fs.mkdirSync(dir, { recursive: true });
  fs.writeFileSync(path.join(dir, 'custody.json'), JSON.stringify({ version: 1, ...manifest }));
  return (command) => ['--manifest', path.join(dir, 'custody.json'), '--', 'sh', '-c', command];
}

const leftovers = (): string[] => fs.readdirSync('/dev/shm').filter((name) => name.startsWith('custody-g_'));

beforeAll(async () => {
  const policy = `${openPolicy}
@id("files-only") @deliver("file fd") @on_exit("kill")
permit (principal, action == Action::"hold", resource in Folder::"guarded");`;
  exited(0, await kit.custody(['policy', 'apply', file('policy.cedar', policy)]));
  exited(0, await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1']));
  exited(0, await kit.custody(['secret', 'put', 'guarded/key', '--field', 'pem=v2']));
});

test('a value reaches a command by file, fifo and descriptor, and nothing is left of it', async () => {
  const flags = ['--file', `F=${reference}`, '--fifo', `P=${reference}`, '--fd', `D=${reference}`];
  const script = 'cat "$F"; echo; cat "$P"; echo; cat <&$D; echo; env | grep -c v1';
  const outcome = await kit.run(['sh', '-c', script], { flags });
  expect(outcome.stdout).toBe('v1\nv1\nv1\n0\n');
  expect(leftovers()).toEqual([]);
});

test('files go when the keeper is killed', async () => {
  const run = kit.startRun(['sh', '-c', 'echo "$F"; exec sleep 300'], {
    flags: ['--file', `F=${reference}`],
  });
  const made = await run.line(1);
  expect(fs.readFileSync(made, 'utf8')).toBe('v1');
  run.kill('SIGKILL');
  await until(() => !fs.existsSync(path.dirname(made)), 'the files are gone');
});

describe('a policy', () => {
  test('says which deliveries it allows, and a refusal says how to ask', async () => {
    const guarded = 'custody://guarded/key/pem';
    const { stderr } = exited(125, await kit.run(['true'], { holds: [`K=${guarded}`] }));
    expect(stderr).toContain(
      'policy files-only (revision 1) lets guarded/key be delivered by file or fd, not by env',
    );
    expect(stderr).toContain(`use --file K=${guarded}`);
    const flags = ['--file', `K=${guarded}`, '--on-exit', 'wait'];
    const allowed = exited(0, await kit.run(['sh', '-c', 'cat "$K"'], { flags }));
    expect(allowed.stdout).toBe('v2');
    expect(allowed.stderr).toBe('custody: on-exit wait is more than the policy allows: on-exit is kill\n');
  });

  test('is explained with its deliveries', async () => {
    const told = await kit.custody([
      ...['policy', 'explain', '--subject', 'host-a/0', '--secret', 'guarded/key', '--', 'true'],
    ]);
    expect(told.stdout).toMatch(/deliver file fd\n\s+on_exit kill/);
  });
});

test('on-exit wait lets a daemon end by itself', async () => {
  const done = path.join(kit.scratch, 'daemon-done');
  const script = `(setsid sh -c 'trap "" TERM; sleep 3; : > ${done}' &)`;
  exited(0, await kit.run(['sh', '-c', script], { flags: ['--on-exit', 'wait'], holds: [`K=${reference}`] }));
  expect(fs.existsSync(done)).toBe(true);
});

test('a clean run gets a few variables, a scrubbed one no credential', async () => {
  const names = async (flag: string): Promise<string[]> => {
    const { stdout } = exited(
      0,
      await kit.run(['env'], { flags: [flag], holds: [`GRANTED_TOKEN=${reference}`] }),
    );
    return stdout.split('\n').map((line) => line.replace(/=.*/, ''));
  };
  expect(await names('--clean')).toEqual(expect.arrayContaining(['PATH', 'GRANTED_TOKEN', 'CUSTODY_GRANT']));
  expect((await names('--clean')).filter((name) => /^npm_|^NODE/i.test(name))).toEqual([]);
  expect(await names('--scrub')).toContain('GRANTED_TOKEN');
});

describe('a manifest', () => {
  const run = (words: string[]) =>
    kit.run(words.slice(words.indexOf('--') + 1), { flags: words.slice(0, words.indexOf('--')) });

  test('suffices, and says when it asks for more than last time', async () => {
    const small = project('app', { env: { KEY: reference }, scrub: true });
    const first = exited(0, await run(small('echo "$KEY"')));
    expect([first.stdout, first.stderr]).toEqual(['v1\n', '']);
    const large = project('app', {
      env: { KEY: reference },
      file: { PEM: 'custody://guarded/key/pem' },
      scrub: true,
    });
    const second = exited(0, await run(large('cat "$PEM"')));
    expect(second.stdout).toBe('v2');
    expect(second.stderr).toMatch(
      /^custody: \S+custody\.json asks for more than last time: custody:\/\/guarded\/key\/pem by file\n$/,
    );
    expect(exited(0, await run(large('true'))).stderr).toBe('');
  });

  test('that is wrong is refused with its place', async () => {
    const wrong = project('wrong', { env: { KEY: 'hunter2' } });
    const { stderr } = exited(2, await run(wrong('true')));
    expect(stderr).toContain('custody.json: env.KEY: is not a reference');
    expect(stderr).not.toContain('hunter2');
  });
});

test('revoking the outer run ends the inner one, each with its receipt', async () => {
  const custody = path.resolve(import.meta.dirname, '../../apps/cli/bin/custody');
  const inner = `${custody} run --env K=${reference} -- sh -c 'echo "$CUSTODY_GRANT"; exec sleep 300'`;
  const run = kit.startRun(['sh', '-c', `echo "$CUSTODY_GRANT"; ${inner}`], { holds: [`K=${reference}`] });
  const [outerId, innerId] = [await run.line(1), await run.line(2)];
  exited(0, await kit.custody(['revoke', '--grant', outerId, '--reason', 'leaked', '--wait']));
  expect((await run.outcome).code).toBe(123);
  const shown = await until(async () => {
    const grant = await kit.json<{ state: string; parent?: string; ended?: { cause: string } }>([
      'grant',
      'show',
      innerId,
    ]);
    return grant.state === 'ended' ? grant : undefined;
  }, 'the inner run is closed');
  expect([shown.parent, shown.ended?.cause]).toEqual([outerId, 'revoked']);
  const { stdout } = exited(0, await kit.custody(['ledger', 'tail', '--json']));
  const receipts = stdout.split('\n').filter((line) => line.includes('"receipt"'));
  for (const id of [outerId, innerId]) expect(receipts.some((line) => line.includes(id))).toBe(true);
});
