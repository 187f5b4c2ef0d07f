// Owns what the benches of runs stand on: a constellation of its own with one secret, `prod/bench`, that anybody may hold.
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startConstellation, type Constellation } from '@custody/constellation/constellation';
import { call, type ClientOptions } from '@custody/wire/client';

export interface Ground extends AsyncDisposable {
  readonly constellation: Constellation;
  readonly client: ClientOptions;
  /** Scratch, removed at the end. */
  readonly dir: string;
}

export async function groundWith(hosts: number): Promise<Ground> {
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), 'custody-bench-'));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  // PostgreSQL runs as another user, and has to reach its folder.
  chmodSync(dir, 0o711);
  const constellation = stack.use(
    await startConstellation({
      dataDir: join(dir, 'data'),
      hosts,
      environment: process.env,
      now: () => new Date(),
    }),
  );
  const client = { url: constellation.api, token: constellation.token };
  await call(client, 'secret.put', {
    params: { path: 'prod/bench' },
    body: { fields: { key: 'a-value-to-hold' } },
  });
  const text = '@ceiling("15m") permit (principal, action == Action::"hold", resource in Folder::"prod");';
  await call(client, 'policy.apply', { body: { text } });
  const owned = stack.move();
  return { constellation, client, dir, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
