// Owns the supervisor's process: `custody up --detach` leaves it behind, `custody down` ends it by a signal.
import { rm } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { startConstellation, type ConstellationEvent } from './constellation.ts';
import { layoutOf, writeRecord } from './layout.ts';

/** What the supervisor tells the process that started it, until that one goes. */
export type Told = ConstellationEvent | { readonly ready: true } | { readonly failed: string };

function tell(what: Told): void {
  if (process.connected) process.send?.(what);
  process.stderr.write(`${JSON.stringify(what)}\n`);
}

try {
  const { values } = parseArgs({ options: { data: { type: 'string' }, hosts: { type: 'string' } } });
  const layout = layoutOf(values.data ?? '.');
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop.abort());
  const stopped = new Promise((resolve) => stop.signal.addEventListener('abort', resolve, { once: true }));
  await using constellation = await startConstellation({
    dataDir: layout.dir,
    hosts: Number(values.hosts ?? '1'),
    environment: process.env,
    now: () => new Date(),
    onEvent: tell,
  });
  const { api, tokenFile, hosts } = constellation;
  await writeRecord(layout, { pid: process.pid, api, tokenFile, hosts: hosts.map((host) => ({ ...host })) });
  tell({ ready: true });
  if (process.connected) process.disconnect?.();
  await stopped;
  await rm(layout.record, { force: true });
} catch (error) {
  tell({ failed: error instanceof Error ? error.message : 'unknown' });
  process.exitCode = 1;
}
