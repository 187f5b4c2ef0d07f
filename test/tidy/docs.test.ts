// Owns the proof that what the documents point at exists, and that every decision is in the list.
import { posix } from 'node:path';
import { keptNames, scrubbedNames } from '@custody/core/ambient';
import { expect, test } from 'vitest';
import { checkout, planted, type Tree } from '../architecture/tree.ts';

const tree = checkout();

/** Links to files of the tree that are not there. */
function deadLinks(among: Tree): string[] {
  return among.files
    .filter((path) => path.endsWith('.md'))
    .flatMap((path) =>
      [...among.text(path).matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)]
        .map(([, link = '']) => link)
        .filter((link) => !/^[a-z]+:/.test(link))
        .map((link) => ({ path, link, target: posix.join(posix.dirname(path), link) }))
        .filter(({ target }) => !among.files.some((file) => file === target || file.startsWith(`${target}/`)))
        .map(({ link }) => `${path}: ${link}`),
    );
}

test('every link to a file leads to one', () => {
  expect(deadLinks(tree)).toEqual([]);
  expect(deadLinks(planted(tree, { 'docs/planted.md': 'see [it](spec/gone.md#part)' }))).toEqual([
    'docs/planted.md: spec/gone.md',
  ]);
});

test('every decision has a number of its own and a line in the list', () => {
  const decisions = tree.files
    .filter((path) => /^docs\/adr\/\d{4}-/.test(path))
    .map((path) => posix.basename(path));
  expect(decisions.length).toBeGreaterThan(3);
  expect(new Set(decisions.map((name) => name.slice(0, 4))).size).toBe(decisions.length);
  const list = tree.text('docs/adr/README.md');
  expect(decisions.filter((name) => !list.includes(`(${name})`))).toEqual([]);
});

test('the licence is Apache-2.0, in the file and in every package', () => {
  expect(tree.text('LICENSE')).toContain('Version 2.0, January 2004');
  const packages = tree.files.filter((path) => posix.basename(path) === 'package.json');
  expect(packages.length).toBeGreaterThan(10);
  const licences = packages.map((path) => (JSON.parse(tree.text(path)) as { license?: string }).license);
  expect(licences.filter((license) => license !== 'Apache-2.0')).toEqual([]);
});

test('the names that --clean keeps and --scrub leaves out are those of the document', () => {
  const listed = (begin: string, end: string): string[] => {
    const text = tree.text('docs/delivery.md');
    const part = text.slice(text.indexOf(begin), text.indexOf(end, text.indexOf(begin)));
    return [...part.slice(part.indexOf('\n\n')).matchAll(/`([^`]+)`/g)].map(([, name = '']) => name);
  };
  expect(listed('`--clean` starts', '`--scrub` leaves')).toEqual(keptNames);
  expect(listed('`--scrub` leaves', '\nIn a pattern')).toEqual(scrubbedNames);
});
