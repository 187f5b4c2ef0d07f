// Owns the proof of what commands send and show: JSON of the wire's own shape, values only where they were asked for.
import { signingKeyFromSeed } from '@custody/crypto/keys';
import { appendEntry, type Head } from '@custody/ledger/chain';
import { endpoints } from '@custody/wire/http';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { at, answers, countsOf, cli, folder, grant, revocation, stub } from './support.ts';

interface Checked {
  safeParse(value: unknown): { success: boolean };
}

describe('--json', () => {
  it.each<[string, string[], Checked]>([
    ['secret list', ['secret', 'list'], endpoints['secret.list'].reply.shape.secrets],
    ['secret get', ['secret', 'get', 'prod/stripe'], endpoints['secret.get'].reply],
    ['secret get --reveal', ['secret', 'get', 'prod/stripe', '--reveal'], endpoints['secret.reveal'].reply],
    [
      'secret versions',
      ['secret', 'versions', 'prod/stripe'],
      endpoints['secret.versions'].reply.shape.versions,
    ],
    ['policy show', ['policy', 'show'], endpoints['policy.show'].reply],
    ['policy history', ['policy', 'history'], endpoints['policy.history'].reply.shape.revisions],
    [
      'policy explain',
      ['policy', 'explain', '--subject', 'host-a/1000', '--secret', 'prod/x', '--', 'node'],
      endpoints['policy.explain'].reply,
    ],
    ['host list', ['host', 'list'], endpoints['host.list'].reply.shape.hosts],
    ['host show', ['host', 'show', 'host-a'], endpoints['host.get'].reply],
    ['grant list', ['grant', 'list', '--active'], endpoints['grant.list'].reply.shape.grants],
    ['grant show', ['grant', 'show', 'g_00000001'], endpoints['grant.get'].reply],
    [
      'ledger query',
      ['ledger', 'query', '--secret', 'prod/stripe'],
      endpoints['ledger.possession'].reply.shape.rows,
    ],
    [
      'revoke',
      ['revoke', '--grant', 'g_00000001', '--reason', 'leaked'],
      endpoints['revocation.create'].reply,
    ],
    [
      'lift',
      ['lift', '--epoch', '2', '--reason', 'rotated'],
      endpoints['revocation.lift'].reply.shape.lifted,
    ],
    [
      'revocation list',
      ['revocation', 'list', '--standing'],
      endpoints['revocation.list'].reply.shape.revocations,
    ],
    ['revocation show', ['revocation', 'show', '1'], endpoints['revocation.get'].reply],
    ['host ban', ['host', 'ban', 'host-a', '--reason', 'stolen'], endpoints['host.ban'].reply],
    ['events', ['events'], endpoints['events.follow'].reply],
    ['status', ['status'], endpoints['status'].reply],
  ])('of %s is JSON of the shape that the wire has', async (_, argv, schema) => {
    const { environment } = await stub();
    const [before, after] = argv.includes('--')
      ? [argv.slice(0, argv.indexOf('--')), argv.slice(argv.indexOf('--'))]
      : [argv, []];
    const { code, out, err } = await cli([...before, '--json', ...after], environment);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(schema.safeParse(JSON.parse(out))).toMatchObject({ success: true });
    const text = await cli(argv, environment);
    expect(text.code).toBe(0);
    expect(text.out).toMatch(/\S\n$/);
  });

  it('the canned answers are of the shape that the wire has', () => {
    for (const [name, answer] of Object.entries(answers)) {
      const { success } = endpoints[name as keyof typeof endpoints].reply.safeParse(answer);
      expect([name, success]).toEqual([name, true]);
    }
  });
});

describe('secret put', () => {
  const put = (body: unknown): Record<string, string> => {
    const { fields } = body as { fields: Record<string, string> };
    return Object.fromEntries(
      Object.entries(fields).map(([name, value]) => [name, Buffer.from(value, 'base64').toString('latin1')]),
    );
  };

  it('takes a value from the line, a file or standard input, without the line feed that editors add', async () => {
    const file = join(folder(), 'value');
    writeFileSync(file, Buffer.from([0xff, 0x00, 0x41, 0x0a]));
    const { environment, asked } = await stub();
    const argv = [
      'secret',
      'put',
      'prod/stripe',
      '--field',
      'a=x=y',
      '--field',
      `b=@${file}`,
      '--field',
      'c=-',
    ];
    const { code, out } = await cli(argv, environment, 'from stdin\n\n');
    expect([code, out]).toEqual([0, 'prod/stripe version 2: api_key\n']);
    expect(asked[0]).toMatchObject({
      action: 'secret.put',
      url: '/v1/secrets/prod%2Fstripe',
      body: { encoding: 'base64' },
    });
    expect(put(asked[0]?.body)).toEqual({ a: 'x=y', b: '\xff\0A', c: 'from stdin\n' });
  });

  it('refuses a value that is too large before it is sent', async () => {
    const { environment, asked } = await stub();
    const { code, err } = await cli(
      ['secret', 'put', 'prod/x', '--field', 'a=-'],
      environment,
      'x'.repeat(100_000),
    );
    expect(code).toBe(1);
    expect(err).toMatch(/^custody: --field a: .* more than 65536[^\n]*\n$/);
    expect(asked).toEqual([]);
  });
});

describe('secret get', () => {
  it('shows a value only when it is asked to', async () => {
    const { environment, asked } = await stub();
    expect((await cli(['secret', 'get', 'prod/stripe'], environment)).out).not.toContain('sk_live');
    expect((await cli(['secret', 'get', 'prod/stripe', '--reveal'], environment)).out).toBe(
      'api_key=sk_live\n',
    );
    expect(asked.map(({ action }) => action)).toEqual(['secret.get', 'secret.reveal']);
  });

  it('asks for the version that was named', async () => {
    const { environment, asked } = await stub();
    await cli(['secret', 'get', 'prod/stripe', '--reveal', '--version', '1'], environment);
    expect(asked[0]?.body).toEqual({ version: 1 });
  });
});

describe('policy', () => {
  it('that does not parse is shown where it stands, as compilers do', async () => {
    const problems = [{ line: 2, column: 7, message: 'no' }];
    const body = {
      type: 'x',
      title: 'x',
      status: 422,
      detail: 'the policy is not valid',
      code: 'policy_invalid',
      problems,
    };
    const { environment } = await stub({ 'policy.apply': () => ({ status: 422, body }) });
    const file = join(folder(), 'p.cedar');
    writeFileSync(file, 'permit');
    const { code, err } = await cli(['policy', 'apply', file], environment);
    expect([code, err.split('\n')[0]]).toEqual([1, `${file}:2:7: no`]);
  });

  it('in broken UTF-8 is refused before it is sent', async () => {
    const { environment, asked } = await stub();
    const { code, err } = await cli(['policy', 'apply', '-'], environment, Buffer.from([0xff]));
    expect([code, err, asked]).toEqual([2, expect.stringContaining('not valid UTF-8'), []]);
  });

  it('explain passes the command after --', async () => {
    const { environment, asked } = await stub();
    await cli(
      [
        'policy',
        'explain',
        '--subject',
        '1000',
        '--host',
        'host-a',
        '--secret',
        'prod/x',
        '--',
        'node',
        '--json',
      ],
      environment,
    );
    expect(asked[0]?.body).toEqual({ subject: 'host-a/1000', path: 'prod/x', command: ['node', '--json'] });
  });
});

describe('revoke --wait', () => {
  const pending = {
    ...revocation,
    proven: false,
    counts: countsOf('pending', 0),
    receipts: [{ ...revocation.receipts[0], state: 'pending', proven: false }],
  };
  const bounded = {
    ...revocation,
    proven: false,
    counts: countsOf('late', 0),
    receipts: [{ ...revocation.receipts[0], state: 'late', proven: false }],
  };

  const command = ['revoke', '--grant', 'g_00000001', '--reason', 'leaked', '--wait'];

  it('exits 0 when every receipt has come', async () => {
    const { environment, asked } = await stub({ 'revocation.create': () => ({ body: pending }) });
    const { code, out, err } = await cli(command, environment);
    expect(code).toBe(0);
    expect(out).toContain('host-a g_00000001: killed');
    expect(asked.map(({ action }) => action)).toEqual(['revocation.create', 'revocation.get']);
    expect(err.trim().split('\n')).toEqual([
      `host-a: 0 of 1 proven; pending: ended by ${at} at the latest`,
      'host-a: 1 of 1 proven',
    ]);
  });

  it('exits 3 when only the bound has passed', async () => {
    const { environment } = await stub({
      'revocation.create': () => ({ body: pending }),
      'revocation.get': () => ({ body: bounded }),
    });
    const { code, out } = await cli(command, environment);
    expect(code).toBe(3);
    expect(out).toContain('nobody has proven it');
  });

  it('exits 3 when the time is up, and shows what is owed', async () => {
    const { environment } = await stub({ 'revocation.create': () => ({ body: pending }) });
    const { code, out } = await cli([...command, '--timeout', '0s'], environment);
    expect([code, /no receipt yet/.test(out)]).toEqual([3, true]);
  });

  it('says where it waits, once', async () => {
    let asked = 0;
    const { environment } = await stub({
      'revocation.create': () => ({ body: pending }),
      'revocation.get': () => ({ body: (asked += 1) < 4 ? pending : revocation }),
    });
    const { err } = await cli(command, environment);
    expect(err.match(/host-a: 0 of 1 proven/g)).toHaveLength(1);
  });
});

describe('a target', () => {
  it.each([
    [['--grant', 'g_00000001'], { kind: 'grant', id: 'g_00000001' }],
    [['--run', 'r_00000001'], { kind: 'run', id: 'r_00000001' }],
    [['--host', 'host-a'], { kind: 'host', name: 'host-a' }],
    [['--subject', 'host-a/1000'], { kind: 'subject', subject: 'host-a/1000' }],
    [['--secret', 'prod/stripe'], { kind: 'secret', path: 'prod/stripe' }],
    [['--secret', 'prod/stripe@3'], { kind: 'secret', path: 'prod/stripe', version: 3 }],
    [['--prefix', 'prod/'], { kind: 'prefix', path: 'prod' }],
    [['--policy-revision', '7'], { kind: 'policy_revision', revision: 7 }],
    [['--all'], { kind: 'all' }],
  ])('%j is asked for as %j', async (flags, target) => {
    const { environment, asked } = await stub();
    await cli(['revoke', ...flags, '--reason', 'leaked'], environment);
    expect(asked[0]?.body).toEqual({ target, reason: 'leaked', dryRun: false });
  });

  it('that would be hit is shown, and nothing is waited for', async () => {
    const hit = {
      ...{ host: 'host-a', grantId: 'g_00000001', runId: 'r_00000001', subject: 'host-a/1000' },
      ...{ command: ['node'], paths: ['prod/stripe'], boundAt: at },
    };
    const preview = {
      ...{ dryRun: true, target: { kind: 'all' }, standing: false, grants: 1 },
      ...{ hosts: [{ host: 'host-a', grants: 1 }], hits: [hit], more: 0 },
    };
    const { environment, asked } = await stub({ 'revocation.create': () => ({ body: preview }) });
    const { code, out } = await cli(['revoke', '--all', '--reason', 'x', '--dry-run', '--wait'], environment);
    expect([code, asked.length]).toEqual([0, 1]);
    expect(out).toContain('everything would hit 1 on 1 hosts; nothing was written');
    expect(out).toContain('g_00000001');
  });
});

it('status exits 1 while a part is down', async () => {
  const { environment } = await stub({
    status: () => ({ body: { ...(answers.status as object), bus: 'down' } }),
  });
  expect((await cli(['status'], environment)).code).toBe(1);
});

describe('what a run says of itself', () => {
  const hostile = 'x\u001b[2J\u009b31m\ny\u0007';

  it('never speaks to the terminal of who looks at it', async () => {
    const grants = [{ ...grant, command: [hostile], cwd: hostile, reason: hostile }];
    const [held] = (answers['ledger.possession'] as { rows: object[] }).rows;
    const { environment } = await stub({
      'grant.list': () => ({ body: { grants } }),
      'grant.get': () => ({ body: { ...grants[0], jws: 'a.b.c' } }),
      'ledger.possession': () => ({ body: { rows: [{ ...held, command: [hostile] }] } }),
    });
    for (const argv of [
      ['grant', 'list'],
      ['grant', 'show', 'g_00000001'],
      ['ledger', 'query', '--secret', 'prod/stripe'],
    ]) {
      const { code, out } = await cli(argv, environment);
      expect(code).toBe(0);
      expect(out.replaceAll('\n', '')).not.toMatch(/\p{Cc}/u);
    }
  });
});

describe('ledger', () => {
  const key = signingKeyFromSeed(new Uint8Array(32).fill(1));
  const author = 'h_0000000000000001';
  const lines: string[] = [];
  let head: Head | undefined;
  for (let n = 0; n < 4; n += 1) {
    const made = appendEntry(
      head,
      { host: author, at, boot_ms: n, kind: 'agent_started', body: { version: '0.1.0', openRuns: n } },
      key,
    );
    lines.push(Buffer.from(made.line).toString());
    ({ head } = made);
  }
  const text = lines.join('');
  const view = { author, name: 'host-a', publicKey: key.publicKey, head, forked: false };
  const page = (all: readonly string[], url: string) => {
    const after = Number(new URL(url, 'http://x').searchParams.get('afterSeq') ?? 0);
    const rows = all.map((line, index) => ({
      ordinal: index + 1,
      author,
      name: 'host-a',
      ingestedAt: at,
      line: line.slice(0, -1),
    }));
    return { lines: rows.slice(after, after + 2) };
  };
  const central = (all: readonly string[]) =>
    stub({
      'ledger.authors': () => ({ body: { authors: [view] } }),
      'ledger.lines': ({ url }) => ({ body: page(all, url) }),
    });

  it('verify of a file needs no control plane when the key is given', async () => {
    const file = join(folder(), 'copy.ledger');
    writeFileSync(file, text);
    expect(await cli(['ledger', 'verify', '--file', file, '--key', key.publicKey])).toMatchObject({
      code: 0,
      out: `${file}: sound; 4 entries, head 1/4\n`,
    });
  });

  it('verify names the first bad sequence number of a copy in which one byte was changed', async () => {
    const file = join(folder(), 'copy.ledger');
    writeFileSync(file, text.replace('"openRuns":2', '"openRuns":7'));
    const { code, out } = await cli(['ledger', 'verify', '--file', file, '--key', key.publicKey]);
    expect(code).toBe(1);
    expect(out).toContain('NOT SOUND: first bad sequence number 3');
    const json = await cli(['ledger', 'verify', '--file', file, '--key', key.publicKey, '--json']);
    expect(JSON.parse(json.out)).toMatchObject([{ ok: false, seq: 3, problem: 'edited' }]);
  });

  it('verify reads what the control plane holds, page by page, up to the head that it confirmed', async () => {
    const sound = await central(lines);
    expect(await cli(['ledger', 'verify'], sound.environment)).toMatchObject({
      code: 0,
      out: 'host-a: sound; 4 entries, head 1/4\n',
    });
    const cut = await central(lines.slice(0, 3));
    expect(await cli(['ledger', 'verify', '--host', 'host-a'], cut.environment)).toMatchObject({
      code: 1,
      out: expect.stringContaining('first bad sequence number 4 (truncated'),
    });
  });

  it('tail --follow goes on where the control plane says, also when a while brought nothing', async () => {
    const turns = [
      { rows: [0], next: 7 },
      { rows: [], next: 9 },
      { rows: [1], next: 12 },
    ];
    const gone = { type: 'x', title: 'x', status: 404, detail: 'it went away', code: 'not_found' };
    const { environment, asked } = await stub({
      'ledger.lines': () => {
        const answer = turns.shift();
        if (answer === undefined) return { status: 404, body: gone };
        const { lines: all } = page(lines, 'http://x/');
        return { body: { lines: answer.rows.map((row) => all[row]), next: answer.next } };
      },
    });
    const { code, out } = await cli(['ledger', 'tail', '--follow', '--json'], environment);
    expect([code, out.trimEnd().split('\n').length]).toEqual([1, 2]);
    expect(asked.map(({ url }) => new URL(url, 'http://x').search)).toEqual([
      '?last=true',
      ...[7, 9, 12].map((after) => `?after=${after}&waitMs=20000`),
    ]);
  });

  it('tail --json is one JSON value a line, each with its entry', async () => {
    const { environment } = await central(lines);
    const { out } = await cli(['ledger', 'tail', '--json'], environment);
    const rows = out
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as { entry: { seq: number } });
    expect(rows.map(({ entry }) => entry.seq)).toEqual([1, 2]);
  });
});
