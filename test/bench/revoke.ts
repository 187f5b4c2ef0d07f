// Owns the bench of revocation: from the operator's word to an empty tree, beside a poller; the fan-out; what freshness costs.
import { setTimeout as wait } from 'node:timers/promises';
import type { Constellation } from '@custody/constellation/constellation';
import { call, type ClientOptions } from '@custody/wire/client';
import type { RevocationView } from '@custody/wire/http';
import type { NamedTarget } from '@custody/wire/messages';
import { fanOut } from './fan-out.ts';
import { freshnessCost } from './freshness.ts';
import { groundWith } from './ground.ts';
import { LedgerLoad, Pollers, startLive, type LiveRun } from './live-runs.ts';
import { percentilesOf, progress, round, type Results } from './results.ts';
import { sharedMs } from './wire.ts';

const liveRuns = 100;
const revocations = 300;
/** One revocation so often: the polls fall everywhere between. */
const revokeEveryMs = 200;
const loadEveryMs = 100;
const pollEveryMs = 10_000;
const receiptMsMax = 10_000;
const startedAtOnce = 10;
const roundsOfAll = 10;

export async function revoke(): Promise<Results> {
  await using ground = await groundWith(2);
  const { constellation, client } = ground;
  const { lastGrant, ...kill } = await killTimes(constellation, client);
  console.log(kill);
  const all = await allAtOnce(constellation, client);
  console.log(all);
  const broadcast = await fanOut(constellation, lastGrant);
  console.log(broadcast);
  const freshness = await freshnessCost(constellation);
  console.log(freshness);
  return {
    command: 'npm run bench -- revoke',
    method:
      `kill: ${liveRuns} runs of three processes live on 2 hosts, one revoked every ${revokeEveryMs} ms and replaced, ` +
      `${revocations} in all, while a run begins and ends every ${loadEveryMs} ms; beside each run a tree of the same form ` +
      `under no keeper, ended by one poller for each host that asks the same API every ${pollEveryMs} ms; ` +
      'operator: request sent until the receipt that says empty is in the answer; empty: request sent until the tree was ' +
      'empty, by the one clock of the machine; received: until the control plane had the receipt; host: heard until empty. ' +
      `fan-out: connections of one load process with the permissions of hosts, ${broadcast.users} users; a revocation ` +
      'from the request over HTTP, and the same bytes published bare by the bench, interleaved; ' +
      'until the first, half and the last connection has heard; medians over the rounds. ' +
      'freshness: every byte of the connection of one idle host, counted between its agent and nats-server',
    figures: { kill, all, fanOut: broadcast, freshness },
  };
}

interface Sample {
  readonly operatorMs: number;
  readonly emptyMs: number;
  readonly hostMs: number;
  readonly receivedMs: number;
  readonly poller: Promise<number>;
}

async function killTimes(
  { hosts }: Constellation,
  client: ClientOptions,
): Promise<Record<string, unknown> & { lastGrant: string }> {
  const names = hosts.map(({ name }) => name);
  await using pollers = Pollers.start(client, names, 0, pollEveryMs);
  const live: LiveRun[] = [];
  const start = async (index: number): Promise<void> => {
    const host = hosts[index % hosts.length];
    if (host === undefined) throw new Error('no hosts');
    const run = await startLive(host);
    await pollers.hold(run);
    live.push(run);
  };
  for (let index = 0; index < liveRuns; index += startedAtOnce) {
    await Promise.all(Array.from({ length: startedAtOnce }, (_, each) => start(index + each)));
  }
  const samples: Sample[] = [];
  const replacing = new Set<Promise<void>>();
  let lastGrant = '';
  await using load = new LedgerLoad(hosts, loadEveryMs);
  for (let each = 0; each < revocations; each += 1) {
    const paced = wait(revokeEveryMs);
    const run = live.shift();
    if (run === undefined) throw new Error('no live run');
    lastGrant = run.grantId;
    samples.push(await revokeOne(client, run, pollers));
    const one = start(hosts.findIndex(({ name }) => name === run.host)).finally(() => replacing.delete(one));
    replacing.add(one);
    await paced;
    progress('revocation', each + 1, revocations);
  }
  await Promise.all(replacing);
  console.log('waiting for the pollers');
  const pollerMs = await Promise.all(samples.map(({ poller }) => poller));
  const operator = percentilesOf(samples.map(({ operatorMs }) => operatorMs));
  const empty = percentilesOf(samples.map(({ emptyMs }) => emptyMs));
  const host = percentilesOf(samples.map(({ hostMs }) => hostMs));
  const received = percentilesOf(samples.map(({ receivedMs }) => receivedMs));
  const poller = percentilesOf(pollerMs);
  await revokeProven(client, { kind: 'prefix', path: 'prod' });
  await Promise.all(live.map(({ gone }) => gone));
  return {
    liveRuns,
    processesPerRun: 3,
    load: { runs: load.finished, failed: load.failed },
    operator,
    empty,
    received,
    host,
    poller,
    pollerToOperatorP99: round(poller.p99Ms / operator.p99Ms),
    pollerToEmptyP99: round(poller.p99Ms / empty.p99Ms),
    lastGrant,
  };
}

interface Proven {
  readonly view: RevocationView;
  readonly sentMs: number;
  readonly operatorMs: number;
  /**
   * From the request until each tree was empty, and until the control plane had its receipt, by the one clock of the
   * machine; and from hearing of it until it was empty.
   */
  readonly trees: readonly {
    readonly emptyMs: number;
    readonly hostMs: number;
    readonly receivedMs: number;
  }[];
}

/** Asks as `custody revoke --wait` does: the request, and then for news until every receipt is there. */
async function revokeProven(client: ClientOptions, target: NamedTarget): Promise<Proven> {
  const [sentAt, sentMs] = [Date.now(), sharedMs()];
  const made = await call(client, 'revocation.create', { body: { target, reason: 'bench' } });
  if ('dryRun' in made) throw new Error('a preview');
  let view: RevocationView = made;
  while (!view.proven) {
    const leftMs = sentMs + receiptMsMax - sharedMs();
    if (leftMs <= 0) throw new Error(`not proven after ${receiptMsMax} ms: ${JSON.stringify(view.counts)}`);
    view = await call(client, 'revocation.get', {
      params: { epoch: String(view.epoch) },
      query: { waitMs: String(Math.ceil(leftMs)) },
    });
  }
  const operatorMs = sharedMs() - sentMs;
  const trees = view.receipts.flatMap(({ state, heardAt, emptyMicros, receivedAt }) => {
    if (state !== 'killed' || heardAt === undefined || emptyMicros === undefined || receivedAt === undefined)
      return [];
    const hostMs = emptyMicros / 1_000;
    // The host reads its wall clock when it hears; that clock is ours.
    const emptyMs = Date.parse(heardAt) - sentAt + hostMs;
    return [{ hostMs, emptyMs, receivedMs: Date.parse(receivedAt) - sentAt }];
  });
  return { view, sentMs, operatorMs, trees };
}

async function revokeOne(client: ClientOptions, run: LiveRun, pollers: Pollers): Promise<Sample> {
  const { view, sentMs, operatorMs, trees } = await revokeProven(client, { kind: 'grant', id: run.grantId });
  const [tree] = trees;
  if (tree === undefined) throw new Error(`${run.grantId} was not killed: ${JSON.stringify(view.receipts)}`);
  const poller = pollers.emptied(run.grantId).then((emptyMs) => emptyMs - sentMs);
  return { operatorMs, ...tree, poller };
}

/** One word that hits every run of both hosts at once. */
async function allAtOnce({ hosts }: Constellation, client: ClientOptions): Promise<Record<string, unknown>> {
  const rounds: Proven[] = [];
  for (let each = 0; each < roundsOfAll; each += 1) {
    const live: LiveRun[] = [];
    for (let index = 0; index < liveRuns; index += startedAtOnce) {
      const more = Array.from({ length: startedAtOnce }, (_, at) => hosts[(index + at) % hosts.length]);
      live.push(...(await Promise.all(more.filter((host) => host !== undefined).map(startLive))));
    }
    const proven = await revokeProven(client, { kind: 'prefix', path: 'prod' });
    if (proven.trees.length !== liveRuns)
      throw new Error(
        `${proven.trees.length} of ${liveRuns} were killed: ${JSON.stringify(proven.view.counts)}`,
      );
    rounds.push(proven);
    await Promise.all(live.map(({ gone }) => gone));
    progress('all at once: round', each + 1, roundsOfAll);
  }
  const last = (trees: Proven['trees'], of: 'emptyMs' | 'hostMs'): number =>
    Math.max(...trees.map((tree) => tree[of]));
  return {
    runs: liveRuns,
    operator: percentilesOf(rounds.map(({ operatorMs }) => operatorMs)),
    lastEmpty: percentilesOf(rounds.map(({ trees }) => last(trees, 'emptyMs'))),
    hostLastEmpty: percentilesOf(rounds.map(({ trees }) => last(trees, 'hostMs'))),
    eachEmpty: percentilesOf(rounds.flatMap(({ trees }) => trees.map(({ emptyMs }) => emptyMs))),
  };
}
