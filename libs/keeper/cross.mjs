// Owns the check that the keeper and the addon compile for macOS, where a cross compiler is at hand: zig in PATH, or
// the package ziglang of PyPI (`python3 -m pip install ziglang`). Compiled is not run: nothing here says that it works.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const targets = ['aarch64-macos', 'x86_64-macos'];
const candidates = [['zig'], [process.env['PYTHON'] ?? 'python3', '-m', 'ziglang']];
const zig = candidates.find(([program, ...words]) => spawnSync(program, [...words, 'version']).status === 0);

if (zig === undefined) {
  process.stdout.write('NOT RUN: no zig; the keeper was not compiled for macOS\n');
  process.exit(0);
}
for (const target of targets) {
  const build = fileURLToPath(new URL('build.mjs', import.meta.url));
  const env = { ...process.env, ZIG: JSON.stringify(zig) };
  const { status } = spawnSync(process.execPath, [build, `--target=${target}`], { env, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
  process.stdout.write(`compiled for ${target}, without a warning\n`);
}
