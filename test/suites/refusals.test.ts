// Owns every refusal a person can meet: each is clear, releases nothing, loses nothing, and leaves a working system.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  exited,
  openPolicy,
  until,
  withConstellation,
  type Outcome,
  type RunOptions,
} from '@custody/testkit/constellation';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';

// Durable: Postgres is killed here, and what it said it had committed must be there afterwards.
const kit = withConstellation({ hosts: 2, durable: true });
const holds = ['KEY=custody://prod/stripe/api_key'];

interface Tail {
  readonly entry: { readonly kind: string; readonly body: { error?: { code: string }; command?: unknown } };
}

function file(name: string, content: string | Uint8Array): string {
  const made = path.join(kit.scratch, name);
  fs.writeFileSync(made, content);
  return made;
}

async function refused(code: number, command: readonly string[], options: RunOptions): Promise<string> {
  const proof = path.join(kit.scratch, 'it-ran');
  const outcome = exited(
    code,
    await kit.run(['sh', '-c', `: > ${proof}; exec "$@"`, 'sh', ...command], options),
  );
  expect(outcome.stdout).toBe('');
  expect(fs.existsSync(proof)).toBe(false);
  return outcome.stderr;
}

/** The newest entries on record, of all chains. */
async function tail(): Promise<Tail[]> {
  const { stdout } = exited(0, await kit.custody(['ledger', 'tail', '--json']));
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Tail);
}

/** Refusals are on record at the host that refused, and at the control plane where it was asked. */
function onRecord(kinds: readonly string[], code: string, mark: string): Promise<true> {
  return until(
    async () => {
      const entries = (await tail()).map(({ entry }) => entry);
      const fits = (kind: string): boolean =>
        entries.some(
          ({ kind: each, body }) =>
            each === kind && body.error?.code === code && JSON.stringify(body.command).includes(mark),
        );
      return kinds.every(fits) ? true : undefined;
    },
    `${kinds.join(' and ')} with ${code} on record`,
  );
}

async function http(
  method: string,
  where: string,
  body: string | Uint8Array<ArrayBuffer>,
  token = kit.constellation.token,
): Promise<{ status: number; type: string | null; text: string; code: unknown }> {
  const response = await fetch(`${kit.constellation.api}${where}`, {
    method,
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body,
  });
  const text = await response.text();
  const { code } = JSON.parse(text) as { code: unknown };
  return { status: response.status, type: response.headers.get('content-type'), text, code };
}

async function ready(host: string): Promise<void> {
  await until(
    async () => (await kit.custody(['agent', 'status'], { host })).code === 0,
    `the agent of ${host} ready again`,
  );
}

const enroll = (token: string, name: string, folder = name): Promise<Outcome> =>
  kit.custody([
    ...['agent', 'enroll', '--url', kit.constellation.api, '--token', token, '--name', name],
    ...['--data', path.join(kit.scratch, folder)],
  ]);

beforeAll(async () => {
  exited(0, await kit.custody(['policy', 'apply', file('policy.cedar', openPolicy)]));
  exited(
    0,
    await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1', '--field', 'webhook=v2']),
  );
  exited(0, await kit.custody(['secret', 'put', 'dev/stripe', '--field', 'api_key=v3']));
});

afterEach(async () => {
  // Still works, on both hosts.
  const runs = ['host-a', 'host-b'].map((host) => kit.run(['sh', '-c', 'echo "$KEY"'], { host, holds }));
  for (const outcome of await Promise.all(runs)) expect(exited(0, outcome).stdout).toBe('v1\n');
  // Nothing was lost: what the hosts hold is what the control plane confirmed, and every chain is sound.
  await until(async () => {
    const status = await kit.json<{ ledger_unconfirmed: string; runs: unknown[] }>(['agent', 'status']);
    return status.ledger_unconfirmed === '0' && status.runs.length === 0;
  }, 'every entry confirmed');
  exited(0, await kit.custody(['ledger', 'verify']));
});

describe('a run is refused', () => {
  test('without a policy: 125, naming the missing permission and what to do next', async () => {
    const said = await refused(125, ['echo', 'mark-policy'], { holds: ['KEY=custody://dev/stripe/api_key'] });
    expect(said).toMatch(/^custody: refused: /);
    expect(said).toContain('hold');
    expect(said).toContain('Secret::"dev/stripe"');
    expect(said).toMatch(/LocalUser::"host-a\/\d+"/);
    expect(said).toContain('custody policy explain');
    await onRecord(['refused'], 'denied_by_policy', 'mark-policy');
  });

  test('for an unknown secret and an unknown field, which names those that there are', async () => {
    const secret = await refused(125, ['echo', 'mark-secret'], {
      holds: ['KEY=custody://prod/none/api_key'],
    });
    expect(secret).toContain('there is no secret prod/none');
    const field = await refused(125, ['echo', 'mark-field'], { holds: ['KEY=custody://prod/stripe/none'] });
    expect(field).toContain('prod/stripe has no field none');
    expect(field).toContain('it has: api_key, webhook');
    await onRecord(['refused', 'denied'], 'secret_unknown', 'mark-secret');
    await onRecord(['refused', 'denied'], 'field_unknown', 'mark-field');
  });

  test('for a malformed reference, with 2', async () => {
    const malformed = ['custody://prod', 'custody://prod/stripe/', 'custody://../etc/passwd', 'plain'];
    for (const reference of malformed) {
      const said = await refused(2, ['true'], { holds: [`KEY=${reference}`] });
      expect(said).toMatch(/^custody: refused: [^]*reference/);
    }
  });

  test('for a ttl that is none or out of bounds, and for an unknown flag, with 2', async () => {
    const bad = [['--ttl', 'soon'], ['--ttl', '0s'], ['--ttl', '8d'], ['--ttl', '-5s'], ['--no-such-flag']];
    for (const flags of bad) {
      const said = await refused(2, ['true'], { holds, flags });
      expect(said).toMatch(/^custody: /);
      expect(said).toContain(flags[0]);
    }
  });

  test('for an --env-file that is not UTF-8, with 2', async () => {
    const broken = file('broken.env', Buffer.from([0x41, 0x3d, 0xff, 0xfe, 0x0a]));
    const said = await refused(2, ['true'], { holds, flags: ['--env-file', broken] });
    expect(said).toContain('not valid UTF-8');
  });

  test('for a value that no environment variable can hold, saying how to store it', async () => {
    exited(
      0,
      await kit.custody(['secret', 'put', 'prod/binary', '--field', 'key=-'], {
        input: Buffer.from([1, 0, 2]),
      }),
    );
    const said = await refused(125, ['echo', 'mark-nul'], { holds: ['KEY=custody://prod/binary/key'] });
    expect(said).toContain('prod/binary/key holds a NUL byte');
    expect(said).toContain('base64');
    await onRecord(['refused'], 'run_unacceptable', 'mark-nul');
  });

  test('is not, for a ttl beyond the policy: it is clamped, that is said, and the exit code is the child’s', async () => {
    const outcome = exited(
      7,
      await kit.run(['sh', '-c', 'echo out; exit 7'], { holds, flags: ['--ttl', '1h'] }),
    );
    expect(outcome.stdout).toBe('out\n');
    expect(outcome.stderr).toMatch(/custody: .*15m/);
  });

  test('while the agent is down, saying where it was looked for', async () => {
    const part = kit.constellation.part('host-a');
    await part.down('SIGKILL');
    const said = await refused(125, ['true'], { holds });
    expect(said).toMatch(/agent/);
    const status = await kit.custody(['agent', 'status']);
    expect(status.code).not.toBe(0);
    expect(status.stderr).toContain('no agent answers');
    await part.up();
    await ready('host-a');
  });

  test('while the control plane is down, at once and saying what still goes on', async () => {
    const part = kit.constellation.part('control-plane');
    await part.down('SIGKILL');
    const said = await refused(125, ['echo', 'mark-control-plane'], { holds });
    expect(said).toContain('the control plane cannot be reached');
    expect(said).toContain('nothing was released');
    const status = await kit.custody(['status']);
    expect(status.code).not.toBe(0);
    expect(status.stderr).toContain('cannot reach the control plane');
    await part.up();
    await ready('host-a');
    await onRecord(['refused'], 'control_plane_unreachable', 'mark-control-plane');
  });

  test('while nats-server is down, at once', async () => {
    const part = kit.constellation.part('nats');
    await part.down('SIGKILL');
    const said = await refused(125, ['echo', 'mark-nats'], { holds });
    expect(said).toContain('the control plane cannot be reached');
    const status = exited(1, await kit.custody(['status', '--json']));
    expect(JSON.parse(status.stdout)).toMatchObject({ bus: 'down', postgres: 'up' });
    await part.up();
    await ready('host-a');
    await ready('host-b');
    await until(
      async () => (await kit.custody(['status'])).code === 0,
      'the control plane has its bus again',
    );
    await onRecord(['refused'], 'control_plane_unreachable', 'mark-nats');
  });

  test('while Postgres is down, saying so', async () => {
    const part = kit.constellation.part('postgres');
    await part.down('SIGKILL');
    const said = await refused(125, ['true'], { holds });
    expect(said).toMatch(/database|control plane cannot be reached/);
    const put = await kit.custody(['secret', 'put', 'prod/lost', '--field', 'a=b']);
    expect(put.code).not.toBe(0);
    expect(put.stderr).toContain('database');
    await part.up();
    await until(
      async () => (await kit.custody(['status'])).code === 0,
      'the control plane has its database again',
    );
    await ready('host-a');
  });
});

describe('a host is refused', () => {
  test('with an expired, a used, a foreign and a misshapen join token', async () => {
    const made = await kit.json<{ token: string; expiresAt: string }>([
      ...['host', 'token', 'create', '--ttl', '1s', '--name', 'late'],
    ]);
    await delay(Math.max(0, new Date(made.expiresAt).getTime() - Date.now()) + 1);
    const late = await enroll(made.token, 'late');
    expect(late).toMatchObject({ code: 1, stdout: '' });
    expect(late.stderr).toContain('expired');

    const once = await kit.json<{ token: string }>([
      'host',
      'token',
      'create',
      '--ttl',
      '1m',
      '--name',
      'once',
    ]);
    exited(0, await enroll(once.token, 'once'));
    const twice = await enroll(once.token, 'once', 'once-more');
    expect(twice).toMatchObject({ code: 1, stdout: '' });
    expect(twice.stderr).toContain('used');
    const over = await enroll(once.token, 'once');
    expect(over).toMatchObject({ code: 1, stdout: '' });
    expect(over.stderr).toContain('enrolled already');

    const unknown = await enroll(`cjt_${'A'.repeat(43)}`, 'stranger');
    expect(unknown.code).toBe(1);
    expect(unknown.stderr).toContain('custody host token create');
    const misshapen = await enroll('hello', 'stranger');
    expect(misshapen.code).toBe(1);
    expect(fs.existsSync(path.join(kit.scratch, 'stranger', 'identity.json'))).toBe(false);
    for (const { stderr } of [late, twice, over, unknown, misshapen]) {
      for (const token of [made.token, once.token]) expect(stderr).not.toContain(token);
    }
    const hosts = await kit.json<{ name: string }[]>(['host', 'list']);
    expect(hosts.map(({ name }) => name).toSorted()).toEqual(['host-a', 'host-b', 'once']);
  });
});

describe('an operator is refused', () => {
  test('with a wrong bearer token, which is not echoed, and without one before any body is read', async () => {
    for (const token of [`cst_${'A'.repeat(43)}`, 'hello']) {
      const outcome = await kit.custody(['secret', 'list'], { env: { CUSTODY_TOKEN: token } });
      expect(outcome).toMatchObject({ code: 1, stdout: '' });
      expect(outcome.stderr).toMatch(/^custody: .*token/);
      expect(outcome.stderr).not.toContain(token);
    }
    const response = await fetch(`${kit.constellation.api}/v1/policies`, { method: 'POST', body: '{' });
    expect(response.status).toBe(401);
  });

  test('for a policy that does not parse, with line and column, and nothing is applied', async () => {
    const before = await kit.json<{ revision: number }>(['policy', 'show']);
    const broken = file(
      'broken.cedar',
      '// a comment\npermit (principal, action,\n  resource) wen { true };\n',
    );
    for (const verb of ['validate', 'apply']) {
      const outcome = await kit.custody(['policy', verb, broken]);
      expect(outcome).toMatchObject({ code: 1, stdout: '' });
      expect(outcome.stderr).toContain(`${broken}:3:13: `);
      if (verb === 'apply') expect(outcome.stderr).toContain('nothing was applied');
    }
    expect(await kit.json(['policy', 'show'])).toEqual(before);
  });

  test('for a policy that is not UTF-8, and nothing is applied', async () => {
    const before = await kit.json<{ revision: number }>(['policy', 'show']);
    const broken = file(
      'latin1.cedar',
      Buffer.concat([Buffer.from([0x2f, 0x2f, 0xe9, 0x0a]), Buffer.from(openPolicy)]),
    );
    const outcome = await kit.custody(['policy', 'apply', broken]);
    expect(outcome.code).toBe(2);
    expect(outcome.stderr).toContain('not valid UTF-8');
    expect(await kit.json(['policy', 'show'])).toEqual(before);
  });

  test('for a body too large, with a problem document over HTTP and one line at the terminal', async () => {
    const answer = await http(
      'PUT',
      '/v1/secrets/prod%2Flarge',
      `{"fields":{"a":"${'x'.repeat(1_100_000)}"}}`,
    );
    expect(answer).toMatchObject({ status: 413, code: 'too_large' });
    expect(answer.type).toMatch(/^application\/problem\+json/);
    const outcome = await kit.custody(['secret', 'put', 'prod/large', '--field', 'a=-'], {
      input: 'x'.repeat(70_000),
    });
    expect(outcome).toMatchObject({ code: 1, stdout: '' });
    expect(outcome.stderr).toContain('more than 65536');
    const policy = await kit.custody(['policy', 'apply', '-'], {
      input: `//${'x'.repeat(300_000)}\n${openPolicy}`,
    });
    expect(policy.code).toBe(1);
    expect(policy.stderr).toContain('more than 262144');
    expect((await kit.custody(['secret', 'get', 'prod/large'])).code).toBe(1);
  });

  test('for a body that is no JSON of the right shape, without an echo of it', async () => {
    const bad = [
      [new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d]), 'bad_utf8'],
      ['{"fields": {"a": "hidden-value", }}', 'bad_request'],
      ['{"fields": {"a": ["hidden-value"]}}', 'bad_request'],
      ['{"fields": {"a": "hidden-value"}, "colour": "hidden-value"}', 'bad_request'],
      ['hidden-value', 'bad_request'],
    ] as const;
    for (const [body, code] of bad) {
      const answer = await http('PUT', '/v1/secrets/prod%2Fbad', body);
      expect(answer).toMatchObject({ status: 400, code });
      expect(answer.type).toMatch(/^application\/problem\+json/);
      expect(answer.text).not.toContain('hidden');
    }
    const unknown = await http('PUT', '/v1/secrets/prod%2Fbad', '{"fields": {"a": "b"}, "colour": "c"}');
    expect(unknown.text).toContain('colour');
    expect((await kit.custody(['secret', 'get', 'prod/bad'])).code).toBe(1);
  });

  test('for a command line that is not understood: one line, and 2', async () => {
    const bad = [
      ['secret', 'frobnicate'],
      ['nonsense'],
      ['secret', 'list', '--colour'],
      ['revoke'],
      ['secret', 'get', '../etc'],
      ['ledger', 'query', '--secret', 'prod/stripe', '--from', 'yesterday'],
      ['host', 'token', 'create', '--ttl', 'soon'],
      ['up', '--hosts', 'many'],
    ];
    for (const outcome of await Promise.all(bad.map((args) => kit.custody(args)))) {
      expect(outcome).toMatchObject({ code: 2, stdout: '' });
      expect(outcome.stderr).toMatch(/^custody: .+\n$/);
      expect(outcome.stderr.trim().split('\n')).toHaveLength(1);
    }
  });
});
