// Owns the rules of tidiness: each looks at one file of a tree and tells the lines that break it.
import { syntaxOf } from '../architecture/syntax.ts';
import type { Tree } from '../architecture/tree.ts';

export interface Finding {
  readonly line: number;
  readonly what: string;
}

export interface Rule {
  readonly name: string;
  readonly why: string;
  /** The files it is about. */
  readonly about: (path: string) => boolean;
  readonly find: (text: string, path: string, tree: Tree) => readonly Finding[];
  /** Paths that may break it, each with its reason. */
  readonly except?: Readonly<Record<string, string>>;
  /** For each file planted, the line where it must be found. */
  readonly plant: readonly { readonly path: string; readonly text: string; readonly line: number }[];
}

const fileLinesMax = 600;
const functionLinesMax = 120;
const lineCharactersMax = 130;

const isTypeScript = (path: string): boolean => /\.(ts|mts)$/.test(path);
const isScript = (path: string): boolean => /\.(ts|mts|mjs|js)$/.test(path);
const isNative = (path: string): boolean => /\.[ch]$/.test(path);
const isSource = (path: string): boolean => isScript(path) || isNative(path);
const isTest = (path: string): boolean => /(^|\/)test\//.test(path) || path.startsWith('libs/testkit/');
const isText = (path: string): boolean =>
  !/(^|\/)(vectors|golden)\//.test(path) && path !== 'package-lock.json';

const longName = 'a'.repeat(lineCharactersMax);
const manyLines = (count: number): string => '\n'.repeat(count);
/** Written so that this file does not break its own rules. */
const glue = (...parts: readonly string[]): string => parts.join('');

export const rules: readonly Rule[] = [
  {
    name: 'a file says first what it owns',
    why: 'a stranger must know where a line belongs',
    about: (path) => isSource(path) && !isTest(path) && !path.endsWith('.h'),
    find: (text) =>
      /^(\/\/|\/\*) Owns \S/.test(text) ? [] : [{ line: 1, what: text.split('\n', 1)[0] ?? '' }],
    plant: [
      { path: 'libs/core/src/planted.ts', text: 'export const x = 1;\n', line: 1 },
      { path: 'deploy/planted.mjs', text: '// Makes things.\n', line: 1 },
      { path: 'libs/keeper/native/planted.c', text: '#include <stdio.h>\n/* Owns it. */\n', line: 1 },
    ],
  },
  {
    name: 'a file fits into a head',
    why: `past ${fileLinesMax} lines it owns more than one thing`,
    about: isSource,
    find: (text) => {
      const lines = text.split('\n').length - 1;
      return lines > fileLinesMax ? [{ line: lines, what: `${lines} lines` }] : [];
    },
    except: {
      'libs/bus/src/nats-bus.ts':
        'one connection: its state is private to one class, and a part of it in another file would have to share that state',
      'libs/constellation/src/postgres.ts':
        'one server that must be found, started as another user, and ended however its starter dies: one thing, on three systems',
    },
    plant: [{ path: 'libs/bus/src/planted.ts', text: manyLines(fileLinesMax + 1), line: fileLinesMax + 1 }],
  },
  {
    name: 'a function fits onto a screen or two',
    why: `past ${functionLinesMax} lines nobody checks all of its paths`,
    about: (path) => isSource(path) && !isTest(path),
    find: (text, path) => longFunctions(path, text),
    plant: [
      { path: 'libs/bus/src/planted.ts', text: `\nconst f = () => {${manyLines(130)}};`, line: 2 },
      { path: 'libs/keeper/native/planted.c', text: `\nint f(void)\n{${manyLines(130)}}\n`, line: 3 },
    ],
  },
  {
    name: 'a line can be read without scrolling',
    why: `code and comments end by column ${lineCharactersMax}; one long message may pass it, since it is searched for`,
    about: isSource,
    find: (text) =>
      matching(text, (line) => withoutLongestLiteral(line).length > lineCharactersMax, 'too long'),
    plant: [
      { path: 'libs/bus/src/planted.ts', text: `\n// ${longName}\n`, line: 2 },
      { path: 'libs/keeper/native/planted.c', text: `int ${longName};\n`, line: 1 },
    ],
  },
  {
    name: 'time and chance are arguments',
    why: 'what takes them from the machine cannot be replayed by a test',
    about: (path) => isScript(path) && !isTest(path) && !/(^|\/)main\.ts$/.test(path),
    find: (text, path) =>
      syntaxOf(path, text).ambient.map((line) => ({ line, what: 'the machine’s clock or chance' })),
    except: {
      'libs/store/new-migration.mjs':
        'a tool that names a folder after the moment it was made, as Prisma does',
    },
    plant: [
      { path: 'libs/bus/src/planted.ts', text: '\nconst t = Date.now();', line: 2 },
      { path: 'libs/bus/src/planted.ts', text: 'const t = new Date();', line: 1 },
      { path: 'apps/cli/src/planted.ts', text: 'const n = Math.random();', line: 1 },
    ],
  },
  {
    name: 'a fake, not a mock',
    why: 'a fake keeps the contract of its real twin; a mock keeps whatever the test hopes',
    about: isTypeScript,
    find: (text, path) => syntaxOf(path, text).mocks.map((line) => ({ line, what: 'a mocked module' })),
    plant: [{ path: 'libs/bus/test/planted.test.ts', text: "\nvi.mock('../src/bus.ts');", line: 2 }],
  },
  {
    name: 'every test runs',
    why: 'a test left out still looks like a promise (a machine that cannot run one says so: runIf, skipIf)',
    about: isTypeScript,
    find: (text, path) => syntaxOf(path, text).leftOut.map((line) => ({ line, what: 'only, skip or todo' })),
    plant: [
      'it.only',
      'test.skip',
      'describe.only',
      'test.concurrent.skip',
      'it.todo',
      'it.skip.each([1])',
    ].map((call) => ({ path: 'libs/bus/test/planted.test.ts', text: `${call}('x', () => {});`, line: 1 })),
  },
  {
    name: 'nothing is left to be done',
    why: 'what is missing stands in the open list of work, where somebody decides',
    about: isText,
    find: (text) => matching(text, (line) => /\b(?:TO|FIX)(?:DO|ME)\b/.test(line), 'a note to oneself'),
    plant: [
      { path: 'libs/bus/src/planted.ts', text: glue('\n// TO', 'DO: later'), line: 2 },
      { path: 'docs/planted.md', text: glue('FIX', 'ME'), line: 1 },
    ],
  },
  {
    name: 'no pictures between the words',
    why: 'they say nothing that words do not, and terminals disagree about their width',
    about: (path) => isText(path) && !isTest(path),
    find: (text) => matching(text, (line) => /\p{Emoji_Presentation}|\u{fe0f}/u.test(line), 'an emoji'),
    plant: [{ path: 'docs/planted.md', text: `\n\n${String.fromCodePoint(0x1f680)}`, line: 3 }],
  },
  {
    name: 'no space at the end of a line',
    why: 'it is a change nobody meant',
    about: isText,
    find: (text) => matching(text, (line) => /[ \t\r]$/.test(line), 'trailing space'),
    plant: [{ path: 'deploy/planted.yml', text: 'a: 1\nb: 1 ', line: 2 }],
  },
  {
    name: 'no place of one machine',
    why: 'a path or an address that holds for its author only, and tells about him',
    about: isText,
    find: (text) =>
      matching(text, (line) => machinePaths.test(line) || registries.test(line), 'a machine’s own'),
    plant: [
      { path: 'docs/planted.md', text: glue('see /ro', 'ot/notes'), line: 1 },
      { path: 'docs/planted.md', text: glue('see /wo', 'rk/main'), line: 1 },
      { path: '.npmrc', text: glue('\nregi', 'stry=https://npm.inside.example.net/'), line: 2 },
      { path: 'deploy/planted.mjs', text: glue('// https://regi', 'stry.npmjs.org/x'), line: 1 },
      { path: 'deploy/planted.mjs', text: glue('// http://mirror.inside:48', '73/x'), line: 1 },
    ],
  },
  {
    name: 'no key that could open anything',
    why: 'a checkout is copied; what it holds is known to all',
    about: isText,
    find: (text) => matching(text, (line) => keys.some((key) => key.test(line)), 'looks like a key'),
    plant: [
      glue('AKIA', 'ABCDEFGHIJKLMNOP'),
      glue('ghp_', 'a'.repeat(36)),
      glue('sk_live_', 'a'.repeat(24)),
      glue('-----BEGIN ', 'PRIVATE KEY-----'),
      glue('SUA', 'B'.repeat(55)),
    ].map((text) => ({ path: 'docs/planted.md', text, line: 1 })),
  },
  {
    name: 'every bound bounds something',
    why: 'a number in limits.ts that nothing reads is a promise that nothing keeps',
    about: (path) => path === 'libs/core/src/limits.ts',
    find: (text, _path, tree) => unusedBounds(text, tree),
    plant: [{ path: 'libs/core/src/limits.ts', text: '\nexport const plantedBytesMax = 1;', line: 2 }],
  },
];

const machinePaths = /(?<![\w.*])\/(?:work|root|home\/(?!runner\b)[a-z][\w-]*|Users\/[A-Za-z][\w-]*)\//;
const registries =
  /registry\s*=\s*https?:|\bregistry\.[a-z0-9-]+\.[a-z]+|:\/\/[^/\s'"]+:4873|\bartifactory\b|\bverdaccio\b/;
const keys = [
  /\bAKIA[0-9A-Z]{16}\b/,
  /\bgh[pousr]_[A-Za-z0-9]{36}\b/,
  /\b[sr]k_live_[A-Za-z0-9]{16,}/,
  /\bxox[abp]-[A-Za-z0-9-]{10,}/,
  /-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----/,
  /\bS[UAOCNX][A-Z2-7]{56}\b/,
];

function matching(text: string, breaks: (line: string) => boolean, what: string): Finding[] {
  return text.split('\n').flatMap((line, index) => (breaks(line) ? [{ line: index + 1, what }] : []));
}

/** A message, a template or a pattern cannot be broken without being harder to find. */
function withoutLongestLiteral(line: string): string {
  const literals =
    line.match(/'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`|\/(?:[^/\\]|\\.)+\/[a-z]*/g) ?? [];
  const longest = literals.reduce((most, literal) => (literal.length > most.length ? literal : most), '');
  return /^\s*(\/\/|\*|\/\*)/.test(line) ? line : line.replace(longest, '');
}

function longFunctions(path: string, text: string): Finding[] {
  const spans = isNative(path) ? nativeFunctions(text) : syntaxOf(path, text).functions;
  return spans
    .filter(({ lines }) => lines > functionLinesMax)
    .map(({ line, lines }) => ({ line, what: `a function of ${lines} lines` }));
}

/** A function's body begins with a brace of its own in column 0 or ends a line that began there, and ends in column 0. */
function nativeFunctions(text: string): { line: number; lines: number }[] {
  const lines = text.split('\n');
  const found: { line: number; lines: number }[] = [];
  let began: number | undefined;
  for (const [index, line] of lines.entries()) {
    if (/^(\{|[a-z].*\)\s*\{)\s*$/.test(line)) began = index;
    if (line.startsWith('}') && began !== undefined) {
      found.push({ line: began + 1, lines: index - began + 1 });
      began = undefined;
    }
  }
  return found;
}

/** Read by a program of ours or, under its C name and with the same number, by the keeper. */
function unusedBounds(text: string, tree: Tree): Finding[] {
  const texts = (which: RegExp): string[] =>
    tree.files.filter((path) => which.test(path)).map((path) => tree.text(path));
  const programs = texts(/^(libs|apps)\/[^/]+\/src\/(?!limits).*\.ts$/);
  const native = texts(/^libs\/keeper\/native\/.*\.[ch]$/);
  return text.split('\n').flatMap((line, index) => {
    const [, name, value] = /^export const (\w+) = ([\d_]+)?/.exec(line) ?? [];
    if (name === undefined) return [];
    const inC = `#define ${name.replaceAll(/[A-Z]/g, '_$&').toUpperCase()} ${(value ?? '').replaceAll('_', '')}\n`;
    const used =
      programs.some((user) => new RegExp(`\\b${name}\\b`).test(user)) ||
      native.some((user) => user.includes(inC));
    return used ? [] : [{ line: index + 1, what: name }];
  });
}
