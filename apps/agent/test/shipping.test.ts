// Owns the proof that the ledger is shipped until it is confirmed, and that sending again stays within bounds.
import { createFakeBroker, type FakeBroker } from '@custody/bus/fake-bus';
import { parseLine } from '@custody/ledger/entry';
import { signLedgerReceipt } from '@custody/ledger/receipts';
import { encodeJson } from '@custody/wire/schema';
import {
  anyHostUp,
  hostDown,
  hostMayPublish,
  hostMaySubscribe,
  inboxPrefix,
  ledgerStream,
} from '@custody/wire/subjects';
import { expect, it, onTestFinished } from 'vitest';
import { Shipper } from '../src/shipping.ts';
import { Spool } from '../src/spool.ts';
import { at, captureLog, Clock, controlKey, controlSeed, folder, hostId, hostKey, until } from './support.ts';

interface Scene {
  readonly broker: FakeBroker;
  readonly spool: Spool;
  /** The sequence numbers of each batch that arrived, and when. */
  readonly batches: { readonly seqs: number[]; readonly atMs: number }[];
  /** Appends one entry and waits until its batch has arrived. */
  readonly ship: () => Promise<void>;
  /** The control plane says that it holds everything up to this entry. `later`: how many seconds after the others. */
  readonly confirm: (seq: number, later?: number) => Promise<void>;
}

async function scene(receiptTimeoutMs: number): Promise<Scene> {
  const { wallClock, bootMs } = new Clock();
  const { log } = captureLog();
  const broker = createFakeBroker();
  const control = broker.connect();
  const batches: Scene['batches'] = [];
  const hashes = new Map<number, string>();
  await control.ensureStream({
    ...{ name: ledgerStream, subjects: [anyHostUp('ledger')], retention: 'workqueue' },
    ...{ maxBytes: 1_000_000, maxMessages: 1_000 },
  });
  const consumer = await control.consume(
    ledgerStream,
    'control-plane',
    (message) => {
      const lines = Buffer.from(message.data).toString('utf8').split('\n').slice(0, -1);
      const seqs = lines.map((line) => {
        const { entry, hash } = parseLine(line);
        hashes.set(entry.seq, hash);
        return entry.seq;
      });
      batches.push({ seqs, atMs: performance.now() });
      message.ack();
      return Promise.resolve();
    },
    { maxAckPending: 64 },
  );
  onTestFinished(() => consumer[Symbol.asyncDispose]());
  const options = {
    dir: folder(),
    hostId,
    signingKey: hostKey,
    controlPlaneKey: controlKey,
    wallClock,
    bootMs,
  };
  const spool = await Spool.open(options, () => {});
  onTestFinished(() => spool[Symbol.asyncDispose]());
  const bus = broker.connect({
    allowPublish: hostMayPublish(hostId),
    allowSubscribe: hostMaySubscribe(hostId),
    inboxPrefix: inboxPrefix(hostId),
  });
  const shipper = new Shipper({ bus, spool, hostId, log, receiptTimeoutMs });
  onTestFinished(() => shipper[Symbol.asyncDispose]());
  await shipper.start();
  return {
    ...{ broker, spool, batches },
    ship: async () => {
      const seq = await spool.append('agent_started', { version: '0.1.0', openRuns: 0 });
      await until(() => batches.some(({ seqs }) => seqs.includes(seq)));
    },
    confirm: async (seq, later = 0) => {
      const said = new Date(Date.parse(at) + later * 1_000).toISOString();
      const head = { host: hostId, epoch: 1, seq, hash: hashes.get(seq) ?? '', at: said };
      const receipt = await signLedgerReceipt(controlSeed, head);
      control.publish(hostDown(hostId, 'ledger'), encodeJson({ receipt }));
      await control.flush();
    },
  };
}

const hourMs = 3_600_000;

it('sends what is missing once, however many batches behind the gap say so', async () => {
  const { ship, confirm, spool, batches } = await scene(hourMs);
  for (let count = 0; count < 6; count += 1) await ship();
  await confirm(1);
  await until(() => spool.confirmed.seq === 1);
  const before = batches.length;
  // The second batch was lost: each of the other four is answered with the head before it.
  for (let count = 0; count < 4; count += 1) await confirm(1);
  await until(() => batches.length > before);
  for (let count = 0; count < 4; count += 1) await confirm(1);
  await ship();
  expect(batches.slice(before).map(({ seqs }) => seqs)).toEqual([[2, 3, 4, 5, 6], [7]]);
  // What was sent again has arrived: the next gap is another one.
  await confirm(6);
  await until(() => spool.confirmed.seq === 6);
  await confirm(6);
  await until(() => batches.length === before + 3);
  expect(batches.at(-1)?.seqs).toEqual([7]);
});

it('sends again ever more seldom while nobody answers', async () => {
  const patienceMs = 20;
  const { ship, batches } = await scene(patienceMs);
  await ship();
  await until(() => batches.length >= 5);
  const waits = batches.slice(1).map(({ atMs }, index) => atMs - (batches[index]?.atMs ?? 0));
  // Each wait began when the batch before was stored, just before it arrived.
  const earlyMs = 5;
  for (const [index, waitMs] of waits.entries())
    expect(waitMs).toBeGreaterThan(patienceMs * 2 ** index - earlyMs);
});

it('sends what is not confirmed again at once when the bus is back', async () => {
  const { ship, broker, batches } = await scene(hourMs);
  await ship();
  broker.setReachable(false);
  broker.setReachable(true);
  await until(() => batches.length === 2);
  expect(batches.map(({ seqs }) => seqs)).toEqual([[1], [1]]);
});

it('goes back to where a control plane stands that has lost what it confirmed', async () => {
  const { ship, confirm, spool, broker, batches } = await scene(hourMs);
  for (let count = 0; count < 5; count += 1) await ship();
  await confirm(4);
  await until(() => spool.confirmed.seq === 4);
  await ship();
  const before = batches.length;
  // The first may have been overtaken on its way: it is taken for any other gap.
  await confirm(2, 1);
  await until(() => batches.length === before + 1);
  await confirm(2, 2);
  await until(() => batches.length === before + 2);
  expect(batches.slice(before).map(({ seqs }) => seqs)).toEqual([
    [5, 6],
    [3, 4, 5, 6],
  ]);
  // It holds all again, and is not set back any more, whatever its clock says.
  await confirm(6, -1);
  await until(() => spool.confirmed.seq === 6);
  await ship();
  expect(batches.at(-1)?.seqs).toEqual([7]);
  broker.setReachable(false);
  broker.setReachable(true);
  await until(() => batches.length === before + 4);
  expect(batches.at(-1)?.seqs).toEqual([7]);
});

it('does not go back for a receipt that another has overtaken', async () => {
  const { ship, confirm, spool, batches } = await scene(hourMs);
  for (let count = 0; count < 5; count += 1) await ship();
  await confirm(4, 2);
  await until(() => spool.confirmed.seq === 4);
  for (let count = 0; count < 3; count += 1) await confirm(2, 1);
  await confirm(3, 3);
  await confirm(5, 4);
  await until(() => spool.confirmed.seq === 5);
  expect(batches.flatMap(({ seqs }) => seqs).filter((seq) => seq < 5)).toEqual([1, 2, 3, 4]);
});
