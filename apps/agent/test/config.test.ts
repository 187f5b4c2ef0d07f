// Owns the proof of what the agent is told by flags and environment: all of it known, and no value in an error.
import { CustodyError } from '@custody/core/errors';
import { Secret } from '@custody/core/secret';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { readConfig } from '../src/config.ts';

const home = { XDG_DATA_HOME: '/data' };
const canary = 'cjt_canary0123456789canary0123456789canary0123456';

function refusal(argv: string[], environment: Record<string, string> = {}): CustodyError {
  try {
    readConfig(argv, environment);
  } catch (error) {
    if (error instanceof CustodyError) return error;
    throw error;
  }
  throw new Error('it was taken');
}

describe('agent start', () => {
  it('has its defaults: under the data folder, and a socket where custody run looks for it', () => {
    const config = readConfig(['start'], { ...home, XDG_RUNTIME_DIR: '/run/user/7' });
    expect(config).toMatchObject({ verb: 'start', dataDir: '/data/custody/agent', logLevel: 'info' });
    const asRoot = process.getuid?.() === 0;
    expect(config).toHaveProperty(
      'socketPath',
      asRoot ? '/run/custody/agent.sock' : '/run/user/7/custody/agent.sock',
    );
  });

  it('takes the flag over the environment', () => {
    expect(readConfig(['start', '--data', '/a'], { CUSTODY_DATA: '/b', CUSTODY_LOG: 'debug' })).toMatchObject(
      {
        dataDir: '/a',
        logLevel: 'debug',
      },
    );
    expect(readConfig(['start', '--socket', '/s'], { CUSTODY_DATA: '/b' })).toMatchObject({
      dataDir: '/b',
      socketPath: '/s',
    });
  });
});

describe('agent enroll', () => {
  it('takes its token from the environment, so that it need not stand in argv', () => {
    expect(readConfig(['enroll', '--url', 'http://c:1'], { CUSTODY_JOIN_TOKEN: canary })).toMatchObject({
      verb: 'enroll',
      token: canary,
      name: undefined,
    });
  });

  it.each<[string, string[], Record<string, string>]>([
    ['no url', ['enroll', '--token', canary], {}],
    ['no token', ['enroll', '--url', 'http://c'], {}],
    ['no address', ['enroll', '--url', 'not an address', '--token', canary], {}],
    ['no host name', ['enroll', '--url', 'http://c', '--token', canary, '--name', 'Not a name'], {}],
    ['an unknown flag', ['enroll', '--tokne', canary], {}],
    ['a flag without its value', ['start', '--data'], {}],
    ['no verb', [], {}],
    ['another verb', [canary], {}],
    ['a log level that is none', ['start'], { CUSTODY_LOG: canary }],
    ['a containment that cannot be chosen', ['start'], { CUSTODY_CONTAINMENT: canary }],
    ['an unknown variable', ['start'], { CUSTODY_TOKNE: canary }],
  ])('is refused in one line that holds no value: %s', (_, argv, environment) => {
    const error = refusal(argv, environment);
    expect(error.code).toBe('bad_request');
    expect(error.publicMessage).not.toContain(canary);
    expect(error.publicMessage).not.toContain('\n');
    expect(error.next).toBe('see custody agent --help');
  });

  it('an unknown CUSTODY_ variable is fatal and named; any other is nobody’s business', () => {
    expect(refusal(['start'], { CUSTODY_SOCKETS: 'x' }).publicMessage).toMatch(
      /^CUSTODY_SOCKETS is not a variable of custody/,
    );
    expect(() => readConfig(['start'], { ...home, CUSTODIAN: 'x', custody_x: 'x' })).not.toThrow();
  });
});

it('a secret in a structured log shows nothing', () => {
  const lines: string[] = [];
  const secret = Secret.fromUtf8(canary);
  const log = pino({ base: null }, { write: (line: string) => void lines.push(line) });
  log.info({ secret, deep: { list: [secret] } }, 'released');
  log.error({ err: new Error('failed', { cause: secret }) });
  expect(lines.join('')).toContain('[secret]');
  expect(lines.join('')).not.toContain(canary);
});
