// Owns the proof of the grammar of names and references: what is let in, what never is, and the round trip of a reference.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CustodyError } from '../src/errors.ts';
import {
  fieldNameBytesMax,
  hostNameBytesMax,
  secretPathBytesMax,
  secretPathDepthMax,
} from '../src/limits.ts';
import {
  foldersOf,
  isEnvironmentName,
  isFieldName,
  isHostName,
  isSecretPath,
  quote,
  requireSecretPath,
} from '../src/names.ts';
import { formatReference, isReference, parseReference } from '../src/reference.ts';

const segment = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$/);
const path = fc
  .array(segment, { minLength: 1, maxLength: secretPathDepthMax })
  .map((parts) => parts.join('/'));
const field = fc.stringMatching(/^[A-Za-z_][A-Za-z0-9_.-]{0,30}$/);
/** Anything that arrives: text, text of the grammar's own characters, and text with one character changed. */
const anything = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 80 }),
  fc.string({ unit: fc.constantFrom(...Array.from('ab9._-/: \\\0\n\t~%=é\u007f\u009b')), maxLength: 40 }),
);

describe('a secret path', () => {
  it.each([
    ['', 'empty'],
    ['.', 'this folder'],
    ['..', 'the folder above'],
    ['../prod', 'the folder above'],
    ['prod/../root', 'the folder above, inside'],
    ['prod/..', 'the folder above, last'],
    ['prod/./x', 'this folder, inside'],
    ['/prod', 'absolute'],
    ['prod/', 'an empty last segment'],
    ['prod//x', 'an empty segment'],
    ['.hidden/x', 'a leading dot'],
    ['-x', 'a leading hyphen'],
    ['prod\\x', 'a backslash'],
    ['prod x', 'a space'],
    ['prod/x\0', 'a NUL'],
    ['prod/x\n', 'a line feed'],
    ['prod/\u001b[31m', 'an escape'],
    ['prod/é', 'a letter beyond ASCII'],
    ['prod/%2e%2e', 'percent signs'],
    ['prod/*', 'a wildcard'],
    ['prod"x', 'a quote'],
  ])('%j is refused: %s', (text) => {
    expect(isSecretPath(text)).toBe(false);
    expect(() => requireSecretPath(text)).toThrow(CustodyError);
  });

  it.each(['a', 'prod/stripe', 'A.b_c-d/9', 'x..y', 'a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p'])(
    '%j is taken',
    (text) => {
      expect(requireSecretPath(text)).toBe(text);
    },
  );

  it('has bounds: length and depth', () => {
    expect(isSecretPath('a'.repeat(secretPathBytesMax))).toBe(true);
    expect(isSecretPath('a'.repeat(secretPathBytesMax + 1))).toBe(false);
    expect(isSecretPath(Array.from({ length: secretPathDepthMax + 1 }, () => 'a').join('/'))).toBe(false);
  });

  it('that is taken is printable ASCII and cannot leave its folder', () => {
    fc.assert(
      fc.property(fc.oneof(path, anything), (text) => {
        fc.pre(isSecretPath(text));
        expect(text).toMatch(/^[!-~]+$/);
        expect(text.split('/')).not.toContain('..');
        expect(new URL(text, 'file:///base/').pathname).toBe(`/base/${text}`);
      }),
    );
  });

  it('lies in every folder above it, outermost first, and each is a path', () => {
    expect(foldersOf('a/b/c')).toEqual(['a', 'a/b']);
    expect(foldersOf('a')).toEqual([]);
    fc.assert(
      fc.property(path, (text) => {
        const folders = foldersOf(text);
        expect(folders).toHaveLength(text.split('/').length - 1);
        for (const folder of folders)
          expect(isSecretPath(folder) && text.startsWith(`${folder}/`)).toBe(true);
      }),
    );
  });
});

describe('other names', () => {
  it.each(['', '-a', 'a-', 'A', 'a.b', 'a_b', 'a b', 'é', 'a\n', '*', '>', 'a'.repeat(hostNameBytesMax + 1)])(
    '%j is no host name',
    (text) => expect(isHostName(text)).toBe(false),
  );
  it.each(['a', '0', 'a-b', 'a--b', 'a'.repeat(hostNameBytesMax)])('%j is a host name', (text) =>
    expect(isHostName(text)).toBe(true),
  );
  it.each(['', '9a', '-a', '.a', 'a b', 'a/b', 'a=b', 'a\0', 'é', 'a'.repeat(fieldNameBytesMax + 1)])(
    '%j is no field name',
    (text) => expect(isFieldName(text)).toBe(false),
  );
  it.each(['', '9A', 'A-B', 'A=B', 'A B', 'A\n', 'Ä', 'A'.repeat(257)])('%j is no variable', (text) =>
    expect(isEnvironmentName(text)).toBe(false),
  );
  it.each(['_', 'PATH', 'a1_'])('%j is a variable', (text) => expect(isEnvironmentName(text)).toBe(true));
});

describe('a reference', () => {
  it('survives being written and read', () => {
    fc.assert(
      fc.property(path, field, (at, name) => {
        fc.pre(at.length <= secretPathBytesMax);
        const reference = { path: at, field: name };
        expect(parseReference(formatReference(reference))).toEqual(reference);
      }),
    );
  });

  it('is either what it says, or refused with bad_reference: no text does anything else', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          anything,
          anything.map((rest) => `custody://${rest}`),
        ),
        (text) => {
          try {
            expect(formatReference(parseReference(text))).toBe(text);
          } catch (error) {
            expect(error).toBeInstanceOf(CustodyError);
            expect((error as CustodyError).code).toBe('bad_reference');
            expect((error as CustodyError).publicMessage).not.toMatch(/\p{Cc}/u);
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  it.each([
    'custody://',
    'custody:///',
    'custody://prod',
    'custody://prod/',
    'custody:///field',
    'custody://../etc/passwd',
    'custody://prod/../x/field',
    'custody://prod//field',
    'custody://prod/x/fie ld',
    'custody://prod/x/field\0',
    'custody://prod/x/field?version=1',
    'CUSTODY://prod/x/field',
    ' custody://prod/x/field',
    'op://prod/x/field',
    'plain',
  ])('%j is refused', (text) => {
    expect(() => parseReference(text)).toThrow(expect.objectContaining({ code: 'bad_reference' }) as Error);
  });

  it('is told from a plain value by its scheme alone', () => {
    expect(isReference('custody://anything at all')).toBe(true);
    expect(isReference('https://prod/x/field')).toBe(false);
  });
});

it('what is quoted is bounded and without control characters', () => {
  fc.assert(
    fc.property(fc.oneof(anything, fc.string({ unit: 'binary', maxLength: 400 })), (text) => {
      const quoted = quote(text);
      expect(quoted.length).toBeLessThanOrEqual(81 * 6 + 2);
      expect(quoted).not.toMatch(/\p{Cc}/u);
      expect(JSON.parse(quoted)).toBe(text.length > 80 ? `${text.slice(0, 80)}…` : text);
    }),
  );
});
