// Owns where a constellation keeps its things under one data folder, and the record by which others find it.
import { createHash } from 'node:crypto';
import { readFile, rename, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';

/** A Unix socket's path is bounded by the kernel (108 bytes on Linux, 104 on macOS). */
const socketPathBytesMax = 100;

export interface Layout {
  readonly dir: string;
  readonly keys: string;
  readonly databaseUrl: string;
  readonly postgres: string;
  readonly nats: string;
  readonly logs: string;
  readonly record: string;
  readonly ports: string;
  hostDir(name: string): string;
  socket(name: string): string;
  log(part: string): string;
}

export function layoutOf(dataDir: string): Layout {
  const dir = resolve(dataDir);
  const near = join(dir, 'run');
  const far = join(tmpdir(), `custody-${createHash('sha256').update(dir).digest('hex').slice(0, 12)}`);
  const fits = Buffer.byteLength(join(near, 'host-zz.sock')) <= socketPathBytesMax;
  return {
    dir,
    keys: join(dir, 'control-plane'),
    databaseUrl: join(dir, 'control-plane', 'database.url'),
    postgres: join(dir, 'postgres'),
    nats: join(dir, 'nats'),
    logs: join(dir, 'log'),
    record: join(dir, 'constellation.json'),
    ports: join(dir, 'ports.json'),
    hostDir: (name) => join(dir, 'hosts', name),
    socket: (name) => join(fits ? near : far, `${name}.sock`),
    log: (part) => join(dir, 'log', `${part}.log`),
  };
}

const record = z.strictObject({
  /** The supervisor. */
  pid: z.int(),
  /** What /proc says of that pid's start, so that a later process of the same number is not taken for it. */
  identity: z.string(),
  api: z.string(),
  tokenFile: z.string(),
  hosts: z.array(z.strictObject({ name: z.string(), socket: z.string(), dataDir: z.string() })),
});

/** What `custody env` and `custody down` know of a running constellation. */
export type Running = z.infer<typeof record>;

export async function writeRecord(layout: Layout, running: Omit<Running, 'identity'>): Promise<void> {
  const text = JSON.stringify({ ...running, identity: (await identityOf(running.pid)) ?? '' }, null, 2);
  const temporary = `${layout.record}.tmp`;
  await writeFile(temporary, `${text}\n`, { mode: 0o600 });
  await rename(temporary, layout.record);
}

/** The constellation that runs under this folder now; undefined where none does. */
export async function findRunning(layout: Layout): Promise<Running | undefined> {
  const text = await readFile(layout.record, 'utf8').catch(() => undefined);
  const running = text === undefined ? undefined : record.safeParse(parsed(text)).data;
  if (running === undefined) return undefined;
  const identity = await identityOf(running.pid);
  return identity !== undefined && identity === running.identity ? running : undefined;
}

/** The start of a living process in the kernel's words; undefined for a dead one. */
export async function identityOf(pid: number): Promise<string | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
  if (stat !== undefined) {
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? undefined : `ticks ${fields[19]}`;
  }
  if (process.platform === 'linux') return undefined;
  try {
    process.kill(pid, 0);
    return 'alive';
  } catch {
    return undefined;
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
