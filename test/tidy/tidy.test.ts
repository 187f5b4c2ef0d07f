// Owns the proof that the tree is tidy, that each rule finds what it forbids, and that each exception is still needed.
import { expect, test } from 'vitest';
import { checkout, planted, type Tree } from '../architecture/tree.ts';
import { rules, type Rule } from './rules.ts';

const tree = checkout();

function findings(rule: Rule, among: Tree, paths: readonly string[]): string[] {
  return paths
    .filter((path) => rule.about(path))
    .flatMap((path) =>
      rule.find(among.text(path), path, among).map(({ line, what }) => `${path}:${line}: ${what}`),
    );
}

const excepted = (rule: Rule, path: string): boolean => Object.hasOwn(rule.except ?? {}, path);

test('the list of files is the tree: an empty one would be tidy', () => {
  const count = (pattern: RegExp): number => tree.files.filter((path) => pattern.test(path)).length;
  expect(count(/\.ts$/)).toBeGreaterThan(80);
  expect(count(/\.[ch]$/)).toBeGreaterThan(10);
  expect(count(/\.mjs$/)).toBeGreaterThan(2);
  expect(count(/\.md$/)).toBeGreaterThan(5);
});

test.each(rules.map((rule) => [rule.name, rule] as const))('%s', (_name, rule) => {
  const paths = tree.files.filter((path) => !excepted(rule, path));
  expect(paths.filter((path) => rule.about(path)).length, 'files looked at').toBeGreaterThan(0);
  expect({ why: rule.why, found: findings(rule, tree, paths) }).toEqual({ why: rule.why, found: [] });
});

test.each(rules.map((rule) => [rule.name, rule] as const))('finds a breach of: %s', (_name, rule) => {
  expect(rule.plant.length).toBeGreaterThan(0);
  for (const { path, text, line } of rule.plant) {
    const found = findings(rule, planted(tree, { [path]: text }), [path]);
    expect({ text, found: found.map((words) => words.split(': ')[0]) }).toEqual({
      text,
      found: [`${path}:${line}`],
    });
  }
});

test('every exception still stands for a breach, and gives its reason', () => {
  for (const rule of rules) {
    for (const [path, why] of Object.entries(rule.except ?? {})) {
      expect(why.length).toBeGreaterThan(30);
      expect({ rule: rule.name, path, found: findings(rule, tree, [path]).length > 0 }).toMatchObject({
        found: true,
      });
    }
  }
});
