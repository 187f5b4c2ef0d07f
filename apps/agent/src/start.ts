// Owns how the agent's parts are put together, and in which order they come up and go down.
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connectBus } from '@custody/bus/nats-bus';
import { isCanary } from '@custody/core/canary';
import type { Containment } from '@custody/core/policy';
import { Secret } from '@custody/core/secret';
import { startCanary } from '@custody/keeper/canary';
import { bootTimeMs } from '@custody/keeper/native';
import { scan } from '@custody/keeper/scan';
import { sweep } from '@custody/keeper/sweep';
import { inboxPrefix } from '@custody/wire/subjects';
import { Canary } from './canary.ts';
import type { StartConfig } from './config.ts';
import { Accounts } from './accounts.ts';
import { Ban, requireNotBanned } from './ban.ts';
import { Door } from './door.ts';
import { Escapes } from './escapes.ts';
import { groupPlaces, Groups, type GroupPlaces } from './groups.ts';
import { loadIdentity, type Identity } from './identity.ts';
import { Link } from './link.ts';
import type { Log } from './log.ts';
import { Manifests } from './manifests.ts';
import { isAlive, isStopped } from './process.ts';
import { Runs } from './runs.ts';
import { Shipper } from './shipping.ts';
import { Spool } from './spool.ts';

export const agentVersion = '0.1.0';

/** 128 bits: a nonce must never have been used. */
const newId = (prefix: string): string => `${prefix}_${randomBytes(16).toString('hex')}`;

export interface AgentDependencies {
  readonly log: Log;
  readonly wallClock: () => Date;
}

/**
 * Starts the agent. It listens only once it is subscribed and its ledger is open; it serves grants only
 * once it has caught up. Disposing stops serving and shipping; running trees go on under their keepers.
 */
export async function startAgent(
  config: StartConfig,
  { log, wallClock }: AgentDependencies,
): Promise<AsyncDisposable> {
  await requireNotBanned(config.dataDir);
  const identity = await loadIdentity(config.dataDir);
  await using stack = new AsyncDisposableStack();
  const { hostId, controlPlaneKey } = identity;

  const manifests = await Manifests.open(join(config.dataDir, 'manifests.json'), log);
  stack.use(manifests);
  const groups = stack.use(new Groups({ hostId, places: config.groups ? placesHere() : nowhere, log }));
  const ban: Ban = new Ban({
    ...{ dataDir: config.dataDir, hostId, name: identity.name, log },
    runs: () => runs,
    link: () => link,
    spool: () => spool,
  });
  const runs: Runs = new Runs({
    manifests,
    hostId,
    refusal: () => ban.refusal,
    hostName: identity.name,
    sealingKey: identity.sealingKey,
    link: () => link,
    spool: () => spool,
    sweep,
    groups,
    escapes: () => escapes,
    alive: isAlive,
    stopped: isStopped,
    isCanaryKeeper: (pid) => canary.isKeeper(pid),
    bootMs: bootTimeMs,
    newId,
    log,
  });
  const escapes: Escapes = new Escapes({
    // A canary has nowhere to escape to, and is always open: it alone is no reason to look through all processes.
    open: () => runs.openRuns().filter(({ credentials }) => !isCanary(credentials)),
    scan,
    record: (run, escape) => runs.recordEscape(run, escape),
    log,
  });
  const canary: Canary = new Canary({
    ready: () => config.canary && link.state === 'ready' && ban.refusal === undefined,
    open: () => runs.canaryOpen,
    start: (reference, ttlMs) => startCanary(config.socketPath, reference, ttlMs),
    end: () => runs.endCanaries(),
    bootMs: bootTimeMs,
    random: () => randomBytes(4).readUInt32LE() / 2 ** 32,
    log,
  });
  const spool = await Spool.open(
    {
      dir: join(config.dataDir, 'ledger'),
      hostId,
      signingKey: identity.signingKey,
      controlPlaneKey,
      wallClock,
      bootMs: bootTimeMs,
    },
    (entry) => runs.replay(entry),
  );
  stack.use(spool);
  spool.pinFrom(() => runs.lowestOpenSeq());
  stack.use(runs);
  stack.use(escapes);
  await spool.append('agent_started', { version: agentVersion, openRuns: runs.open });

  const link: Link = new Link({
    hostId,
    controlPlaneKey,
    cursorFile: join(config.dataDir, 'revocation-cursor'),
    bootMs: bootTimeMs,
    wallClock,
    log,
    onRevocation: (claims, heardBootMs, heardAt) => {
      runs.revoke(claims, heardBootMs, heardAt);
      ban.heard(claims);
    },
    settled: () => ban.marked,
    openSince: () => runs.lowestOpenEpoch(),
    onFresh: (provenBootMs) => runs.renew(provenBootMs),
    onLogChange: (change) => runs.logChanged(change),
    newNonce: () => newId('n'),
  });
  stack.use(ban);
  const accounts = new Accounts({
    ...{ hostId, controlPlaneKey, sweep, wallClock, bootMs: bootTimeMs, log },
    runs: () => runs,
    link: () => link,
    spool: () => spool,
  });
  await ban.resume((claims) => runs.revoke(claims, bootTimeMs(), wallClock()));
  const stopping = new AbortController();
  const joined = joinBus(identity, { link, accounts, spool, canary, log }, stopping.signal);
  stack.defer(async () => {
    stopping.abort();
    await (await joined)[Symbol.asyncDispose]();
  });

  runs.awaitKeepers();
  stack.use(
    await Door.open({
      path: config.socketPath,
      runs,
      log,
      status: () => statusOf(identity, { runs, spool, link, ban, groups }),
    }),
  );
  stack.use(canary); // it is ended while its keeper can still say so at the door
  // Only now: where another agent serves this socket, what looks like a leftover is its run.
  groups.dropAllBut(new Set(runs.openRuns().map(({ runId }) => runId)));
  log.info({ host: identity.name, hostId, socket: config.socketPath, openRuns: runs.open }, 'agent is up');
  return stack.move();
}

interface Parts {
  readonly runs: Runs;
  readonly spool: Spool;
  readonly link: Link;
  readonly ban: Ban;
  readonly groups: Groups;
}

/** What `custody agent status` shows. */
function statusOf(
  { name, hostId }: Identity,
  { runs, spool, link, ban, groups }: Parts,
): (readonly [string, string])[] {
  return [
    ['host', name],
    ['host_id', hostId],
    ['version', agentVersion],
    ['link', link.state],
    ...(link.refusal === undefined ? [] : [['bus_refused', link.refusal] as const]),
    ...(ban.refusal === undefined ? [] : [['banned', ban.refusal.publicMessage] as const]),
    ['revocation_epoch', String(link.cursor)],
    ['proven_ago_ms', agoMs(link.provenBootMs)],
    ['beacon_ago_ms', agoMs(link.beaconBootMs)],
    ['policy_revision', String(link.policy?.revision ?? 0)],
    ['containment', groups.refusal === undefined ? 'cgroup' : `${ungrouped}: ${groups.refusal}`],
    ['ledger_seq', String(spool.head?.seq ?? 0)],
    ['ledger_unconfirmed', String(spool.unconfirmed)],
    ...runs.describe().map((run) => ['run', JSON.stringify(run)] as const),
  ];
}

interface Joining {
  readonly link: Link;
  readonly accounts: Accounts;
  readonly spool: Spool;
  readonly canary: Canary;
  readonly log: Log;
}

/**
 * Joins the bus in the background, for as long as it takes: without it open runs are still watched and
 * questions answered, only no grant is given.
 */
async function joinBus(
  identity: Identity,
  { link, accounts, spool, canary, log }: Joining,
  signal: AbortSignal,
): Promise<AsyncDisposable> {
  await using stack = new AsyncDisposableStack();
  try {
    const bus = await connectBus({
      servers: identity.busServers,
      jwt: identity.busJwt,
      seed: Secret.fromUtf8(identity.busSeed),
      inboxPrefix: inboxPrefix(identity.hostId),
      name: `custody-agent-${identity.name}`,
      waitOnFirstConnect: true,
      signal,
    });
    stack.use(bus);
    const shipper = new Shipper({ bus, spool, hostId: identity.hostId, log });
    stack.use(shipper);
    await shipper.start();
    stack.use(await accounts.start(bus));
    stack.use(link);
    await link.start(bus, () => {
      shipper.nudge();
      canary.tend();
    });
  } catch (error) {
    if (!signal.aborted) {
      log.error({ err: error }, 'the bus could not be joined: this host must be enrolled again');
      link.refused(error instanceof Error ? error.message : 'refused');
    }
  }
  return stack.move();
}

/** What the keepers of this system hold a run with where there is no group. */
const ungrouped = process.platform === 'linux' ? 'subreaper' : 'kqueue';

/** What a host says of itself when it enrols: the strongest that it could hold a run with. */
export async function strongestContainment(log: Log): Promise<Containment> {
  if (process.platform !== 'linux') return ungrouped;
  const hostId = `probe-${process.pid}`;
  await using groups = new Groups({ hostId, places: placesHere(), log });
  return groups.refusal === undefined ? 'cgroup' : ungrouped;
}

/** How long ago that was on this host's clock. */
function agoMs(bootMs: number | undefined): string {
  return bootMs === undefined ? 'never' : String(Math.max(0, Math.round(bootTimeMs() - bootMs)));
}

const nowhere: GroupPlaces = { unified: [], pids: undefined, fromAnywhere: false };

function placesHere(): GroupPlaces {
  try {
    const own = readFileSync('/proc/self/cgroup', 'latin1');
    return groupPlaces(own, readFileSync('/proc/self/mountinfo', 'latin1'), process.getuid?.());
  } catch {
    return nowhere; // not Linux
  }
}
