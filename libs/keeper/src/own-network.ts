// Owns the way to the addon that only tests load: a network of the caller's own.
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

/**
 * Moves the calling thread, and what it starts from now on, into an empty network namespace (unshare(2), Linux).
 * For tests: no program of ours calls it. Throws where the kernel refuses, with its words.
 */
export function ownNetwork(): void {
  const path = fileURLToPath(new URL('../build/network-test.node', import.meta.url));
  (createRequire(import.meta.url)(path) as { ownNetwork: () => void }).ownNetwork();
}
