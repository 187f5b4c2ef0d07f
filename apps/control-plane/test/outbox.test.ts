// Owns the proof of the outbox: a message leaves after its commit, in order, again after a failure; and of what readiness means.
import type { Bus } from '@custody/bus/bus';
import { transaction } from '@custody/store/database';
import { countUnsent, enqueue } from '@custody/store/outbox';
import { withDatabase } from '@custody/testkit/database';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { OutboxRelay } from '../src/outbox.ts';
import { captureLog, sceneOf, until } from './support.ts';

const t = withDatabase();

/** As much of a bus as the relay uses: it keeps what was published, and fails as often as it is told. */
class RecordingBus implements Pick<Bus, 'connected' | 'publish' | 'flush'> {
  connected = true;
  readonly published: string[] = [];
  failures = 0;
  flushes = 0;

  publish(subject: string): void {
    this.published.push(subject);
  }

  async flush(): Promise<void> {
    this.flushes += 1;
    if (this.failures === 0) return;
    this.failures -= 1;
    throw new Error('the connection went');
  }
}

function relayOf(bus: RecordingBus | undefined): { relay: OutboxRelay; log: () => string } {
  const { log, text } = captureLog();
  const relay = new OutboxRelay(t.database, () => bus, log);
  onTestFinished(() => relay[Symbol.asyncDispose]());
  return { relay, log: text };
}

const say = (subject: string): Promise<void> =>
  transaction(t.database, (tx) => enqueue(tx, { subject, payload: Uint8Array.of(1) }, new Date()));
const empty = async (): Promise<boolean> => (await countUnsent(t.database)) === 0;

beforeEach(async () => {
  await t.database.prisma.outbox.deleteMany();
});

describe('a message', () => {
  it('leaves after its transaction has committed, and not before', async () => {
    const bus = new RecordingBus();
    const { relay } = relayOf(bus);
    await transaction(t.database, async (tx) => {
      await enqueue(tx, { subject: 'a', payload: Uint8Array.of(1) }, new Date());
      relay.nudge();
      await t.database.pool.query('SELECT 1');
      await t.database.pool.query('SELECT 1');
      expect(bus.published).toEqual([]);
    });
    relay.nudge();
    await until(empty);
    expect(bus.published).toEqual(['a']);
  });

  it('of a transaction that was rolled back never leaves', async () => {
    const bus = new RecordingBus();
    const { relay } = relayOf(bus);
    const act = transaction(t.database, async (tx) => {
      await enqueue(tx, { subject: 'a', payload: Uint8Array.of(1) }, new Date());
      throw new Error('changed its mind');
    });
    await expect(act).rejects.toThrow('changed its mind');
    await say('b');
    relay.nudge();
    await until(empty);
    expect(bus.published).toEqual(['b']);
  });

  it('leaves in order, more than a batch of them', async () => {
    const bus = new RecordingBus();
    const { relay } = relayOf(bus);
    const subjects = Array.from({ length: 600 }, (_, index) => `s${index}`);
    await t.database.prisma.outbox.createMany({
      data: subjects.map((subject) => ({
        subject,
        payload: Uint8Array.of(1),
        headers: {},
        createdAt: new Date(),
      })),
    });
    relay.nudge();
    await until(empty);
    expect(bus.published).toEqual(subjects);
    expect(bus.flushes).toBe(3);
  });

  it('is sent again after a failure, still in order, and removed only then', async () => {
    const bus = new RecordingBus();
    bus.failures = 1;
    const { relay, log } = relayOf(bus);
    await say('a');
    await say('b');
    relay.nudge();
    await until(() => log().includes('could not be emptied'));
    expect(await countUnsent(t.database)).toBe(2);
    relay.nudge();
    await until(empty);
    expect(bus.published).toEqual(['a', 'b', 'a', 'b']);
  });

  it('waits while the bus is down, and while there is none', async () => {
    const bus = new RecordingBus();
    bus.connected = false;
    await say('a');
    const { relay: without } = relayOf(undefined);
    without.nudge();
    const { relay } = relayOf(bus);
    relay.nudge();
    await t.database.pool.query('SELECT 1');
    expect([bus.published, await countUnsent(t.database)]).toEqual([[], 1]);
    bus.connected = true;
    relay.nudge();
    await until(empty);
    expect(bus.published).toEqual(['a']);
  });

  it('that is said while others are being sent leaves too', async () => {
    const bus = new RecordingBus();
    const { relay } = relayOf(bus);
    for (let index = 0; index < 5; index += 1) {
      await say(`s${index}`);
      relay.nudge();
    }
    await until(empty);
    expect(bus.published).toEqual(['s0', 's1', 's2', 's3', 's4']);
  });
});

describe('readiness', () => {
  it('takes Postgres and the bus; each is told by name', async () => {
    const s = await sceneOf(t.database);
    expect(await s.health.readiness()).toEqual({ ready: false, postgres: 'up', bus: 'down' });
    s.bus = new RecordingBus() as unknown as Bus;
    expect(await s.health.readiness()).toEqual({ ready: true, postgres: 'up', bus: 'up' });
  });

  it('without Postgres is an answer, not an error', async () => {
    const gone = { ...t.database, pool: { query: () => Promise.reject(new Error('gone')) } };
    const s = await sceneOf(gone as unknown as typeof t.database);
    expect(await s.health.readiness()).toEqual({ ready: false, postgres: 'down', bus: 'down' });
  });

  it('status counts what there is', async () => {
    const s = await sceneOf(t.database);
    await say('a');
    expect(await s.health.status()).toMatchObject({
      version: '0.1.0',
      hosts: 0,
      epoch: 0,
      policyRevision: 0,
      outboxPending: 1,
    });
  });
});
