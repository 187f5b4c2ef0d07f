// Owns the proof that a revocation comes through whatever the network, the host's clock or a stopped agent does to it.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { mintControlPlaneUser, type Trust } from '@custody/bus/trust';
import type { Constellation } from '@custody/constellation/constellation';
import { parseLine, type LedgerEntry } from '@custody/ledger/entry';
import { wrongClock } from '@custody/testkit/clock';
import { exited, until, withConstellation } from '@custody/testkit/constellation';
import { openNetwork } from '@custody/testkit/network';
import { call } from '@custody/wire/client';
import { hostDown } from '@custody/wire/subjects';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { BareClient } from './bare-client.ts';
import { Fleet, holds, living, type Revoked, type Tree } from './fleet.ts';

const hour = 3_600_000;
/** By how much the wall clock of a host's agent is wrong. */
const clocks: Readonly<Record<string, number>> = { 'host-c': 7 * hour, 'host-d': -7 * hour };
const names = ['host-a', 'host-b', 'host-c', 'host-d'];

/** Three pings of three seconds each find a dead connection (libs/bus/src/bounds.ts). */
const noticedMsMax = 9_000;
/** From a network that is whole again to a proof: one dial that was under way, and the longest wait between two. */
const backMsMax = 9_000;
const ttlMs = 1_000;
const graceMs = 2_000;
/** What a loaded machine may add. */
const slackMs = 5_000;

/** How long nats-server waits for one that reads nothing: `write_deadline` of libs/bus/src/trust.ts. */
const givenUpMsMax = 2_000;
/** 64 MiB wait for one connection at most (nats-server's max_pending), and some in the sockets between. */
const floodMessagesMax = 200;

const network = await openNetwork(names);
const refusal = 'refusal' in network ? network.refusal : undefined;
if (refusal !== undefined) process.stderr.write(`NOT TESTED: faults of the network: ${refusal}\n`);

/** Several times what an idle machine takes. */
vi.setConfig({ testTimeout: 180_000 });

const kit = withConstellation({
  hosts: names.length,
  ...('refusal' in network ? {} : { bus: { listen: '0.0.0.0', forHosts: network.address } }),
  around: (host) => ({
    ...('refusal' in network ? {} : { before: network.host(host).before }),
    environment: wrongClock(clocks[host] ?? 0),
  }),
});
const fleet = new Fleet(kit);

beforeAll(() => fleet.begin());

// After the constellation's own end: hooks run in the reverse order of their making.
afterAll(async () => {
  if (!('refusal' in network)) await network[Symbol.asyncDispose]();
});

function on(host: string) {
  if ('refusal' in network) throw new Error(network.refusal);
  return network.host(host);
}

/** The first entry of a host's own ledger. */
function firstEntry(host: string): LedgerEntry {
  const dir = path.join(kit.constellation.layout.hostDir(host), 'ledger');
  const [segment = ''] = fs
    .readdirSync(dir)
    .filter((name) => name.endsWith('.ledger'))
    .toSorted();
  const [line = ''] = fs.readFileSync(path.join(dir, segment), 'utf8').split('\n');
  return parseLine(line).entry;
}

const at = (ms: number): string => new Date(ms).toISOString();

function between(earliestMs: number, time: string | undefined, latestMs: number): boolean {
  const ms = Date.parse(time ?? '');
  return ms >= earliestMs && ms <= latestMs;
}

function heal(): void {
  for (const name of names) on(name).heal();
}

async function linkOf(host: string): Promise<string> {
  const outcome = await kit.custody(['agent', 'status', '--json'], { host });
  return (JSON.parse(outcome.stdout) as { link: string }).link;
}

describe.skipIf(refusal !== undefined)('a network that', () => {
  test('is cut: what is revoked meanwhile dies when it is whole again, and meanwhile nothing starts', async () => {
    const [near, far] = await Promise.all([fleet.hold('host-a'), fleet.hold('host-b')]);
    const later = await fleet.hold('host-b');
    on('host-b').fault({ kind: 'partition' });
    const told = await fleet.revoke(near, 'while another host is cut off');
    const untold = await fleet.revoke(far, 'while its host is cut off');
    expect(await fleet.proven([told])).toBeLessThan(slackMs);
    const refused = exited(125, await kit.run(['echo', 'started'], { host: 'host-b', holds }));
    expect(refused.stdout).toBe('');
    await until(async () => (await linkOf('host-b')) === 'down', 'the cut noticed', noticedMsMax + slackMs);
    const untoldToo = await fleet.revoke(later, 'while its host knows that it is cut off');
    expect(await fleet.isProven(untold)).toBe(false);
    expect(living(far)).toEqual(expect.arrayContaining([...far.pids]));
    on('host-b').heal();
    const wholeAt = performance.now();
    await fleet.proven([untold, untoldToo]);
    expect(performance.now() - wholeAt).toBeLessThan(backMsMax + slackMs);
    exited(0, await kit.run(['true'], { host: 'host-b', holds }));
    await fleet.sound();
  });

  test('is half-open: a connection that passes nothing is found dead in a bounded time', async () => {
    const trees = await Promise.all(['host-b', 'host-c', 'host-d'].map((each) => fleet.hold(each)));
    const [deaf, mute, holed] = trees as [Tree, Tree, Tree];
    on('host-b').fault({ kind: 'deaf' });
    on('host-c').fault({ kind: 'mute' });
    on('host-d').fault({ kind: 'black_hole' });
    const toDeaf = await fleet.revoke(deaf, 'to a host that hears nothing');
    const toMute = await fleet.revoke(mute, 'to a host that cannot answer');
    const toHoled = await fleet.revoke(holed, 'to a host behind a connection that died in silence');
    // Who hears kills, whether or not anybody can be told.
    await until(() => living(mute).length === 0, 'the tree of the mute host gone', slackMs);
    // New connections pass: nothing has to heal.
    expect(await fleet.proven([toHoled])).toBeLessThan(noticedMsMax + slackMs);
    expect(await Promise.all([toDeaf, toMute].map((each) => fleet.isProven(each)))).toEqual([false, false]);
    expect(living(deaf)).toEqual(expect.arrayContaining([...deaf.pids]));
    heal();
    const wholeAt = performance.now();
    await fleet.proven([toDeaf, toMute]);
    expect(performance.now() - wholeAt).toBeLessThan(backMsMax + slackMs);
    await fleet.sound();
  });

  test('loses 10, 20 and 30 % of all packets: every revocation is proven while it does', async () => {
    const lossy = { 'host-b': 10, 'host-c': 20, 'host-d': 30 };
    const trees = (await Promise.all(Object.keys(lossy).map((each) => fleet.holdSome(each, 4)))).flat();
    for (const [host, percent] of Object.entries(lossy)) on(host).fault({ kind: 'loss', percent });
    const runs = Object.keys(lossy).map((host) => kit.run(['echo', 'started'], { host, holds }));
    const revoked: Revoked[] = [];
    for (const tree of trees) revoked.push(await fleet.revoke(tree, 'into a network that loses packets'));
    await fleet.proven(revoked);
    for (const outcome of await Promise.all(runs)) {
      if (outcome.code !== 0) expect(exited(125, outcome).stdout).toBe('');
    }
    heal();
    await fleet.sound();
  });
});

describe('an agent that', () => {
  test('is stopped until nats-server gives it up kills when it goes on, before it serves', async () => {
    const { constellation } = kit;
    const tree = await fleet.hold('host-b');
    const { pid } = constellation.part('host-b');
    process.kill(pid, 'SIGSTOP');
    const revoked = await fleet.revoke(tree, 'while the agent is stopped');
    const floodedAt = performance.now();
    await until(await flood(constellation), 'nats-server giving it up');
    expect(performance.now() - floodedAt).toBeLessThan(givenUpMsMax + slackMs);
    expect(await fleet.isProven(revoked)).toBe(false);
    const waiting = kit.run(['echo', 'started'], { host: 'host-b', holds });
    process.kill(pid, 'SIGCONT');
    const wokenAt = performance.now();
    await fleet.proven([revoked]);
    expect(performance.now() - wokenAt).toBeLessThan(backMsMax);
    const outcome = await waiting;
    if (outcome.code !== 0) expect(exited(125, outcome).stdout).toBe('');
    await fleet.sound();
  });

  test('believes in another time keeps ceilings and revocations, and is on record in the time of the control plane', async () => {
    const { token, api } = kit.constellation;
    const began = Date.now();
    const skewed = await Promise.all(
      Object.keys(clocks).map(async (host) => ({
        host,
        short: await fleet.hold(host, ['--ttl', '1s']),
        tree: await fleet.hold(host),
      })),
    );
    for (const { host, short, tree } of skewed) {
      const outcome = exited(124, await short.run.outcome);
      expect(outcome.ms).toBeLessThan(ttlMs + graceMs + slackMs);
      expect(
        await fleet.proven([await fleet.revoke(tree, `while it is another time on ${host}`)]),
      ).toBeLessThan(slackMs);
      const ended = Date.now();
      const seen = await call({ url: api, token }, 'host.get', { params: { name: host } });
      expect(between(began - hour, seen.lastSeenAt, ended)).toBe(true);
      // Its clock is wrong indeed: so says its own ledger, which nobody may correct.
      expect(Math.abs(Date.parse(firstEntry(host).at) - began)).toBeGreaterThan(
        Math.abs(clocks[host] ?? 0) - hour,
      );
      const { rows } = await call({ url: api, token }, 'ledger.possession', {
        query: { path: 'prod/stripe', from: at(began), to: at(ended) },
      });
      for (const { grantId } of [short, tree]) {
        const held = rows.find((row) => row.grantId === grantId);
        expect({
          grantId,
          from: between(began, held?.from, ended),
          to: between(began, held?.to, ended),
        }).toEqual({
          ...{ grantId, from: true, to: true },
        });
      }
    }
    await fleet.sound();
  });
});

/** Sends host-b more than a server keeps for one that reads nothing. Answers with whether it was noticed. */
async function flood({ busUrl, layout, api, token }: Constellation): Promise<() => boolean> {
  const log = path.join(layout.nats, 'nats.log');
  const before = fs.statSync(log).size;
  const trust = JSON.parse(fs.readFileSync(path.join(layout.keys, 'trust.json'), 'utf8')) as Trust;
  const { hostId } = await call({ url: api, token }, 'host.get', { params: { name: 'host-b' } });
  const noticed = (): boolean =>
    fs.readFileSync(log).subarray(before).toString('latin1').includes('Slow Consumer');
  using client = await BareClient.open(Number(new URL(busUrl).port), await mintControlPlaneUser(trust));
  const text = 'x'.repeat(900_000);
  for (let sent = 0; sent < floodMessagesMax && !noticed(); sent += 1)
    await client.publish(hostDown(hostId, 'ledger'), text);
  return noticed;
}
