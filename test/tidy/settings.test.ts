// Owns the proof that installing and building reach for nothing they need not: lock file, install scripts, nx, npm.
import { expect, test } from 'vitest';
import { checkout } from '../architecture/tree.ts';

const tree = checkout();

interface Lock {
  readonly packages: Readonly<
    Record<string, { readonly resolved?: string; readonly hasInstallScript?: boolean }>
  >;
}

function problemsOf(lock: Lock, allowed: Readonly<Record<string, boolean>>): string[] {
  return Object.entries(lock.packages).flatMap(([place, { resolved, hasInstallScript }]) => {
    const name = place.replace(/^.*node_modules\//, '');
    return [
      ...(/^https?:/.test(resolved ?? '') ? [`${place}: names the server it came from`] : []),
      ...(name.startsWith('@scarf/') ? [`${place}: reports each install to its maker`] : []),
      ...(hasInstallScript === true && allowed[name] === undefined
        ? [`${place}: an install script nobody decided on`]
        : []),
    ];
  });
}

const lock = JSON.parse(tree.text('package-lock.json')) as Lock;
const { allowScripts } = JSON.parse(tree.text('package.json')) as { allowScripts: Record<string, boolean> };

test('the lock names no server, no reporter of installs, and no script nobody decided on', () => {
  expect(Object.keys(lock.packages).length).toBeGreaterThan(200);
  expect(problemsOf(lock, allowScripts)).toEqual([]);
});

test('each of those would be found', () => {
  const packages = {
    'node_modules/a': { resolved: 'https://mirror.example/a.tgz' },
    'node_modules/b/node_modules/@scarf/scarf': {},
    'node_modules/@scope/c': { hasInstallScript: true },
    'node_modules/d': { hasInstallScript: true },
    'libs/e': { resolved: 'libs/e' },
  };
  expect(problemsOf({ packages }, { d: false })).toEqual([
    'node_modules/a: names the server it came from',
    'node_modules/b/node_modules/@scarf/scarf: reports each install to its maker',
    'node_modules/@scope/c: an install script nobody decided on',
  ]);
});

test('every script decided on belongs to a package of the lock', () => {
  const names = new Set(Object.keys(lock.packages).map((place) => place.replace(/^.*node_modules\//, '')));
  expect(Object.keys(allowScripts).filter((name) => !names.has(name))).toEqual([]);
});

test('nx reports nothing, connects nowhere and leaves no daemon', () => {
  expect(JSON.parse(tree.text('nx.json'))).toMatchObject({
    analytics: false,
    neverConnectToCloud: true,
    useDaemonProcess: false,
  });
});

test('npm leaves servers out of the lock file', () => {
  expect(tree.text('.npmrc').split('\n')).toContain('omit-lockfile-registry-resolved=true');
});
