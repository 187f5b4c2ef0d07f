// Owns the proof that a Secret shows its bytes to nobody who does not say reveal, and forgets them when wiped.
import { Console } from 'node:console';
import { Writable } from 'node:stream';
import { format, inspect } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Secret } from '../src/secret.ts';

const value = 'sk_live_canary_0123456789';

function capture(): { stream: Writable; text: () => string } {
  const chunks: string[] = [];
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(chunk.toString());
      done();
    },
  });
  return { stream, text: () => chunks.join('') };
}

describe('a secret shows nothing', () => {
  const secret = Secret.fromUtf8(value);
  const wrapped = { secret, list: [secret], deep: { map: new Map([['k', secret]]) } };

  it.each<[string, () => string]>([
    ['toString', () => secret.toString()],
    ['String()', () => String(secret)],
    ['a template', () => `<${secret.toString()}>`],
    ['concatenation', () => ['x', secret].join('')],
    ['JSON', () => JSON.stringify(wrapped)],
    ['inspect', () => inspect(wrapped, { depth: 10, showHidden: true })],
    [
      'inspect with getters',
      () => inspect(secret, { getters: true, customInspect: false, showHidden: true }),
    ],
    ['format %s', () => format('%s %o %O %j', secret, secret, secret, secret)],
    ['its keys', () => JSON.stringify([Reflect.ownKeys(secret), Object.entries(secret)])],
    ['an error made of it', () => inspect(new Error(`bad ${secret.toString()}`, { cause: wrapped }))],
  ])('to %s', (_, show) => {
    const shown = show();
    expect(shown).not.toContain(value);
    expect(shown).not.toContain(Buffer.from(value).toString('base64'));
    // Bytes as a list of numbers would be as good as the text.
    expect(shown).not.toContain(String(Buffer.from(value)[0]) + ', ' + String(Buffer.from(value)[1]));
  });

  it('to console.log', () => {
    const out = capture();
    new Console(out.stream).log(secret, wrapped, '%s', secret);
    expect(out.text()).toContain('[secret]');
    expect(out.text()).not.toContain(value);
  });

  it('to a copy: a structured clone has nothing of it', () => {
    expect(inspect(structuredClone({ secret }), { depth: 9 })).not.toContain(value);
  });
});

describe('a wiped secret', () => {
  it('has overwritten the very bytes that were revealed', () => {
    const secret = Secret.fromUtf8(value);
    const bytes = secret.reveal();
    secret.wipe();
    expect(bytes.every((byte) => byte === 0)).toBe(true);
    expect(bytes.byteLength).toBe(value.length);
  });

  it('refuses to be revealed, without a word of what it was', () => {
    const secret = Secret.fromUtf8(value);
    secret.wipe();
    expect(() => secret.reveal()).toThrow(/^reveal secret: it was wiped; ask for it again$/);
    expect(() => secret.revealUtf8()).toThrow(/wiped/);
  });

  it('is what is left when its scope ends', () => {
    let bytes: Uint8Array;
    {
      using secret = Secret.fromUtf8(value);
      bytes = secret.reveal();
    }
    expect(Buffer.from(bytes).toString()).toBe('\0'.repeat(value.length));
  });

  it('may be wiped again', () => {
    const secret = Secret.fromUtf8(value);
    secret.wipe();
    expect(() => secret.wipe()).not.toThrow();
  });
});

it('gives back any bytes, and any text, as they were', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      const secret = new Secret(Uint8Array.from(bytes));
      expect(secret.reveal()).toEqual(bytes);
      expect(secret.byteLength).toBe(bytes.byteLength);
    }),
  );
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (text) => {
      expect(Secret.fromUtf8(text).revealUtf8()).toBe(text);
    }),
  );
});

it('refuses to give broken UTF-8 as text', () => {
  expect(() => new Secret(Uint8Array.of(0xc3, 0x28)).revealUtf8()).toThrow(TypeError);
});
