// Owns the real nats-server that the bus tests talk to, and the users they are.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { findNatsServer, startNatsServer, type NatsServer } from '@custody/constellation/nats-server';
import { inboxPrefix } from '@custody/wire/subjects';
import type { Bus } from '../src/bus.ts';
import { connectBus, type BusOptions } from '../src/nats-bus.ts';
import {
  createTrust,
  generateUserKey,
  mintControlPlaneUser,
  mintHostUser,
  mintSystemUser,
  type Trust,
} from '../src/trust.ts';

export interface TestServer extends AsyncDisposable {
  readonly trust: Trust;
  readonly url: string;
  readonly port: number;
  control(options?: Partial<BusOptions>): Promise<Bus>;
  system(): Promise<Bus>;
  /** A host with a key of its own, and what it connected with. */
  host(name: string): Promise<{ bus: Bus; publicKey: string; options: BusOptions }>;
  stop(): Promise<void>;
  /** On the same port and files. */
  start(trust?: Trust): Promise<void>;
}

function natsServerBinary(): Promise<string> {
  const cacheDir = resolve(import.meta.dirname, '../../../.cache/nats-server/bin');
  return findNatsServer({ path: process.env['PATH'] ?? '', cacheDir });
}

export async function startTestServer(): Promise<TestServer> {
  const binary = await natsServerBinary();
  const dataDir = await mkdtemp(join(tmpdir(), 'custody-bus-'));
  const trust = await createTrust();
  let server: NatsServer | undefined = await startNatsServer({ binary, dataDir, trust, port: 0 });
  const { port, url } = server;
  const opened: Bus[] = [];
  const open = async (options: Omit<BusOptions, 'servers'>): Promise<Bus> => {
    const bus = await connectBus({ servers: [url], ...options });
    opened.push(bus);
    return bus;
  };
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
  return {
    trust,
    url,
    port,
    control: async (options = {}) => {
      const { jwt, seed } = await mintControlPlaneUser(trust);
      return open({ jwt, seed: bytes(seed), name: 'control', inboxPrefix: '_INBOX_control', ...options });
    },
    system: async () => {
      const { jwt, seed } = await mintSystemUser(trust);
      return open({ jwt, seed: bytes(seed), name: 'system' });
    },
    host: async (name) => {
      const { seed, publicKey } = generateUserKey();
      const jwt = await mintHostUser(trust, { host: name, publicKey });
      const options = { servers: [url], jwt, seed: bytes(seed), name, inboxPrefix: inboxPrefix(name) };
      return { bus: await open(options), publicKey, options };
    },
    stop: async () => {
      await server?.stop();
      server = undefined;
    },
    start: async (newer = trust) => {
      server = await startNatsServer({ binary, dataDir, trust: newer, port });
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(opened.map((bus) => bus.close()));
      await server?.stop();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}
