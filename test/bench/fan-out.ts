// Owns the bench of the broadcast: one revocation to thousands of connections, beside a bare publish to the same ones.
import { fork, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { generateUserKey, mintControlPlaneUser, mintHostUser, type Trust } from '@custody/bus/trust';
import type { Constellation } from '@custody/constellation/constellation';
import { call } from '@custody/wire/client';
import { fleet } from '@custody/wire/subjects';
import { percentilesOf, progress, round, type Percentiles } from './results.ts';
import type { Plan, Round, Told } from './subscribers.ts';
import { privateKeyOf, sharedMs, WireClient } from './wire.ts';

const connectionsWanted = 5_000;
/** What the processes at both ends need of descriptors besides their connections. */
const filesBesides = 500;
/** To mint a user takes 25 ms: each is that of many connections. */
const users = 25;
const roundsWarm = 5;
const rounds = 60;
const toldMsMax = 300_000;

export interface FanOut {
  readonly connections: number;
  readonly users: number;
  readonly filesMax: number;
  readonly messageBytes: number;
  readonly revocation: Way;
  readonly bare: Way;
  /** Of the medians over the rounds: the revocation counted from the operator's request, the bare one from its publish. */
  readonly ratioOfLast: number;
  readonly ratioOfMedian: number;
  /** The same, both counted from when the first connection heard. */
  readonly ratioOfSpread: number;
  readonly incomplete: number;
}

interface Way {
  /** From the start until the first, half, and the last of the connections had heard. */
  readonly first: Percentiles;
  readonly median: Percentiles;
  readonly last: Percentiles;
}

/** `grantId` is of a run that is over: what a revocation of it costs is the broadcast. */
export async function fanOut(constellation: Constellation, grantId: string): Promise<FanOut> {
  const { api, token, busUrl, layout } = constellation;
  const client = { url: api, token };
  const port = Number(new URL(busUrl).port);
  const trust = JSON.parse(readFileSync(join(layout.keys, 'trust.json'), 'utf8')) as Trust;
  const filesMax = Math.min(filesMaxOf(process.pid), filesMaxOf(constellation.part('nats').pid));
  const connections = Math.min(connectionsWanted, filesMax - filesBesides);
  if (connections < connectionsWanted) {
    console.log(
      `fan-out: ${connections} connections of ${connectionsWanted}: a process may open ${filesMax} files here`,
    );
  }
  using load = new Load();
  await load.ask({ port, connections, users: await usersOf(trust) }, 'up');

  const own = await mintControlPlaneUser(trust);
  let broadcast = Buffer.alloc(0);
  using publisher = await WireClient.open(
    port,
    { jwt: own.jwt, key: privateKeyOf(own.seed) },
    [fleet('revocation')],
    ({ bytes }) => (broadcast = Buffer.from(bytes)),
  );
  const revoke = async (): Promise<unknown> =>
    call(client, 'revocation.create', {
      body: { target: { kind: 'grant', id: grantId }, reason: 'fan-out' },
    });
  // A broadcast that was said again: just as long, and as much work for who checks it, and it changes nothing.
  const repeat = async (): Promise<void> => {
    const text = broadcast.toString('latin1');
    const headers = text.slice(0, text.indexOf('\r\n\r\n') + 4);
    publisher.publish(fleet('revocation'), headers, text.slice(headers.length));
  };
  const ways = { revocation: revoke, bare: repeat };
  const samples = { revocation: [] as Sample[], bare: [] as Sample[] };
  await revoke();
  await publisher.flush();
  for (let each = -roundsWarm; each < rounds; each += 1) {
    const order = each % 2 === 0 ? (['revocation', 'bare'] as const) : (['bare', 'revocation'] as const);
    for (const way of order) {
      await load.ask('round', 'ready');
      const over = load.told('round');
      const fromMs = sharedMs();
      await ways[way]();
      const sample = since(fromMs, (await over) as Round);
      if (each >= 0) samples[way].push(sample);
    }
    progress('fan-out: round', Math.max(each + 1, 0), rounds);
  }
  const complete = (way: readonly Sample[]): Sample[] => way.filter(({ heard }) => heard === connections);
  const [revocation, bare] = [complete(samples.revocation), complete(samples.bare)].map(wayOf);
  if (revocation === undefined || bare === undefined) throw new Error('no rounds');
  const spread = (all: readonly Sample[]): number =>
    percentilesOf(all.map(({ firstMs, lastMs }) => lastMs - firstMs)).p50Ms;
  return {
    connections,
    users,
    filesMax,
    messageBytes: samples.revocation[0]?.bytes ?? 0,
    revocation,
    bare,
    ratioOfLast: round(revocation.last.p50Ms / bare.last.p50Ms),
    ratioOfMedian: round(revocation.median.p50Ms / bare.median.p50Ms),
    ratioOfSpread: round(spread(complete(samples.revocation)) / spread(complete(samples.bare))),
    incomplete: [...samples.revocation, ...samples.bare].filter(({ heard }) => heard < connections).length,
  };
}

interface Sample extends Round {
  readonly heard: number;
}

const since = (fromMs: number, { firstMs, medianMs, lastMs, ...rest }: Round): Sample => ({
  ...rest,
  firstMs: firstMs - fromMs,
  medianMs: medianMs - fromMs,
  lastMs: lastMs - fromMs,
});

const wayOf = (samples: readonly Sample[]): Way => ({
  first: percentilesOf(samples.map(({ firstMs }) => firstMs)),
  median: percentilesOf(samples.map(({ medianMs }) => medianMs)),
  last: percentilesOf(samples.map(({ lastMs }) => lastMs)),
});

async function usersOf(trust: Trust): Promise<Plan['users']> {
  return Promise.all(
    Array.from({ length: users }, async (_, index) => {
      const host = `h_load${String(index).padStart(12, '0')}`;
      const { seed, publicKey } = generateUserKey();
      return { host, seed, jwt: await mintHostUser(trust, { host, publicKey }) };
    }),
  );
}

/** How many files a process may have open; both ends raise their soft limit to the hard one by themselves. */
function filesMaxOf(pid: number): number {
  const limits = readFileSync(`/proc/${pid}/limits`, 'utf8');
  return Number(/^Max open files\s+\S+\s+(\d+)/m.exec(limits)?.[1] ?? Number.NaN);
}

class Load implements Disposable {
  readonly #child: ChildProcess = fork(join(import.meta.dirname, 'subscribers.ts'));

  async ask(asked: Plan | 'round', awaited: Told['what']): Promise<Told> {
    const told = this.told(awaited);
    this.#child.send(asked);
    return told;
  }

  told(awaited: Told['what']): Promise<Told> {
    const { promise, resolve, reject } = Promise.withResolvers<Told>();
    const hear = (told: Told): void => (told.what === awaited ? resolve(told) : undefined);
    const gone = (): void => reject(new Error('the load process ended'));
    const late = setTimeout(() => reject(new Error(`the load process did not say ${awaited}`)), toldMsMax);
    this.#child.on('message', hear);
    this.#child.once('exit', gone);
    return promise.finally(() => {
      clearTimeout(late);
      this.#child.off('message', hear);
      this.#child.off('exit', gone);
    });
  }

  [Symbol.dispose](): void {
    if (this.#child.connected) this.#child.disconnect();
  }
}
