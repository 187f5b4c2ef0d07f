// Owns the test run: unit tests beside their rooms, and the suites over the real constellation in test/.
import { defineConfig } from 'vitest/config';

// Without `import`: a worker would take it for `require` too, and pg would get pg-pool's ES module.
const source = { conditions: ['custody-source', 'node', 'module', 'default'] };

export default defineConfig({
  resolve: source,
  ssr: { resolve: source },
  test: {
    globalSetup: ['libs/testkit/src/database-setup.ts'],
    globals: false,
    testTimeout: 20_000,
    hookTimeout: 30_000,
    maxWorkers: 2,
    projects: [
      {
        extends: true,
        test: { name: 'unit', include: ['libs/*/test/**/*.test.ts', 'apps/*/test/**/*.test.ts'] },
      },
      {
        extends: true,
        test: { name: 'suite', include: ['test/**/*.test.ts'], testTimeout: 60_000, hookTimeout: 60_000 },
      },
    ],
  },
});
