// Owns the proof that oxlint's rules with types really run: a floating promise is planted, and must be found.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { root } from '../architecture/tree.ts';

const config = readFileSync(join(root, '.oxlintrc.json'), 'utf8');
let folder = '';

beforeAll(() => {
  // Inside of the project, for its packages and compiler settings; where git does not look.
  mkdirSync(join(root, '.cache'), { recursive: true });
  folder = mkdtempSync(join(root, '.cache', 'lint-'));
  writeFileSync(
    join(folder, 'tsconfig.json'),
    '{ "extends": "../../tsconfig.base.json", "include": ["*.ts"] }',
  );
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The rules that fire on `source` under `settings`, which apply to ignored folders too. */
function fired(source: string, settings: string): string {
  writeFileSync(join(folder, 'planted.ts'), source);
  writeFileSync(join(folder, '.oxlintrc.json'), settings.replace(/^ *"ignorePatterns".*\n/m, ''));
  const oxlint = join(root, 'node_modules', '.bin', 'oxlint');
  try {
    return execFileSync(oxlint, ['-c', '.oxlintrc.json', '-f', 'unix', 'planted.ts'], {
      cwd: folder,
      encoding: 'utf8',
    });
  } catch (error) {
    return String((error as { stdout?: unknown }).stdout);
  }
}

const floating =
  'export async function later(): Promise<void> {}\nexport function now(): void {\n  later();\n}\n';

test('a planted floating promise is an error', () => {
  expect(fired(floating, config)).toContain('planted.ts:3:3: Promises must be awaited');
});

test('without typeAware it would pass in silence, which is why the setting is watched here', () => {
  expect(fired(floating, config.replace('"typeAware": true', '"typeAware": false'))).toBe('');
});

test.each([
  [
    'typescript(no-misused-promises)',
    'export const f = (g: () => Promise<void>): void => void [1].forEach(g);',
  ],
  ['typescript(await-thenable)', 'export const f = async (): Promise<number> => await 1;'],
  [
    'typescript(no-unsafe-assignment)',
    "export const f = (): void => {\n  const a = JSON.parse('1');\n  void a;\n};",
  ],
  [
    'typescript(switch-exhaustiveness-check)',
    "export function f(x: 'a' | 'b'): void {\n  switch (x) {\n    case 'a':\n      return;\n  }\n}",
  ],
  ['typescript(only-throw-error)', "export const f = (): never => {\n  throw 'words';\n};"],
  ['typescript(no-explicit-any)', 'export const f = (x: any): void => void x;'],
  ['typescript(consistent-type-imports)', "import { Stats } from 'node:fs';\nexport type S = Stats;"],
  ['eslint(eqeqeq)', 'export const f = (x: number): boolean => x == 1;'],
  ['eslint(no-console)', "console.log('x');"],
  ['oxc(no-barrel-file)', "export * from './other.ts';"],
  ['vitest(no-restricted-vi-methods)', "import { vi } from 'vitest';\nvi.mock('./x.ts');"],
])('%s is in force', (rule, source) => {
  writeFileSync(join(folder, 'other.ts'), 'export const other = 1;\n');
  expect(fired(source, config)).toContain(`Error/${rule}`);
});
