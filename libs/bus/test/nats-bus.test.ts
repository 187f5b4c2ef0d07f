// Owns the proof that the real bus keeps the contract, and what only a real server can show.
import { once } from 'node:events';
import { createConnection, createServer, type Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { Secret } from '@custody/core/secret';
import { anyHostUp, fleet, hostDown, hostUp, inboxPrefix } from '@custody/wire/subjects';
import {
  connect,
  headers,
  jwtAuthenticator,
  type MsgHdrs,
  type NatsConnection,
} from '@nats-io/transport-node';
import { beforeEach, describe, expect, test } from 'vitest';
import { connectBus } from '../src/nats-bus.ts';
import {
  createTrust,
  generateUserKey,
  mintControlPlaneUser,
  mintHostUser,
  pushAccount,
  revokeUser,
} from '../src/trust.ts';
import { busContract, bytes, codeOf, Heard, nextStatus, text } from './contract.ts';
import { startTestServer, type TestServer } from './server.ts';

busContract('nats bus', async () => {
  const server = await startTestServer();
  return {
    control: () => server.control(),
    host: async (name) => (await server.host(name)).bus,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
});

describe('nats bus and its server', () => {
  let server: TestServer;
  beforeEach(async () => {
    server = await startTestServer();
    return () => server[Symbol.asyncDispose]();
  });

  test('after a restart of the server, subscriptions, servers and consumers are alive again', async () => {
    const control = await server.control();
    const { bus: host } = await server.host('alpha');
    await control.ensureStream(ledger);
    const [broadcast, taken] = [new Heard(), new Heard()];
    await host.subscribe(fleet('revocation'), broadcast.hear);
    await control.serve(anyHostUp('grant'), ({ data }) => data, { concurrencyMax: 1 });
    await control.consume(
      'CUSTODY_LEDGER',
      'ingest',
      async (message) => {
        taken.hear(message);
        message.ack();
      },
      { maxAckPending: 8 },
    );
    await host.publishDurable(hostUp('alpha', 'ledger'), bytes('before'), { timeoutMs });
    await taken.take(1);

    const down = [nextStatus(control, 'disconnected'), nextStatus(host, 'disconnected')];
    const up = [nextStatus(control, 'connected'), nextStatus(host, 'connected')];
    await server.stop();
    await Promise.all(down);
    expect(host.connected).toBe(false);
    expect(await codeOf(() => host.publish(hostUp('alpha', 'ledger'), bytes('x')))).toBe('unreachable');
    expect(await codeOf(() => host.subscribe(fleet('policy'), () => undefined))).toBe('unreachable');
    await server.start();
    await Promise.all(up);

    control.publish(fleet('revocation'), bytes('epoch 2'));
    expect(await broadcast.take(1)).toEqual(['epoch 2']);
    const reply = await host.request(hostUp('alpha', 'grant'), bytes('again'), { timeoutMs });
    expect(text(reply.data)).toBe('again');
    await host.publishDurable(hostUp('alpha', 'ledger'), bytes('after'), { timeoutMs });
    expect(await taken.take(2)).toEqual(['before', 'after']);
  });

  test('a stored message outlives the server process', async () => {
    const control = await server.control();
    const { bus: host } = await server.host('alpha');
    await control.ensureStream(ledger);
    await host.publishDurable(hostUp('alpha', 'ledger'), bytes('kept'), { timeoutMs });
    const up = nextStatus(control, 'connected');
    await server.stop();
    await server.start();
    await up;
    const taken = new Heard();
    await control.consume('CUSTODY_LEDGER', 'ingest', async (message) => taken.hear(message), {
      maxAckPending: 1,
    });
    expect(await taken.take(1)).toEqual(['kept']);
  });

  test('a request that waits when the connection goes is told at once', async () => {
    const control = await server.control();
    const { bus: host } = await server.host('alpha');
    const running = Promise.withResolvers<void>();
    const held = Promise.withResolvers<Uint8Array>();
    await control.serve(
      anyHostUp('grant'),
      () => {
        running.resolve();
        return held.promise;
      },
      { concurrencyMax: 1 },
    );
    const asked = codeOf(() => host.request(hostUp('alpha', 'grant'), bytes('x'), { timeoutMs: 600_000 }));
    await running.promise;
    await server.stop();
    expect(await asked).toBe('unreachable');
    held.resolve(bytes('too late'));
  });

  test('a revoked user is disconnected and stays out, also after a restart with an older configuration', async () => {
    const system = await server.system();
    const { bus: alpha, publicKey, options } = await server.host('alpha');
    const { bus: beta } = await server.host('beta');
    const refused = nextStatus(alpha, 'refused', 'user');
    const gone = nextStatus(alpha, 'disconnected');
    await nextSecond(); // account JWTs are told apart by second
    const newer = await revokeUser(server.trust, { publicKey, atSeconds: Math.floor(Date.now() / 1000) });
    await pushAccount(newer, system, { timeoutMs });
    await pushAccount(newer, system, { timeoutMs });
    expect(await refused).toMatch(/revoked|violation/i);
    await gone;
    expect(alpha.connected).toBe(false);
    await beta.flush();

    for (const trust of [server.trust, newer]) {
      await server.stop();
      await server.start(trust);
      expect(await codeOf(() => connectBus(options))).toBe('refused');
      expect(alpha.connected).toBe(false);
    }
  });

  test('a user that the server does not know is refused, also while it waits for its first connection', async () => {
    const stranger = await createTrust();
    const { jwt, seed } = await mintControlPlaneUser(stranger);
    const options = { servers: [server.url], jwt, seed: bytes(seed), name: 'stranger' };
    expect(await codeOf(() => connectBus(options))).toBe('refused');
    expect(await codeOf(() => connectBus({ ...options, waitOnFirstConnect: true }))).toBe('refused');
  });

  test('a JWT without its seed opens nothing', async () => {
    const { jwt } = await mintControlPlaneUser(server.trust);
    const options = { servers: [server.url], jwt, seed: bytes(generateUserKey().seed), name: 'thief' };
    expect(await codeOf(() => connectBus(options))).toBe('refused');
  });

  test('with no server: unreachable at once, or waiting until there is one, or until the owner gives up', async () => {
    const { jwt, seed } = await mintControlPlaneUser(server.trust);
    const options = { servers: [server.url], jwt, seed: Secret.fromUtf8(seed), name: 'early' };
    await server.stop();
    expect(await codeOf(() => connectBus(options))).toBe('unreachable');

    const owner = new AbortController();
    const given = codeOf(() => connectBus({ ...options, waitOnFirstConnect: true, signal: owner.signal }));
    owner.abort();
    expect(await given).toBe('closed');

    const waiting = connectBus({ ...options, waitOnFirstConnect: true });
    await server.start();
    await using bus = await waiting;
    expect(bus.connected).toBe(true);
  });

  test('close while the server is away is prompt', async () => {
    const { bus } = await server.host('alpha');
    const gone = nextStatus(bus, 'disconnected');
    await server.stop();
    await gone;
    await bus.close();
    expect(bus.connected).toBe(false);
  });

  describe('a half-open connection', () => {
    test('is noticed by its silence and made anew, however much is stuck in it', async () => {
      await using pipe = await openPipe(server.port);
      const { jwt, seed } = await mintControlPlaneUser(server.trust);
      await using bus = await connectBus({
        servers: [pipe.url],
        jwt,
        seed: bytes(seed),
        name: 'half-open',
        pingIntervalMs: 50,
      });
      const gone = nextStatus(bus, 'disconnected');
      const back = nextStatus(bus, 'connected');
      pipe.freeze();
      let code = 'nothing';
      while (code === 'nothing') {
        code = await codeOf(() => bus.publish('custody.v1.test.stuck', new Uint8Array(500_000)));
      }
      expect(code).toBe('backlog');
      await gone;
      await back;
      bus.publish('custody.v1.test.free', bytes('x'));
      await bus.flush();
    });
  });

  describe('what is published is bounded', () => {
    test('far more than the window passes when the publisher flushes', async () => {
      const control = await server.control();
      const { bus: host } = await server.host('alpha');
      const heard = new Heard();
      await control.subscribe(anyHostUp('revocations'), heard.hear);
      for (let i = 0; i < 40; i++) {
        const publish = (): void => host.publish(hostUp('alpha', 'revocations'), new Uint8Array(900_000));
        if ((await codeOf(publish)) === 'backlog') {
          await host.flush();
          publish();
        }
      }
      await heard.take(40);
    });
  });

  describe('nobody lends a host a pen', () => {
    const beta = hostDown('beta', 'ledger');

    test.each([
      beta,
      fleet('revocation'),
      `${inboxPrefix('beta')}.x`,
      `${inboxPrefix('alpha')}x.y`,
      '$JS.API.STREAM.NAMES',
      '_INBOX_control.x',
    ])('the control plane does not answer a host at %s', async (reply) => {
      const control = await server.control();
      let ran = 0;
      await control.serve(anyHostUp('grant'), () => ((ran += 1), bytes('pen')), { concurrencyMax: 1 });
      const refused = nextStatus(control, 'refused', hostUp('alpha', 'grant'));
      await using raw = await rawHost(server, 'alpha');
      raw.nc.publish(hostUp('alpha', 'grant'), bytes('x'), { reply, headers: raw.marked });
      await refused;
      expect(ran).toBe(0);
    });

    test('the server itself refuses a reply subject that acknowledges for a consumer', async () => {
      await using raw = await rawHost(server, 'alpha');
      const refused = (async (): Promise<string | undefined> => {
        for await (const status of raw.nc.status()) if (status.type === 'error') return status.error.message;
        return undefined;
      })();
      const reply = '$JS.ACK.CUSTODY_LEDGER.ingest.1.1.1.1.0';
      raw.nc.publish(hostUp('alpha', 'grant'), bytes('x'), { reply, headers: raw.marked });
      expect(await refused).toContain('Permissions Violation');
    });

    test('a JetStream acknowledgement sent to another host is dropped there', async () => {
      const control = await server.control();
      await control.ensureStream(ledger);
      const { bus: victim } = await server.host('beta');
      const heard = new Heard();
      await victim.subscribe(beta, heard.hear);
      const dropped = nextStatus(victim, 'refused', 'no program sent');
      await using raw = await rawHost(server, 'alpha');
      raw.nc.publish(hostUp('alpha', 'ledger'), bytes('x'), { reply: beta, headers: raw.marked });
      await dropped;
      control.publish(beta, bytes('true'));
      expect(await heard.take(1)).toEqual(['true']);
    });

    test('a JetStream acknowledgement stored as another host is not handed to the consumer', async () => {
      const control = await server.control();
      await control.ensureStream(ledger);
      await using raw = await rawHost(server, 'alpha');
      const reply = hostUp('beta', 'ledger');
      raw.nc.publish(hostUp('alpha', 'ledger'), bytes('mine'), { reply, headers: raw.marked });
      await raw.nc.flush();
      const { bus: honest } = await server.host('beta');
      await honest.publishDurable(reply, bytes('of beta'), { timeoutMs });
      const taken = new Heard();
      await control.consume(
        'CUSTODY_LEDGER',
        'ingest',
        async (message) => {
          taken.hear(message);
          message.ack();
        },
        { maxAckPending: 8 },
      );
      expect(await taken.take(2)).toEqual(['mine', 'of beta']);
    });

    test.each(['all', 'sub'])('a host cannot roll the stream up (%s) with a header', async (scope) => {
      const control = await server.control();
      await control.ensureStream(ledger);
      const { bus: honest } = await server.host('beta');
      await honest.publishDurable(hostUp('beta', 'ledger'), bytes('of beta'), { timeoutMs });
      await using raw = await rawHost(server, 'alpha');
      raw.marked.set('Nats-Rollup', scope);
      raw.nc.publish(hostUp('alpha', 'ledger'), bytes('mine'), { headers: raw.marked });
      await raw.nc.flush();
      await honest.publishDurable(hostUp('beta', 'ledger'), bytes('later'), { timeoutMs });
      const taken = new Heard();
      await control.consume('CUSTODY_LEDGER', 'ingest', async (message) => taken.hear(message), {
        maxAckPending: 8,
      });
      expect(await taken.take(2)).toEqual(['of beta', 'later']);
    });

    test.each(['PURGE', 'DELETE', 'MSG.DELETE'])(
      'a JetStream acknowledgement sent to its own API does not %s the stream',
      async (verb) => {
        const control = await server.control();
        await control.ensureStream(ledger);
        const { bus: honest } = await server.host('beta');
        await honest.publishDurable(hostUp('beta', 'ledger'), bytes('of beta'), { timeoutMs });
        await using raw = await rawHost(server, 'alpha');
        const reply = `$JS.API.STREAM.${verb}.CUSTODY_LEDGER`;
        raw.nc.publish(hostUp('alpha', 'ledger'), bytes('mine'), { reply, headers: raw.marked });
        await raw.nc.flush();
        await honest.publishDurable(hostUp('beta', 'ledger'), bytes('later'), { timeoutMs });
        const taken = new Heard();
        await control.consume('CUSTODY_LEDGER', 'ingest', async (message) => taken.hear(message), {
          maxAckPending: 8,
        });
        expect(await taken.take(3)).toEqual(['of beta', 'mine', 'later']);
      },
    );
  });
});

const ledger = {
  name: 'CUSTODY_LEDGER',
  subjects: [anyHostUp('ledger')],
  retention: 'workqueue',
  maxBytes: 10_000_000,
  maxMessages: 1_000,
} as const;

const timeoutMs = 5_000;

async function nextSecond(): Promise<void> {
  await wait(1_000 - (Date.now() % 1_000));
}

type RawHost = AsyncDisposable & { readonly nc: NatsConnection; readonly marked: MsgHdrs };

/** A host whose program is not ours: the bare client, with a host's JWT. */
async function rawHost(server: TestServer, host: string): Promise<RawHost> {
  const { seed, publicKey } = generateUserKey();
  const jwt = await mintHostUser(server.trust, { host, publicKey });
  const nc = await connect({ servers: [server.url], authenticator: jwtAuthenticator(jwt, bytes(seed)) });
  const marked = headers();
  marked.set('Custody-Bus', '1');
  return { nc, marked, [Symbol.asyncDispose]: () => nc.close() };
}

type Pipe = AsyncDisposable & { readonly url: string; freeze(): void };

/** A TCP relay that, frozen, keeps the connections it has and moves nothing; later connections pass. */
async function openPipe(port: number): Promise<Pipe> {
  const sockets = new Set<Socket>();
  const relay = createServer((near) => {
    const far = createConnection({ host: '127.0.0.1', port });
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => undefined);
    }
    near.pipe(far).pipe(near);
  });
  relay.listen(0, '127.0.0.1');
  await once(relay, 'listening');
  const address = relay.address();
  if (address === null || typeof address === 'string') throw new Error('relay: no port');
  return {
    url: `nats://127.0.0.1:${address.port}`,
    freeze: () => {
      for (const socket of sockets) socket.unpipe().pause();
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      relay.close();
      await once(relay, 'close');
    },
  };
}
