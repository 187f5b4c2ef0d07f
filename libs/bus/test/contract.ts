// Owns what every bus must do: one suite, run against the fake and against a real server.
import { busMessageBytesMax } from '@custody/core/limits';
import { anyHostUp, fleet, hostDown, hostUp, inboxPrefix } from '@custody/wire/subjects';
import { beforeAll, describe, expect, test } from 'vitest';
import type { Bus, BusStatus, Message, Subscription } from '../src/bus.ts';
import { BusError, type BusErrorCode } from '../src/errors.ts';

/** `host` is confined as `mintHostUser` confines it. */
export interface World extends AsyncDisposable {
  control(): Promise<Bus>;
  host(name: string): Promise<Bus>;
}

const timeoutMs = 5_000;

export function bytes(words: string): Uint8Array {
  return new TextEncoder().encode(words);
}

export function text(data: Uint8Array): string {
  return new TextDecoder().decode(data);
}

export async function codeOf(action: () => unknown): Promise<BusErrorCode | 'nothing'> {
  try {
    await action();
  } catch (error) {
    if (error instanceof BusError) return error.code;
    throw error;
  }
  return 'nothing';
}

/** Resolves with the detail of the next status of that kind. */
export function nextStatus(bus: Bus, wanted: BusStatus, about = ''): Promise<string> {
  return new Promise((resolve) => {
    const remove = bus.onStatus((status, detail) => {
      if (status !== wanted || !detail.includes(about)) return;
      remove();
      resolve(detail);
    });
  });
}

/** Messages in order of arrival; `take(n)` waits until there are n. */
export class Heard {
  readonly messages: Message[] = [];
  #wake = Promise.withResolvers<void>();

  readonly hear = (message: Message): void => {
    this.messages.push(message);
    this.#wake.resolve();
    this.#wake = Promise.withResolvers();
  };

  async take(count: number): Promise<string[]> {
    while (this.messages.length < count) await this.#wake.promise;
    return this.messages.map((message) => text(message.data));
  }
}

export function busContract(name: string, open: () => Promise<World>): void {
  describe(name, () => {
    let world: World;
    let control: Bus;
    let alpha: Bus;
    let beta: Bus;
    const ends: Subscription[] = [];
    const own = async (subscription: Promise<Subscription>): Promise<Subscription> => {
      ends.push(await subscription);
      return subscription;
    };

    beforeAll(async () => {
      world = await open();
      control = await world.control();
      alpha = await world.host('alpha');
      beta = await world.host('beta');
      return async () => {
        for (const end of ends.toReversed()) await end[Symbol.asyncDispose]();
        await world[Symbol.asyncDispose]();
      };
    });

    describe('publish and subscribe', () => {
      test('a message reaches every subscriber, in order, with its subject', async () => {
        const [first, second] = [new Heard(), new Heard()];
        await own(alpha.subscribe(fleet('policy'), first.hear));
        await own(beta.subscribe(fleet('policy'), second.hear));
        for (const word of ['one', 'two', 'three']) control.publish(fleet('policy'), bytes(word));
        expect(await first.take(3)).toEqual(['one', 'two', 'three']);
        expect(await second.take(3)).toEqual(['one', 'two', 'three']);
        expect(first.messages[0]?.subject).toBe(fleet('policy'));
      });

      test('a wildcard hears each host under its own subject', async () => {
        const heard = new Heard();
        await using _subscription = await control.subscribe(anyHostUp('revocations'), heard.hear);
        alpha.publish(hostUp('alpha', 'revocations'), bytes('a'));
        await heard.take(1);
        beta.publish(hostUp('beta', 'revocations'), bytes('b'));
        await heard.take(2);
        expect(heard.messages.map(({ subject }) => subject)).toEqual([
          hostUp('alpha', 'revocations'),
          hostUp('beta', 'revocations'),
        ]);
      });

      test('a disposed subscription hears nothing more', async () => {
        const [gone, stays] = [new Heard(), new Heard()];
        const subscription = await alpha.subscribe(hostDown('alpha', 'ledger'), gone.hear);
        await own(alpha.subscribe(hostDown('alpha', 'ledger'), stays.hear));
        control.publish(hostDown('alpha', 'ledger'), bytes('first'));
        await gone.take(1);
        await subscription[Symbol.asyncDispose]();
        control.publish(hostDown('alpha', 'ledger'), bytes('second'));
        await stays.take(2);
        expect(await gone.take(1)).toEqual(['first']);
      });

      test('headers arrive as they were sent, and no header of the bus with them', async () => {
        const heard = new Heard();
        await using _subscription = await control.subscribe('custody.v1.test.headers', heard.hear);
        const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
        control.publish('custody.v1.test.headers', bytes('x'), { traceparent });
        await heard.take(1);
        expect(heard.messages[0]?.headers).toEqual({ traceparent });
      });

      test('a handler that throws does not end its subscription', async () => {
        const heard = new Heard();
        await using _subscription = await control.subscribe('custody.v1.test.throws', (message) => {
          heard.hear(message);
          throw new Error('handler');
        });
        control.publish('custody.v1.test.throws', bytes('1'));
        control.publish('custody.v1.test.throws', bytes('2'));
        expect(await heard.take(2)).toEqual(['1', '2']);
      });

      test.each([
        ['custody..x', {}],
        ['custody.*', {}],
        ['custody.>', {}],
        ['custody x', {}],
        ['custody.x\r\nPUB y 0', {}],
        ['', {}],
        ['custody.x', { 'Custody-Error': 'busy' }],
        ['custody.x', { 'Nats-Rollup': 'all' }],
        ['custody.x', { traceparent: 'a\r\nb' }],
        ['custody.x', { 'bad name': 'a' }],
      ])('what cannot be sent is refused before it is sent: %j %j', async (subject, headers) => {
        expect(await codeOf(() => control.publish(subject, bytes('x'), headers))).toBe('bad_subject');
      });
    });

    describe('request and reply', () => {
      test('a host asks and the control plane answers, headers both ways', async () => {
        await using _served = await control.serve(
          anyHostUp('grant'),
          ({ subject, data, headers }) => ({
            data: bytes(`${subject} ${text(data)}`),
            headers: { seen: headers['traceparent'] ?? 'none' },
          }),
          { concurrencyMax: 4 },
        );
        const subject = hostUp('alpha', 'grant');
        const reply = await alpha.request(subject, bytes('hello'), {
          timeoutMs,
          headers: { traceparent: 'tp' },
        });
        expect(text(reply.data)).toBe(`${subject} hello`);
        expect(reply.headers).toEqual({ seen: 'tp' });
      });

      test('a request that nobody serves fails at once', async () => {
        const ask = alpha.request(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs: 600_000 });
        expect(await codeOf(() => ask)).toBe('no_responder');
      });

      test('a request that is not answered in time is a timeout', async () => {
        const held = Promise.withResolvers<Uint8Array>();
        await using _served = await control.serve(anyHostUp('policy'), () => held.promise, {
          concurrencyMax: 4,
        });
        const ask = alpha.request(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs: 50 });
        expect(await codeOf(() => ask)).toBe('timeout');
        held.resolve(bytes('late'));
      });

      test('a handler that throws answers failed, and says nothing of why', async () => {
        await using _served = await control.serve(
          anyHostUp('policy'),
          () => {
            throw new Error('the database password is x');
          },
          { concurrencyMax: 4 },
        );
        const error = await alpha
          .request(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs })
          .catch((caught: unknown) => caught);
        expect(error).toBeInstanceOf(BusError);
        expect(error).toMatchObject({ code: 'failed', message: expect.not.stringContaining('password') });
      });

      test('beyond its bound a responder answers busy, and serves again when it is free', async () => {
        const held = Promise.withResolvers<Uint8Array>();
        const two = Promise.withResolvers<void>();
        let running = 0;
        await using _served = await control.serve(
          anyHostUp('policy'),
          () => {
            running += 1;
            if (running === 2) two.resolve();
            return held.promise;
          },
          { concurrencyMax: 2 },
        );
        const ask = (): Promise<unknown> =>
          alpha.request(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs });
        const within = [ask(), ask()];
        await two.promise;
        expect(await codeOf(ask)).toBe('busy');
        expect(running).toBe(2);
        held.resolve(bytes('done'));
        await Promise.all(within);
        await ask();
        expect(running).toBe(3);
      });

      test('several servers of one subject share its requests', async () => {
        const answers: string[] = [];
        const serve = (bus: Bus, word: string): Promise<Subscription> =>
          bus.serve(anyHostUp('policy'), () => (answers.push(word), bytes(word)), { concurrencyMax: 64 });
        const other = await world.control();
        await using _one = await serve(control, 'one');
        await using _two = await serve(other, 'two');
        for (let i = 0; i < 40; i++)
          await alpha.request(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs });
        expect(answers).toHaveLength(40);
        expect(new Set(answers)).toEqual(new Set(['one', 'two']));
        await other.close();
      });

      test('disposing a server waits for the handler that runs', async () => {
        const held = Promise.withResolvers<Uint8Array>();
        const running = Promise.withResolvers<void>();
        const served = await control.serve(
          anyHostUp('policy'),
          () => {
            running.resolve();
            return held.promise;
          },
          { concurrencyMax: 1 },
        );
        const ask = alpha.request(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs });
        await running.promise;
        const disposed = served[Symbol.asyncDispose]();
        held.resolve(bytes('answered'));
        await disposed;
        expect(text((await ask).data)).toBe('answered');
      });
    });

    describe('size', () => {
      const fits = busMessageBytesMax - 'NATS/1.0\r\nCustody-Bus: 1\r\n\r\n'.length;

      test('the largest message passes and one byte more is too large', async () => {
        const heard = new Heard();
        await using _subscription = await control.subscribe('custody.v1.test.size', heard.hear);
        control.publish('custody.v1.test.size', new Uint8Array(fits));
        await heard.take(1);
        expect(heard.messages[0]?.data.byteLength).toBe(fits);
        const over = new Uint8Array(fits + 1);
        expect(await codeOf(() => control.publish('custody.v1.test.size', over))).toBe('too_large');
        const asking = (): Promise<unknown> => alpha.request(hostUp('alpha', 'grant'), over, { timeoutMs });
        expect(await codeOf(asking)).toBe('too_large');
      });

      test('an answer that is too large is an error for the one who asked', async () => {
        await using _served = await control.serve(anyHostUp('policy'), () => new Uint8Array(fits + 1), {
          concurrencyMax: 1,
        });
        const asking = (): Promise<unknown> =>
          alpha.request(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs });
        expect(await codeOf(asking)).toBe('too_large');
      });
    });

    describe('a host is confined', () => {
      const elsewhere = [
        hostUp('beta', 'ledger'),
        hostDown('beta', 'ledger'),
        hostDown('alpha', 'ledger'),
        fleet('revocation'),
        `${inboxPrefix('beta')}.x`,
        `${inboxPrefix('alpha')}.x`,
        '_INBOX_control.x',
        '$JS.API.STREAM.DELETE.CUSTODY_LEDGER',
        '$JS.API.STREAM.NAMES',
        '$JS.ACK.CUSTODY_LEDGER.x.1.1.1.1.0',
        '$SYS.REQ.CLAIMS.UPDATE',
        '$SYS.REQ.SERVER.PING',
        'custody.v1.host.alpha2.up.ledger',
        'custody',
      ];

      test.each(elsewhere)('it cannot publish to %s', async (subject) => {
        const refused = nextStatus(alpha, 'refused', subject);
        alpha.publish(subject, bytes('forged'));
        expect(await refused).toContain('ublish');
        const asking = (): Promise<unknown> =>
          alpha.request(subject, bytes('forged'), { timeoutMs: 600_000 });
        expect(await codeOf(asking)).toBe('refused');
      });

      test.each([
        hostUp('beta', 'ledger'),
        hostUp('alpha', 'ledger'),
        anyHostUp('grant'),
        hostDown('beta', 'ledger'),
        'custody.v1.host.*.down.ledger',
        'custody.v1.host.>',
        'custody.>',
        `${inboxPrefix('beta')}.>`,
        '_INBOX_control.>',
        '_INBOX.>',
        '$JS.API.>',
        '$JS.>',
        '$SYS.>',
        '*.>',
        '>',
      ])('it cannot subscribe to %s', async (subject) => {
        const refused = nextStatus(alpha, 'refused', subject);
        expect(await codeOf(() => alpha.subscribe(subject, () => undefined))).toBe('refused');
        await refused;
        expect(await codeOf(() => alpha.serve(subject, () => bytes(''), { concurrencyMax: 1 }))).toBe(
          'refused',
        );
      });

      test('a refusal harms nothing else on the connection', async () => {
        const heard = new Heard();
        await using _subscription = await alpha.subscribe(fleet('revocation'), heard.hear);
        expect(await codeOf(() => alpha.subscribe('>', () => undefined))).toBe('refused');
        control.publish(fleet('revocation'), bytes('epoch 1'));
        expect(await heard.take(1)).toEqual(['epoch 1']);
        expect(alpha.connected).toBe(true);
      });

      test('it can neither make a stream nor consume one', async () => {
        const config = {
          name: 'EVIL',
          subjects: ['evil'],
          retention: 'limits',
          maxBytes: 1,
          maxMessages: 1,
        } as const;
        expect(await codeOf(() => alpha.ensureStream(config))).toBe('refused');
        const consume = (): Promise<unknown> =>
          alpha.consume('CUSTODY_LEDGER', 'evil', async () => undefined, { maxAckPending: 1 });
        expect(await codeOf(consume)).toBe('refused');
      });
    });

    describe('durable', () => {
      const stream = {
        name: 'CUSTODY_LEDGER',
        subjects: [anyHostUp('ledger')],
        retention: 'workqueue',
        maxBytes: 10_000_000,
        maxMessages: 1_000,
      } as const;
      const subject = hostUp('alpha', 'ledger');

      test('a host publishes before any consumer is there, and the consumer gets it, and a nak brings it again', async () => {
        await control.ensureStream(stream);
        await control.ensureStream(stream);
        const stored = await alpha.publishDurable(subject, bytes('entry 1'), { timeoutMs });
        expect(stored).toEqual({ stream: 'CUSTODY_LEDGER', seq: expect.any(Number) });

        const seen: string[] = [];
        const acked = Promise.withResolvers<void>();
        await using _consumer = await control.consume(
          'CUSTODY_LEDGER',
          'ingest',
          async (message) => {
            seen.push(`${message.subject} ${text(message.data)} ${message.deliveries}`);
            if (message.deliveries === 1) return message.nak(10);
            message.ack();
            acked.resolve();
          },
          { maxAckPending: 16 },
        );
        await acked.promise;
        expect(seen).toEqual([`${subject} entry 1 1`, `${subject} entry 1 2`]);
      });

      test('a handler that throws gets the message again; an acknowledged one never comes again', async () => {
        const seen: string[] = [];
        const done = Promise.withResolvers<void>();
        for (const word of ['a', 'b']) await alpha.publishDurable(subject, bytes(word), { timeoutMs });
        await using _consumer = await control.consume(
          'CUSTODY_LEDGER',
          'ingest',
          async (message) => {
            seen.push(text(message.data));
            if (text(message.data) === 'a' && message.deliveries === 1) throw new Error('first time');
            message.ack();
            if (text(message.data) === 'a') done.resolve();
          },
          { maxAckPending: 16 },
        );
        await done.promise;
        expect(seen.toSorted()).toEqual(['a', 'a', 'b']);
      });

      test('no more than maxAckPending messages are with the handler at once', async () => {
        let [running, most] = [0, 0];
        const all = Promise.withResolvers<void>();
        const seen = new Set<string>();
        for (let i = 0; i < 12; i++) await alpha.publishDurable(subject, bytes(`m${i}`), { timeoutMs });
        await using _consumer = await control.consume(
          'CUSTODY_LEDGER',
          'ingest',
          async (message) => {
            running += 1;
            most = Math.max(most, running);
            await control.flush();
            running -= 1;
            message.ack();
            seen.add(text(message.data));
            if (seen.size === 12) all.resolve();
          },
          { maxAckPending: 3 },
        );
        await all.promise;
        expect(most).toBeLessThanOrEqual(3);
      });

      test('a full stream refuses and keeps what it has', async () => {
        await control.ensureStream({
          name: 'SMALL',
          subjects: ['custody.v1.test.small'],
          retention: 'limits',
          maxBytes: 100_000,
          maxMessages: 2,
        });
        const put = (word: string): Promise<unknown> =>
          control.publishDurable('custody.v1.test.small', bytes(word), { timeoutMs });
        await put('1');
        await put('2');
        expect(await codeOf(() => put('3'))).toBe('stream');
      });

      test('one host that fills its share leaves the others theirs', async () => {
        await control.ensureStream({
          name: 'SHARED',
          subjects: [anyHostUp('revocations')],
          retention: 'workqueue',
          maxBytes: 100_000,
          maxMessages: 100,
          maxMessagesPerSubject: 2,
        });
        const put = (bus: Bus, host: string): Promise<unknown> =>
          bus.publishDurable(hostUp(host, 'revocations'), bytes('x'), { timeoutMs });
        await put(alpha, 'alpha');
        await put(alpha, 'alpha');
        expect(await codeOf(() => put(alpha, 'alpha'))).toBe('stream');
        await put(beta, 'beta');
      });

      test('a subject that no stream stores is no_responder', async () => {
        const put = (): Promise<unknown> =>
          alpha.publishDurable(hostUp('alpha', 'policy'), bytes('x'), { timeoutMs });
        expect(await codeOf(put)).toBe('no_responder');
      });
    });

    describe('the end', () => {
      test('a closed bus says so, once, and sends nothing more', async () => {
        const bus = await world.host('gamma');
        const statuses: string[] = [];
        bus.onStatus((status) => statuses.push(status));
        await Promise.all([bus.close(), bus.close()]);
        expect(statuses).toEqual(['closed']);
        expect(bus.connected).toBe(false);
        const subject = hostUp('gamma', 'grant');
        expect(await codeOf(() => bus.publish(subject, bytes('x')))).toBe('closed');
        expect(await codeOf(() => bus.request(subject, bytes('x'), { timeoutMs }))).toBe('closed');
        expect(await codeOf(() => bus.subscribe(fleet('policy'), () => undefined))).toBe('closed');
        expect(await codeOf(() => bus.flush())).toBe('closed');
      });

      test('what was published before close arrives', async () => {
        const heard = new Heard();
        await using _subscription = await control.subscribe(anyHostUp('revocations'), heard.hear);
        const bus = await world.host('gamma');
        bus.publish(hostUp('gamma', 'revocations'), bytes('last words'));
        await bus.close();
        expect(await heard.take(1)).toEqual(['last words']);
      });
    });
  });
}
