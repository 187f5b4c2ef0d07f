// Owns the proof of what a run may ask for: references and plain values, in their order, bounded, and in UTF-8.
import { keptNames, scrubbedNames } from '@custody/core/ambient';
import { CustodyError } from '@custody/core/errors';
import { runCredentialsMax, ttlMsMax, ttlMsMin } from '@custody/core/limits';
import { KeeperError } from '@custody/keeper/error';
import { encodeFrame, FrameReader, type Frame, type FrameToSend } from '@custody/keeper/frames';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readAsk, type Ask } from '../src/delivery.ts';

type Field = FrameToSend['fields'][number];

function frame(...fields: Field[]): Frame {
  const bytes = encodeFrame({ verb: 'request', fields });
  const [read] = new FrameReader().push(bytes);
  if (read === undefined) throw new Error('no frame');
  return read;
}

const read = (...fields: Field[]): Ask =>
  readAsk(frame(['cwd', '/'], ...fields, ['containment', 'subreaper'], ['arg', 'node']));

function refusal(...fields: Field[]): CustodyError {
  try {
    read(...fields);
  } catch (error) {
    if (error instanceof CustodyError) return error;
    throw error;
  }
  throw new Error('it was taken');
}

describe('an env file', () => {
  it('holds references and plain values, as .env files are written', () => {
    const file =
      '# a comment\nMODE=test\nexport KEY=custody://prod/stripe/api_key\nQUOTED="a b # c"\nEMPTY=\nSINGLE=\'x\'\n';
    const { wanted, plain } = read(['env_file', file]);
    expect(wanted).toEqual([{ name: 'KEY', path: 'prod/stripe', field: 'api_key' }]);
    expect(Object.fromEntries(plain)).toEqual({ MODE: 'test', QUOTED: 'a b # c', EMPTY: '', SINGLE: 'x' });
  });

  it('is overruled by a later one, and any by --env', () => {
    const { wanted, plain } = read(
      ['env', 'C=custody://c/d/e'],
      ['env_file', 'A=1\nB=1\nC=1\n'],
      ['env_file', 'B=2\nA=custody://a/b\n'],
      ['env', 'C=custody://x/y'],
    );
    expect(plain).toEqual([['B', '2']]);
    expect(wanted).toEqual([
      { name: 'A', path: 'a', field: 'b' },
      { name: 'C', path: 'x', field: 'y' },
    ]);
  });

  it('in broken UTF-8 is refused, and nothing of it is shown', () => {
    const error = refusal([
      'env_file',
      Buffer.concat([Buffer.from('SECRETISH=va'), Buffer.from([0xff, 0xfe])]),
    ]);
    expect(error).toMatchObject({
      code: 'bad_utf8',
      publicMessage: '--env-file: the bytes are not valid UTF-8',
    });
    expect(error.next).toContain('nothing was asked for');
  });

  it.each(['A-B=1', 'ÄB=1', '1A=2'])(
    'with a name that is none is refused, or the line is passed over: %s',
    (file) => {
      try {
        expect(read(['env_file', file]).plain).toEqual([]);
      } catch (error) {
        expect(error).toMatchObject({ code: 'bad_request' });
      }
    },
  );

  it('with a reference that is none is refused', () => {
    expect(refusal(['env_file', 'KEY=custody://prod\n']).code).toBe('bad_reference');
  });
});

describe('--env', () => {
  it.each([
    ['KEY=plain', 'bad_reference'],
    ['KEY', 'bad_reference'],
    ['=custody://a/b', 'bad_request'],
    ['A B=custody://a/b', 'bad_request'],
    ['KEY=custody://../b', 'bad_reference'],
    ['KEY=', 'bad_reference'],
  ])('%j is refused', (pair, code) => expect(refusal(['env', pair]).code).toBe(code));

  it('in broken UTF-8 is refused', () => {
    expect(refusal(['env', Buffer.from([0x41, 0x3d, 0xc3, 0x28])]).code).toBe('bad_utf8');
  });
});

describe('bounds', () => {
  it('a run has at most 64 credentials', () => {
    const envs = (count: number): Field[] =>
      Array.from({ length: count }, (_, index) => ['env', `K${index}=custody://a/b`] as const);
    expect(read(...envs(runCredentialsMax)).wanted).toHaveLength(runCredentialsMax);
    expect(refusal(...envs(runCredentialsMax + 1)).publicMessage).toContain('65 credentials');
  });

  it('a ttl is neither too short nor too long', () => {
    expect(read(['ttl_ms', ttlMsMin]).ttlMs).toBe(ttlMsMin);
    expect(read(['ttl_ms', ttlMsMax]).ttlMs).toBe(ttlMsMax);
    expect(read().ttlMs).toBeUndefined();
    for (const ms of [0, ttlMsMin - 1, ttlMsMax + 1])
      expect(refusal(['ttl_ms', ms]).publicMessage).toContain('--ttl');
  });
});

describe('a way of delivery', () => {
  it('is that of the flag, and the later of two counts', () => {
    const { wanted } = read(
      ['place', '/dev/shm'],
      ['file', 'A=custody://a/b'],
      ['fd', 'B=custody://a/b'],
      ['fifo', 'C=custody://a/b'],
      ['env', 'A=custody://c/d'],
    );
    expect(wanted).toEqual([
      { name: 'A', path: 'c', field: 'd' },
      { name: 'B', path: 'a', field: 'b', deliver: 'fd' },
      { name: 'C', path: 'a', field: 'b', deliver: 'fifo' },
    ]);
  });

  it('that needs memory is refused where there is none, in one clear line', () => {
    const error = refusal(['file', 'A=custody://a/b']);
    expect(error.code).toBe('run_unacceptable');
    expect(error.publicMessage).toContain('A cannot be delivered by file');
    expect(error.next).toContain('--fd');
    expect(read(['fd', 'A=custody://a/b']).wanted).toHaveLength(1);
  });
});

describe('the environment', () => {
  it('is left alone, cleaned or scrubbed', () => {
    expect(read()).toMatchObject({ keep: undefined, drop: undefined });
    expect(read(['clean', '1'], ['keep', 'CI_*']).keep).toEqual([...keptNames, 'CI_*']);
    expect(read(['scrub', '1'], ['drop', 'ACME_*']).drop).toEqual([...scrubbedNames, 'ACME_*']);
    expect(refusal(['keep', 'A=b']).publicMessage).toContain('--keep');
  });

  it('on-exit is kill or wait', () => {
    expect(read(['on_exit', 'wait']).onExit).toBe('wait');
    expect(refusal(['on_exit', 'later']).publicMessage).toContain('--on-exit');
  });
});

describe('a manifest', () => {
  const manifest = (content: object, ...more: Field[]): Field[] => [
    ['manifest_path', 'custody.json'],
    ['manifest', JSON.stringify({ version: 1, ...content })],
    ['place', '/dev/shm'],
    ...more,
  ];
  const run = (content: object, words: string[], ...more: Field[]) =>
    readAsk(
      frame(
        ['cwd', '/srv/app'],
        ['containment', 'subreaper'],
        ...manifest(content, ...more),
        ...words.map((word) => ['arg', word] as const),
      ),
    );

  it('says what a command needs; files and flags overrule it', () => {
    const content = {
      env: { A: 'custody://a/b', B: 'custody://a/b', C: 'custody://a/b' },
      file: { D: 'custody://a/b' },
      ttl: '10m',
      reason: 'tests',
      onExit: 'wait',
      scrub: true,
    };
    const asked = run(
      content,
      ['npm', 'test'],
      ['env_file', 'B=plain'],
      ['fd', 'C=custody://x/y'],
      ['ttl_ms', 5_000],
    );
    expect(asked.wanted).toEqual([
      { name: 'A', path: 'a', field: 'b' },
      { name: 'C', path: 'x', field: 'y', deliver: 'fd' },
      { name: 'D', path: 'a', field: 'b', deliver: 'file' },
    ]);
    expect(asked).toMatchObject({ plain: [['B', 'plain']], ttlMs: 5_000, reason: 'tests', onExit: 'wait' });
    expect([asked.keep, asked.drop, asked.manifest?.path]).toEqual([
      undefined,
      scrubbedNames,
      '/srv/app/custody.json',
    ]);
  });

  it('gives a section to the commands that begin with its words', () => {
    const content = {
      env: { A: 'custody://a/b' },
      commands: {
        npm: { env: { B: 'custody://a/b' }, ttl: '1m' },
        'npm publish': { env: { C: 'custody://a/b' }, ttl: '2m' },
      },
    };
    const names = (...words: string[]) =>
      run(content, words)
        .wanted.map(({ name }) => name)
        .join('');
    expect([names('npm', 'publish', '--dry'), names('npm', 'test'), names('npmx'), names('node')]).toEqual([
      'ABC',
      'AB',
      'A',
      'A',
    ]);
    expect(run(content, ['npm', 'publish']).ttlMs).toBe(120_000);
  });
});

it('what else a run says is kept, and an empty value counts as none', () => {
  expect(
    read(
      ['reason', 'JIRA-7'],
      ['parent', 'g_00000001'],
      ['traceparent', '00-a-b-01'],
      ['containment', 'kqueue'],
    ),
  ).toMatchObject({
    reason: 'JIRA-7',
    parent: 'g_00000001',
    traceparent: '00-a-b-01',
    containment: 'kqueue',
    command: ['node'],
    cwd: '/',
  });
  expect(read(['reason', ''], ['parent', '']).reason).toBeUndefined();
});

it('a command and a folder may be any bytes: they are shown, not believed', () => {
  const asked = readAsk(
    frame(
      ['containment', 'subreaper'],
      ['cwd', Buffer.from([0x2f, 0xff])],
      ['arg', Buffer.from([0xfe])],
      ['arg', 'x'],
    ),
  );
  expect([asked.cwd, asked.command]).toEqual(['/\ufffd', ['\ufffd', 'x']]);
});

it('no frame does anything but ask or be refused', () => {
  const key = fc.constantFrom(
    'env',
    'env_file',
    'arg',
    'cwd',
    'ttl_ms',
    'reason',
    'parent',
    'containment',
    'file',
    'fd',
    'manifest',
    'keep',
    'on_exit',
    'traceparent',
    'other',
  );
  const value = fc.oneof(
    fc
      .uint8Array({ maxLength: 60 })
      .map((bytes) => Buffer.from(bytes.map((byte) => (byte === 0 ? 1 : byte)))),
    fc
      .string({ unit: fc.constantFrom('A', '=', '\n', '"', "'", '#', ' ', 'custody://a/b', '9', '$', '\\') })
      .map((text) => Buffer.from(text)),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(key, value), { maxLength: 12 }), (fields) => {
      try {
        const asked = readAsk(frame(...fields));
        for (const { name } of asked.wanted) expect(name).toMatch(/^[A-Za-z_][A-Za-z0-9_]*$/);
        for (const [name, text] of asked.plain) expect(name + text).not.toContain('\0');
      } catch (error) {
        // A number or a text that is none breaks the protocol: the connection is closed for it.
        expect(error instanceof CustodyError || error instanceof KeeperError).toBe(true);
      }
    }),
    { numRuns: 500 },
  );
});
