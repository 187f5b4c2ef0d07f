// Owns the proof that a manifest holds no value, says where it is wrong, and never shows what stands there.
import { CustodyError } from '@custody/core/errors';
import { describe, expect, it } from 'vitest';
import { readManifest } from '../src/manifest.ts';

function refusal(text: string | Uint8Array): CustodyError {
  try {
    readManifest(Buffer.from(text), 'custody.json');
  } catch (error) {
    if (error instanceof CustodyError) return error;
    throw error;
  }
  throw new Error('it was taken');
}

const whole = {
  $schema: './custody.schema.json',
  version: 1,
  env: { A: 'custody://prod/stripe/api_key' },
  file: {},
  fifo: { B: 'custody://prod/x/y' },
  fd: { C: 'custody://prod/x/y' },
  clean: true,
  keep: ['CI', 'LC_*'],
  scrub: false,
  scrubAlso: ['ACME_*'],
  ttl: '20m',
  reason: 'the tests',
  onExit: 'wait',
  commands: { 'npm publish': { env: { NPM_TOKEN: 'custody://ci/npm/token' }, ttl: '2m' } },
};

it('is taken whole', () => {
  expect(readManifest(Buffer.from(JSON.stringify(whole)), 'custody.json')).toEqual(whole);
});

describe('a manifest is refused', () => {
  it.each([
    [{ version: 2 }, 'version: '],
    [{}, 'version: '],
    [{ version: 1, envs: {} }, 'unknown key (envs)'],
    [{ version: 1, env: { A: 'hunter2' } }, 'env.A: is not a reference'],
    [{ version: 1, env: { A: 'custody://x' } }, 'env.A: is not a reference'],
    [{ version: 1, fd: { 'A-B': 'custody://a/b' } }, 'fd.A-B: '],
    [{ version: 1, keep: ['A=hunter2'] }, 'keep.0: is not a name'],
    [{ version: 1, ttl: '8d' }, 'ttl: is not a duration'],
    [{ version: 1, onExit: 'later' }, 'onExit: '],
    [{ version: 1, commands: { x: { commands: {} } } }, 'commands.x: unknown key (commands)'],
    [
      {
        version: 1,
        env: Object.fromEntries(Array.from({ length: 65 }, (_, n) => [`A${n}`, 'custody://a/b'])),
      },
      'env: has more than 64',
    ],
  ])('%j', (content, why) => {
    const error = refusal(JSON.stringify(content));
    expect(error.code).toBe('bad_request');
    expect(error.publicMessage).toMatch(/^custody\.json: /);
    expect(error.publicMessage).toContain(why);
    expect(error.publicMessage).not.toContain('hunter2');
  });

  it('that is no JSON, with the line and the column, and nothing of it', () => {
    const at = (text: string) => refusal(text).publicMessage;
    expect(at('{\n  "version": 1,\n  "env": hunter2\n}\n')).toBe(
      'custody.json: line 3, column 10: not valid JSON',
    );
    expect(at('{\n  "version": 1,\n}')).toBe('custody.json: line 3, column 1: not valid JSON');
    expect(at('{"a": "hunter\n2"}')).toBe('custody.json: line 1, column 7: not valid JSON');
    expect(at('{"a": [1, 2]')).toBe('custody.json: line 1, column 13: not valid JSON');
    expect(at('')).toBe('custody.json: line 1, column 1: not valid JSON');
  });

  it('that is not UTF-8, or too large', () => {
    expect(refusal(Buffer.from([0x7b, 0xff, 0x7d])).code).toBe('bad_utf8');
    expect(refusal(' '.repeat(65_537)).publicMessage).toContain('larger than 65536 bytes');
  });
});
