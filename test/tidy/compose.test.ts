// Owns the proof that docker-compose.yml says what the programs understand: variables, flags, volumes, order; no secret in it.
import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { checkout, root } from '../architecture/tree.ts';

const tree = checkout();
const compose = tree.text('docker-compose.yml');

/** The blocks of one level under a heading, by name. Enough for a file that prettier has indented. */
function blocksUnder(heading: string, text: string): ReadonlyMap<string, string> {
  const body = new RegExp(`^${heading}:\\n((?:(?: .*)?\\n)*)`, 'm').exec(text)?.[1] ?? '';
  const parts = body.split(/^ {2}(?=[\w-]+:)/m).slice(1);
  return new Map(parts.map((part) => [part.slice(0, part.indexOf(':')), part]));
}

const configs = {
  'control-plane': tree.text('apps/control-plane/src/config.ts'),
  agent: tree.text('apps/agent/src/config.ts'),
};
const services = blocksUnder('services', compose);
const variablesOf = (text: string): string[] => [...new Set(text.match(/\bCUSTODY_[A-Z_]+\b/g))];

/** What is wrong with one service, in words. */
function problemsOf(block: string): string[] {
  const programs = Object.entries(configs).filter(([app]) => block.includes(`apps/${app}/dist/main.js`));
  // The terminal reads what the agent knows of.
  const known = [
    tree.text('libs/core/src/variables.ts'),
    ...(programs.length > 0 ? programs.map(([, config]) => config) : [configs.agent]),
  ].join('\n');
  const flags =
    programs.length > 0 && !block.includes('apps/cli/') ? [...block.matchAll(/ --([a-z-]+)/g)] : [];
  const declared = blocksUnder('volumes', compose);
  return [
    ...variablesOf(block)
      .filter((name) => !known.includes(`'${name}'`))
      .map((name) => `${name} is read by nobody`),
    ...flags
      .map(([, flag = '']) => flag)
      .filter((flag) => !new RegExp(`\\b'?${flag}'?: \\{`).test(known))
      .map((flag) => `--${flag} is no flag`),
    ...[...block.matchAll(/^ {6}- ([\w-]+):\//gm)]
      .filter(([, name = '']) => !declared.has(name))
      .map(([, name]) => `volume ${name} is not declared`),
    ...[...block.matchAll(/^ {6}([\w-]+): \{ condition:/gm)]
      .filter(([, name = '']) => !services.has(name))
      .map(([, name]) => `${name} is no service`),
    ...(/(PASSWORD|TOKEN|SECRET|KEY): \S/.test(block) ? ['a secret stands in the file'] : []),
  ];
}

test('the parts of a constellation are there', () => {
  expect([...services.keys()]).toEqual([
    'init',
    'postgres',
    'nats',
    'control-plane',
    'enrol',
    'agent-a',
    'agent-b',
    'custody',
  ]);
});

test('every variable, flag, volume and dependency is one that exists, and no secret is written down', () => {
  const problems = [...services].flatMap(([name, block]) =>
    problemsOf(block).map((problem) => `${name}: ${problem}`),
  );
  expect(problems).toEqual([]);
  expect(variablesOf(compose).length).toBeGreaterThan(5);
});

test('each of those would be found', () => {
  const command = 'x:\n    command: [apps/control-plane/dist/main.js, init]\n';
  expect(problemsOf(`${command}      CUSTODY_KEY_DIR: /keys\n`)).toEqual([
    'CUSTODY_KEY_DIR is read by nobody',
  ]);
  expect(problemsOf(`${command} --nats-hots 0.0.0.0\n`)).toEqual(['--nats-hots is no flag']);
  expect(problemsOf('x:\n      - kyes:/keys\n')).toEqual(['volume kyes is not declared']);
  expect(problemsOf('x:\n      postgers: { condition: service_healthy }\n')).toEqual([
    'postgers is no service',
  ]);
  expect(problemsOf('x:\n      POSTGRES_PASSWORD: custody\n')).toEqual(['a secret stands in the file']);
});

test('the files that init makes are those that others are given', () => {
  const names = configs['control-plane'];
  for (const file of ['operator.token', 'nats.conf']) {
    expect(names).toContain(`'${file}'`);
    expect(compose).toContain(`/keys/${file}`);
  }
});

const hasCompose = spawnSync('docker', ['compose', 'version'], { stdio: 'ignore' }).status === 0;

test.runIf(hasCompose)('docker compose reads it (where its client is installed)', () => {
  const { status, stderr } = spawnSync('docker', ['compose', '--profile', '*', 'config', '-q'], {
    cwd: root,
    encoding: 'utf8',
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
});
