// Owns the bans of the architecture: each reads a tree and tells every violation of it, with the reason.
import { posix } from 'node:path';
import { allowedPaths, declaredUnimported, forbiddenFolders, owned, pureOfNode, rooms } from './rooms.ts';
import { syntaxOf, type Syntax } from './syntax.ts';
import type { Tree } from './tree.ts';

export interface Violation {
  readonly ban: Ban;
  /** `libs/core/src/secret.ts:2` */
  readonly at: string;
  readonly what: string;
  readonly why: string;
}

export const bans = [
  'a folder outside the table',
  'a room outside its list',
  'an app imported',
  'a package of another room',
  'testkit outside tests',
  'a file that exports does not list',
  'a path into another room',
  'more of Node than a pure room needs',
  'the environment outside config.ts and main.ts',
  'a native addon outside the keeper',
  'a barrel',
  'a folder named for nothing',
  'a dependency that is not declared',
  'a declared dependency that nothing imports',
  'references that disagree with dependencies',
  'an exports map that misleads',
  'set-up that needs what it sets up',
] as const;
export type Ban = (typeof bans)[number];

export interface Survey {
  readonly violations: readonly Violation[];
  /** How much was read: a survey of nothing finds nothing. */
  readonly sources: number;
  readonly imports: number;
}

interface SourceFile {
  readonly path: string;
  /** `libs/core`; undefined for files of the top level, `deploy/` and `test/`. */
  readonly room: string | undefined;
  /** `src`, `test` or another folder; '' directly in the room. */
  readonly part: string;
  readonly syntax: Syntax;
}

interface Manifest {
  readonly name?: string;
  readonly exports?: Readonly<Record<string, unknown>>;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
}

const scope = '@custody/';

/** Everything the tree does that the table forbids. */
export function survey(tree: Tree): Survey {
  const sources = tree.files.filter(isSource).map((path) => read(tree, path));
  const roomNames = [...new Set(tree.files.map(roomOf).filter((room) => room !== undefined))];
  const told: Violation[] = [];
  const tell: Tell = (ban, at, what, why) => void told.push({ ban, at, what, why });
  for (const source of sources) {
    for (const { specifier, line } of source.syntax.imports) {
      const at = `${source.path}:${line}`;
      const seen: Seen = { source, specifier, at, tell };
      if (specifier.startsWith('.')) relativeImport(seen);
      else if (specifier.startsWith(scope)) roomImport(seen, tree);
      else packageImport(seen);
    }
    fileRules(source, tell);
  }
  folderRules(tree, roomNames, tell);
  for (const room of roomNames) manifestRules(tree, room, sources, tell);
  return {
    violations: told,
    sources: sources.length,
    imports: sources.reduce((sum, { syntax }) => sum + syntax.imports.length, 0),
  };
}

type Tell = (ban: Ban, at: string, what: string, why: string) => void;

interface Seen {
  readonly source: SourceFile;
  readonly specifier: string;
  readonly at: string;
  readonly tell: Tell;
}

function roomImport({ source, specifier, at, tell }: Seen, tree: Tree): void {
  const [, short = '', ...rest] = specifier.split('/');
  const target = dirOf(short, tree);
  const isTest = source.room === undefined || source.part === 'test';
  if (target.startsWith('apps/')) {
    tell('an app imported', at, specifier, 'an app is started as a program: what a test imports nobody runs');
    return;
  }
  const listed = manifestOf(tree, target)?.exports ?? {};
  if (!Object.hasOwn(listed, `./${rest.join('/')}`)) {
    const why = 'what a lib offers is what its exports list, so that the rest can change';
    tell('a file that exports does not list', at, specifier, why);
  }
  if (isTest || source.room === undefined) return;
  if (short === 'testkit') {
    tell('testkit outside tests', at, specifier, 'clocks that stand still have no place in a program');
    return;
  }
  const own = rooms[source.room];
  if (own !== undefined && target !== source.room && !own.rooms.includes(short)) {
    tell('a room outside its list', at, specifier, own.why);
  }
}

function packageImport({ source, specifier, at, tell }: Seen): void {
  if (source.room === undefined) {
    if (source.path.startsWith('deploy/') && !specifier.startsWith('node:')) {
      tell('set-up that needs what it sets up', at, specifier, 'it runs before anything is installed');
    }
    return;
  }
  if (source.part !== 'src') return;
  if (specifier.startsWith('node:')) {
    const allowed = pureOfNode[source.room];
    if (allowed !== undefined && !allowed.includes(specifier)) {
      const why = 'files, sockets, clocks and chance are arguments of a pure room';
      tell('more of Node than a pure room needs', at, specifier, why);
    }
    return;
  }
  const name = packageOf(specifier);
  const owner = owned.find(({ packages }) => packages.test(name));
  if (owner !== undefined && owner.by !== source.room) {
    tell('a package of another room', at, `${specifier}, which is for ${owner.by}`, owner.why);
  }
}

function relativeImport({ source, specifier, at, tell }: Seen): void {
  const target = posix.join(posix.dirname(source.path), specifier);
  const room = roomOf(target);
  if (room === undefined || room === source.room) return;
  if (`${source.path} ${specifier}` in allowedPaths) return;
  if (room.startsWith('apps/')) {
    tell('an app imported', at, specifier, 'an app is started as a program: what a test imports nobody runs');
  } else {
    const why = 'a lib is imported by its name, or its exports list means nothing';
    tell('a path into another room', at, specifier, why);
  }
}

function fileRules({ path, room, part, syntax }: SourceFile, tell: Tell): void {
  if (room === undefined || part !== 'src') return;
  if (room !== 'libs/testkit' && !/\/(config|main)\.ts$/.test(path)) {
    const why = 'what a program is told from outside is read and checked in one place';
    for (const line of syntax.environment) {
      tell('the environment outside config.ts and main.ts', `${path}:${line}`, 'process.env', why);
    }
  }
  if (room !== 'libs/keeper') {
    const why = 'native code can read any memory of its process; there is one place of it, and it is small';
    for (const line of syntax.addons) {
      tell('a native addon outside the keeper', `${path}:${line}`, 'a .node file', why);
    }
  }
  const why = 'a file that hands on the names of others hides who depends on what';
  for (const line of syntax.reexports) tell('a barrel', `${path}:${line}`, 'export … from', why);
  if (posix.basename(path, '.ts') === 'index') tell('a barrel', path, 'index.ts', why);
}

function folderRules(tree: Tree, roomNames: readonly string[], tell: Tell): void {
  for (const room of roomNames) {
    if (rooms[room] !== undefined) continue;
    const why = 'a room begins as a row: what it holds and what it may import';
    tell('a folder outside the table', room, 'no row in test/architecture/rooms.ts', why);
  }
  const folders = new Set(tree.files.flatMap((path) => parents(path)));
  for (const folder of folders) {
    if (!forbiddenFolders.test(posix.basename(folder))) continue;
    const why = 'a name that fits everything tells a stranger nothing about where a line belongs';
    tell('a folder named for nothing', folder, posix.basename(folder), why);
  }
}

function manifestRules(tree: Tree, room: string, sources: readonly SourceFile[], tell: Tell): void {
  const manifest = manifestOf(tree, room);
  if (manifest === undefined) return;
  const at = `${room}/package.json`;
  const declared = new Set(Object.keys(manifest.dependencies ?? {}));
  const own = sources.filter((source) => source.room === room);
  const imported = new Set(own.filter(({ part }) => part !== 'test').flatMap(packagesOf));
  imported.delete(manifest.name ?? '');
  for (const name of imported) {
    if (declared.has(name) || name === 'vitest') continue;
    const why = 'it is found only as long as somebody else asks npm for it';
    tell('a dependency that is not declared', at, name, why);
  }
  for (const name of declared) {
    const used = imported.has(name) || `${room} ${name}` in declaredUnimported;
    if (used) continue;
    const why = 'what is installed without need is read by nobody and trusted by everybody';
    tell('a declared dependency that nothing imports', at, name, why);
  }
  for (const name of declared) {
    const short = name.startsWith(scope) ? name.slice(scope.length) : undefined;
    const row = rooms[room];
    if (short === undefined || row === undefined || row.rooms.includes(short)) continue;
    tell('a room outside its list', at, name, row.why);
  }
  referenceRules(tree, room, declared, tell);
  exportRules(tree, room, manifest, tell);
}

function referenceRules(tree: Tree, room: string, declared: ReadonlySet<string>, tell: Tell): void {
  const path = `${room}/tsconfig.json`;
  if (!tree.files.includes(path)) return;
  const config = JSON.parse(tree.text(path)) as {
    readonly references?: readonly { readonly path: string }[];
  };
  const references = (config.references ?? []).map((reference) => posix.join(room, reference.path));
  const needed = [...declared]
    .filter((name) => name.startsWith(scope))
    .map((name) => dirOf(name.slice(scope.length), tree));
  const why = 'tsc -b builds in the order of references, npm and nx in that of dependencies';
  for (const name of needed.filter((dir) => !references.includes(dir))) {
    tell('references that disagree with dependencies', path, `${name} is missing`, why);
  }
  for (const name of references.filter((dir) => !needed.includes(dir))) {
    tell('references that disagree with dependencies', path, `${name} is no dependency`, why);
  }
}

function exportRules(tree: Tree, room: string, manifest: Manifest, tell: Tell): void {
  for (const [key, value] of Object.entries(manifest.exports ?? {})) {
    const name = key.replace(/^\.\/?/, '');
    const wanted = {
      'custody-source': `./src/${name}.ts`,
      types: `./dist/${name}.d.ts`,
      default: `./dist/${name}.js`,
    };
    const sound = name !== '' && tree.files.includes(`${room}/src/${name}.ts`);
    if (sound && JSON.stringify(value) === JSON.stringify(wanted)) continue;
    const why = 'tests read sources, programs read dist: a key must mean one file in both';
    tell('an exports map that misleads', `${room}/package.json`, key, why);
  }
}

function packagesOf({ syntax }: SourceFile): string[] {
  return syntax.imports
    .map(({ specifier }) => specifier)
    .filter((specifier) => !specifier.startsWith('.') && !specifier.startsWith('node:'))
    .map(packageOf);
}

function packageOf(specifier: string): string {
  const parts = specifier.split('/');
  return parts.slice(0, specifier.startsWith('@') ? 2 : 1).join('/');
}

function isSource(path: string): boolean {
  return /\.(ts|mts|mjs|js)$/.test(path) && /^(libs|apps|deploy|test)\//.test(path);
}

function read(tree: Tree, path: string): SourceFile {
  const room = roomOf(path);
  const inside = room === undefined ? [] : path.slice(room.length + 1).split('/');
  const part = inside.length > 1 ? (inside[0] ?? '') : '';
  return { path, room, part, syntax: syntaxOf(path, tree.text(path)) };
}

function roomOf(path: string): string | undefined {
  return /^(libs|apps)\/[^/]+(?=\/)/.exec(path)?.[0];
}

function dirOf(short: string, tree: Tree): string {
  return tree.files.includes(`apps/${short}/package.json`) ? `apps/${short}` : `libs/${short}`;
}

function manifestOf(tree: Tree, room: string): Manifest | undefined {
  const path = `${room}/package.json`;
  return tree.files.includes(path) ? (JSON.parse(tree.text(path)) as Manifest) : undefined;
}

function parents(path: string): string[] {
  const parts = path.split('/').slice(0, -1);
  return parts.map((_, index) => parts.slice(0, index + 1).join('/'));
}
