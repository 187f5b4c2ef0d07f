// Owns what the checks read: the files of this checkout, and the same with violations planted in memory.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';

export const root = join(import.meta.dirname, '..', '..');

const neverOurs = new Set(['.git', 'node_modules', 'dist', 'build', 'generated', '.cache', '.nx']);

export interface Tree {
  /** Paths from the top, with `/`. */
  readonly files: readonly string[];
  /** Throws for a path that is not in `files`. */
  text(path: string): string;
}

/** Every file that is tracked, or could be: `git ls-files` and what is not ignored; without git, a walk. */
export function checkout(): Tree {
  const files = existsSync(join(root, '.git')) ? listed() : walked(root);
  const texts = new Map<string, string>();
  return {
    files,
    text(path) {
      const known = texts.get(path);
      if (known !== undefined) return known;
      if (!files.includes(path)) throw new Error(`${path} is not in the tree`);
      const text = readFileSync(join(root, path), 'utf8');
      texts.set(path, text);
      return text;
    },
  };
}

/** `base` with these files added or replaced. */
export function planted(base: Tree, files: Readonly<Record<string, string>>): Tree {
  return {
    files: [...new Set([...base.files, ...Object.keys(files)])],
    text: (path) => files[path] ?? base.text(path),
  };
}

function listed(): string[] {
  const words = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: root,
    encoding: 'utf8',
  });
  // One that was removed and not yet committed is still listed; a folder is another repository's.
  return [...new Set(words.split('\0'))].filter(
    (path) => path !== '' && statSync(join(root, path), { throwIfNoEntry: false })?.isFile() === true,
  );
}

function walked(dir: string): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    if (neverOurs.has(entry.name)) return [];
    const path = join(dir, entry.name);
    return entry.isDirectory() ? walked(path) : [relative(root, path)];
  });
}
