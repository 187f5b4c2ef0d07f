// Owns the bench of what freshness costs: every byte of an idle agent's connection, by what it was for.
import { readFileSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import type { Constellation } from '@custody/constellation/constellation';
import { round } from './results.ts';

/** Three anchors of a minute each, and a little. */
const windowMs = 200_000;
const settleMs = 10_000;
const fleetModelled = 100_000;

type What = 'beacon' | 'pull' | 'policy' | 'keepalive' | 'other';
type Tally = Record<What, { messages: number; bytes: number }>;

const emptyTally = (): Tally => ({
  beacon: { messages: 0, bytes: 0 },
  pull: { messages: 0, bytes: 0 },
  policy: { messages: 0, bytes: 0 },
  keepalive: { messages: 0, bytes: 0 },
  other: { messages: 0, bytes: 0 },
});

/** Stands between an agent and nats-server, passes everything on, and counts it. */
class Counting implements AsyncDisposable {
  tally = emptyTally();
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** Which question an answer belongs to, by where it is sent. */
  readonly #asked = new Map<string, What>();

  private constructor(busPort: number) {
    this.#server = createServer((agent) => {
      const bus = connect(busPort, '127.0.0.1');
      this.#pass(agent, bus);
      this.#pass(bus, agent);
    });
  }

  static async listen(busPort: number): Promise<{ counting: Counting; port: number }> {
    const counting = new Counting(busPort);
    await new Promise<void>((resolve) => counting.#server.listen(0, '127.0.0.1', resolve));
    const address = counting.#server.address();
    return { counting, port: typeof address === 'object' && address !== null ? address.port : 0 };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #pass(from: Socket, to: Socket): void {
    this.#sockets.add(from);
    from.setNoDelay(true);
    let kept: Buffer = Buffer.alloc(0);
    from.on('data', (chunk: Buffer) => {
      to.write(chunk);
      kept = this.#count(Buffer.concat([kept, chunk]));
    });
    from.on('error', () => to.destroy());
    from.on('close', () => {
      this.#sockets.delete(from);
      to.destroy();
    });
  }

  /** Counts whole words of the protocol, and answers with what is left. */
  #count(bytes: Buffer): Buffer {
    let rest = bytes;
    for (let end = rest.indexOf('\r\n'); end >= 0; end = rest.indexOf('\r\n')) {
      const words = rest.toString('latin1', 0, end).split(' ');
      const carries = /^H?(?:MSG|PUB)$/.test(words[0] ?? '');
      const size = end + 2 + (carries ? Number(words.at(-1)) + 2 : 0);
      if (rest.length < size) break;
      const counted =
        this.tally[carries ? this.#whatOf(words) : keepalive.has(words[0] ?? '') ? 'keepalive' : 'other'];
      counted.messages += 1;
      counted.bytes += size;
      rest = rest.subarray(size);
    }
    return rest;
  }

  /** `HPUB subject reply …` of the agent's, `HMSG subject sid …` of the server's. */
  #whatOf([verb = '', subject = '', second = '']: readonly string[]): What {
    if (subject.endsWith('.fleet.beacon')) return 'beacon';
    const asks = subject.endsWith('.up.revocations')
      ? 'pull'
      : subject.endsWith('.up.policy')
        ? 'policy'
        : 'other';
    if (verb.endsWith('PUB')) this.#asked.set(second, asks);
    else return this.#asked.get(subject) ?? 'other';
    return asks;
  }
}

const keepalive = new Set(['PING', 'PONG']);

export async function freshnessCost(constellation: Constellation): Promise<Record<string, unknown>> {
  const [host] = constellation.hosts;
  if (host === undefined) throw new Error('no hosts');
  const { counting, port } = await Counting.listen(Number(new URL(constellation.busUrl).port));
  await using _counting = counting;
  const agent = constellation.part(host.name);
  await agent.down('SIGTERM');
  const file = join(host.dataDir, 'identity.json');
  const identity = JSON.parse(readFileSync(file, 'utf8')) as object;
  writeFileSync(file, JSON.stringify({ ...identity, busServers: [`nats://127.0.0.1:${port}`] }), {
    mode: 0o600,
  });
  await agent.up();
  await wait(settleMs);
  counting.tally = emptyTally();
  console.log(`counting what an idle host sends and hears for ${windowMs / 1_000} s`);
  await wait(windowMs);
  const { tally } = counting;
  const perHour = (what: What): number => round((tally[what].bytes * 3_600_000) / windowMs);
  const freshness = perHour('beacon') + perHour('pull') + perHour('policy');
  return {
    windowSeconds: windowMs / 1_000,
    counted: tally,
    bytesPerBeacon: round(tally.beacon.bytes / tally.beacon.messages),
    perHostPerHour: {
      bytes: round(freshness),
      beaconBytes: perHour('beacon'),
      pullBytes: perHour('pull'),
      policyBytes: perHour('policy'),
      keepaliveBytesBesides: perHour('keepalive'),
    },
    modelled: {
      what: `the bytes of one host by ${fleetModelled}; nobody connected them`,
      hosts: fleetModelled,
      gigabytesPerHour: round((freshness * fleetModelled) / 1e9),
      megabitsPerSecond: round((freshness * fleetModelled * 8) / 3_600 / 1e6),
      // A question and its answer are two messages.
      pullsPerSecond: round(((tally.pull.messages / 2) * 1_000 * fleetModelled) / windowMs),
    },
  };
}
