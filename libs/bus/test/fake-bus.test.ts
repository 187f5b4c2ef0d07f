// Owns the proof that the fake keeps the contract of the bus.
import { fleet, hostMayPublish, hostMaySubscribe, hostUp, inboxPrefix } from '@custody/wire/subjects';
import { describe, expect, test } from 'vitest';
import { createFakeBroker } from '../src/fake-bus.ts';
import { busContract, bytes, codeOf, Heard } from './contract.ts';

busContract('fake bus', async () => {
  const broker = createFakeBroker();
  return {
    control: async () => broker.connect({ inboxPrefix: '_INBOX_control' }),
    host: async (name) =>
      broker.connect({
        allowPublish: hostMayPublish(name),
        allowSubscribe: hostMaySubscribe(name),
        inboxPrefix: inboxPrefix(name),
      }),
    [Symbol.asyncDispose]: async () => undefined,
  };
});

describe('fake broker', () => {
  test('unreachable: nothing is sent, what waits is told, and subscriptions are alive again afterwards', async () => {
    const broker = createFakeBroker();
    const [control, host] = [broker.connect(), broker.connect({ inboxPrefix: '_INBOX_a' })];
    const statuses: string[] = [];
    host.onStatus((status) => statuses.push(status));
    const heard = new Heard();
    await host.subscribe(fleet('policy'), heard.hear);
    await control.serve(hostUp('a', 'grant'), () => new Promise<Uint8Array>(() => undefined), {
      concurrencyMax: 1,
    });
    const asked = codeOf(() => host.request(hostUp('a', 'grant'), bytes('x'), { timeoutMs: 600_000 }));
    broker.setReachable(false);
    expect(await asked).toBe('unreachable');
    expect(host.connected).toBe(false);
    expect(await codeOf(() => control.publish(fleet('policy'), bytes('lost')))).toBe('unreachable');
    broker.setReachable(true);
    control.publish(fleet('policy'), bytes('after'));
    expect(await heard.take(1)).toEqual(['after']);
    expect(statuses).toEqual(['disconnected', 'connected']);
  });
});
