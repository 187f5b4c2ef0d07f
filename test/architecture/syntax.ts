// Owns what the checks know of a source file by its syntax: imports, what it reaches for, how long its functions are.
import { parseAst } from 'vitest/node';

export interface Import {
  readonly specifier: string;
  readonly line: number;
}

export interface FunctionSpan {
  readonly line: number;
  readonly lines: number;
}

export interface Syntax {
  readonly imports: readonly Import[];
  /** Lines that hand on another file's names: `export … from`. */
  readonly reexports: readonly number[];
  /** Lines that reach for `process.env`, however it was imported. */
  readonly environment: readonly number[];
  /** Lines that can load a native addon: `process.dlopen`, or the name of a `.node` file. */
  readonly addons: readonly number[];
  /** Lines that take the time or chance from the machine: `Date.now()`, `new Date()`, `Math.random()`. */
  readonly ambient: readonly number[];
  /** Lines that replace a module under test: `vi.mock` and its kin. */
  readonly mocks: readonly number[];
  /** Lines with a test that is left out, or that leaves out the others. */
  readonly leftOut: readonly number[];
  readonly functions: readonly FunctionSpan[];
}

/** A node of the syntax tree (ESTree with TypeScript's kinds), as little of it as is read here. */
type Node = { readonly type: string; readonly start: number; readonly end: number } & Readonly<
  Record<string, unknown>
>;

const known = new Map<string, Syntax>();

/** Throws, naming the path, when `source` does not parse. */
export function syntaxOf(path: string, source: string): Syntax {
  const key = `${path}\n${source}`;
  const syntax = known.get(key) ?? readSyntax(path, source);
  known.set(key, syntax);
  return syntax;
}

function readSyntax(path: string, source: string): Syntax {
  const lineOf = lineFinder(source);
  const found = {
    imports: [] as Import[],
    reexports: [] as number[],
    environment: [] as number[],
    addons: [] as number[],
    ambient: [] as number[],
    mocks: [] as number[],
    leftOut: [] as number[],
    functions: [] as FunctionSpan[],
  };
  visit(parsed(path, source), (node) => {
    const line = lineOf(node.start);
    const specifier = specifierOf(node);
    if (specifier !== undefined) found.imports.push({ specifier, line });
    if (/^Export(Named|All)Declaration$/.test(node.type) && isNode(node['source']))
      found.reexports.push(line);
    if (readsEnvironment(node)) found.environment.push(line);
    if (loadsAddon(node)) found.addons.push(line);
    if (isAmbient(node)) found.ambient.push(line);
    if (calls(node, 'vi', /^(mock|doMock|hoisted|unmock)$/)) found.mocks.push(line);
    if (isLeftOut(node)) found.leftOut.push(line);
    if (/^(FunctionDeclaration|FunctionExpression|ArrowFunctionExpression)$/.test(node.type)) {
      found.functions.push({ line, lines: lineOf(node.end) - line + 1 });
    }
  });
  return found;
}

function parsed(path: string, source: string): unknown {
  try {
    // oxlint-disable-next-line typescript/no-deprecated -- of Vite's parsers the only one that Vitest hands on
    return parseAst(source, { lang: path.endsWith('.ts') ? 'ts' : 'js' }, path);
  } catch (cause) {
    throw new Error(`${path} does not parse`, { cause });
  }
}

function specifierOf(node: Node): string | undefined {
  switch (node.type) {
    case 'ImportDeclaration':
    case 'ExportNamedDeclaration':
    case 'ExportAllDeclaration':
    case 'ImportExpression':
    case 'TSImportType':
      return stringOf(node['source']);
    case 'TSExternalModuleReference':
      return stringOf(node['expression']);
    case 'CallExpression':
      return requires(node['callee']) ? stringOf(list(node['arguments'])[0]) : undefined;
    default:
      return undefined;
  }
}

/** `require(…)`, `createRequire(…)(…)`, and the `resolve` of either or of `import.meta`. */
function requires(callee: unknown): boolean {
  if (!isNode(callee)) return false;
  if (callee.type === 'MemberExpression') {
    const { object, property } = callee;
    const resolves = isNode(property) && property['name'] === 'resolve' && isNode(object);
    return resolves && (object.type === 'MetaProperty' || requires(object));
  }
  if (callee.type === 'CallExpression') return requires(callee['callee']);
  return callee.type === 'Identifier' && /^(createRequire|require)$/.test(String(callee['name']));
}

function readsEnvironment(node: Node): boolean {
  if (isMember(node, 'process', 'env')) return true;
  if (node.type === 'VariableDeclarator' && isName(node['init'], 'process')) return names(node['id'], 'env');
  if (node.type !== 'ImportDeclaration') return false;
  return /^(node:)?process$/.test(stringOf(node['source']) ?? '') && names(node, 'env');
}

/** One of the names that a pattern or an import takes out is `name`. */
function names(node: unknown, name: string): boolean {
  if (!isNode(node)) return false;
  const parts = [...list(node['properties']), ...list(node['specifiers'])];
  return parts.some((part) => isNode(part) && (isName(part['key'], name) || isName(part['imported'], name)));
}

function loadsAddon(node: Node): boolean {
  if (isMember(node, 'process', 'dlopen')) return true;
  return node.type === 'Literal' && typeof node['value'] === 'string' && node['value'].endsWith('.node');
}

function isAmbient(node: Node): boolean {
  if (node.type === 'NewExpression')
    return isName(node['callee'], 'Date') && list(node['arguments']).length === 0;
  return isMember(node, 'Date', 'now') || isMember(node, 'Math', 'random');
}

function isLeftOut(node: Node): boolean {
  if (node.type !== 'MemberExpression' || !isNode(node['property'])) return false;
  const word = String(node['property']['name']);
  return (
    /^(only|skip|todo)$/.test(word) && /^(it|test|describe|suite|bench)$/.test(rootName(node['object']) ?? '')
  );
}

/** `it` of `it.each`, of `it`, of `it.concurrent`. */
function rootName(node: unknown): string | undefined {
  if (!isNode(node)) return undefined;
  if (node.type === 'Identifier') return String(node['name']);
  return rootName(node['object'] ?? node['callee']);
}

function calls(node: Node, object: string, method: RegExp): boolean {
  const { callee } = node;
  if (node.type !== 'CallExpression' || !isNode(callee) || callee.type !== 'MemberExpression') return false;
  const { property } = callee;
  return isName(callee['object'], object) && isNode(property) && method.test(String(property['name']));
}

function isMember(node: Node, object: string, property: string): boolean {
  if (node.type !== 'MemberExpression' || !isName(node['object'], object)) return false;
  return isName(node['property'], property) || stringOf(node['property']) === property;
}

function isName(node: unknown, name: string): boolean {
  return isNode(node) && node.type === 'Identifier' && node['name'] === name;
}

function stringOf(node: unknown): string | undefined {
  if (!isNode(node)) return undefined;
  if (node.type === 'TSLiteralType') return stringOf(node['literal']);
  return node.type === 'Literal' && typeof node['value'] === 'string' ? node['value'] : undefined;
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function isNode(value: unknown): value is Node {
  return typeof value === 'object' && value !== null && 'type' in value && 'start' in value;
}

function visit(value: unknown, see: (node: Node) => void): void {
  if (Array.isArray(value)) for (const item of value) visit(item, see);
  if (!isNode(value)) return;
  see(value);
  for (const child of Object.values(value)) if (typeof child === 'object') visit(child, see);
}

function lineFinder(source: string): (offset: number) => number {
  const ends = [...source.matchAll(/\n/g)].map((match) => match.index);
  return (offset) => {
    let low = 0;
    let high = ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((ends[middle] ?? 0) < offset) low = middle + 1;
      else high = middle;
    }
    return low + 1;
  };
}
