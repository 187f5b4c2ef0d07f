// The test run: unit tests beside their rooms, and the suites over the real constellation in test/.
import { defineConfig } from 'vitest/config';

const source = { conditions: ['custody-source', 'node', 'import', 'module', 'default'] };

export default defineConfig({
  resolve: source,
  ssr: { resolve: source },
  test: {
    globals: false,
    testTimeout: 20_000,
    hookTimeout: 30_000,
    maxWorkers: 2,
    projects: [
      { extends: true, test: { name: 'unit', include: ['libs/*/test/**/*.test.ts', 'apps/*/test/**/*.test.ts'] } },
      { extends: true, test: { name: 'suite', include: ['test/**/*.test.ts'], testTimeout: 60_000, hookTimeout: 60_000 } },
    ],
  },
});
