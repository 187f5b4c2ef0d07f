// Owns how the control plane's parts are put together, and in which order they come up and go down.
import { randomBytes } from 'node:crypto';
import { uptime } from 'node:os';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { Bus } from '@custody/bus/bus';
import { connectBus } from '@custody/bus/nats-bus';
import { mintControlPlaneUser, type Trust } from '@custody/bus/trust';
import { httpBodyBytesMax } from '@custody/core/limits';
import { Secret } from '@custody/core/secret';
import { sodiumReady } from '@custody/crypto/sodium';
import { hashToken } from '@custody/crypto/tokens';
import { ensureAccess } from '@custody/store/access';
import { openDatabase, type Database } from '@custody/store/database';
import { migrate } from '@custody/store/migrate';
import { renewLog } from '@custody/store/revocation-log';
import { askForAccounts } from './accounts.ts';
import { Authority } from './authority.ts';
import { enforceBans, pusher } from './bans.ts';
import { Beacon } from './beacon.ts';
import { proveKills } from './canaries.ts';
import type { Config } from './config.ts';
import { openDesk } from './desk.ts';
import { Events } from './events.ts';
import { Grants } from './grants.ts';
import { Health } from './health.ts';
import { Hosts } from './hosts.ts';
import { prepare, ProblemFilter, refuseAddress } from './http.ts';
import { Ledgers } from './ledgers.ts';
import type { Log } from './log.ts';
import { ControlPlaneModule } from './module.ts';
import { News } from './news.ts';
import { OutboxRelay } from './outbox.ts';
import type { Parts } from './parts.ts';
import { Policies } from './policies.ts';
import { Revocations } from './revocations.ts';
import { Secrets } from './secrets.ts';
import { controlPlaneVersion } from './version.ts';

export interface ControlPlane extends AsyncDisposable {
  /** `http://127.0.0.1:4100` */
  readonly url: string;
}

export interface ControlPlaneDependencies {
  readonly log: Log;
  readonly now: () => Date;
}

/**
 * Starts with migrations, then HTTP; the bus joins when it answers: without it `readyz` says so and hosts keep
 * what they have.
 */
export async function startControlPlane(
  config: Config,
  { log, now }: ControlPlaneDependencies,
): Promise<ControlPlane> {
  await using stack = new AsyncDisposableStack();
  await sodiumReady();
  const { applied } = await migrate({
    connectionString: config.databaseUrl,
    migrationsDir: config.migrationsDir,
  });
  if (applied.length > 0) log.info({ applied }, 'migrated');
  const db = await openDatabase({
    connectionString: config.databaseUrl,
    poolMax: config.poolMax,
    log: (level, message) => log[level]({ message }, 'database'),
  });
  stack.use(db);
  const operator = hashToken(config.operatorToken);
  await ensureAccess(db, {
    id: `a_${Buffer.from(operator).toString('hex').slice(0, 24)}`,
    hash: operator,
    subject: 'operator',
    role: 'operator',
    createdAt: now(),
  });

  let bus: Bus | undefined;
  const trust = JSON.parse(config.trust) as Trust;
  const relay = new OutboxRelay(db, () => bus, log);
  stack.use(relay);
  const news = new News();
  const authority = new Authority(config.signingSeed, bootMs);
  const parts = compose(config, { db, authority, trust, relay, news, bus: () => bus, log, now });
  const beacon = new Beacon({ db, authority, bus: () => bus, log });
  stack.use(beacon);
  stack.use(askForAccounts({ db, authority, bus: () => bus, now, log }));
  const bans = enforceBans({
    ...{ db, now, log },
    joined: () => bus?.connected === true,
    push: pusher(trust, config.busServers),
  });
  stack.use(bans);
  stack.use(
    proveKills({
      ...{ db, authority, now, log },
      revocations: parts.revocations,
      intervalMs: config.canaryIntervalMs,
      joined: () => bus?.connected === true,
    }),
  );
  await parts.ledgers.recordStart(controlPlaneVersion);

  const stopping = new AbortController();
  const joined = joinBus(config, trust, stopping.signal, log, async (connected) => {
    bus = connected;
    const desk = await openDesk(connected, { ...parts, db, now, log });
    const consumer = await parts.ledgers.consume(connected);
    relay.nudge();
    beacon.nudge();
    bans.nudge();
    return [desk, consumer];
  });
  stack.defer(async () => {
    stopping.abort();
    await (await joined)[Symbol.asyncDispose]();
  });

  const app = await listen(config, parts, db, log, now);
  stack.defer(() => app.close());
  const url = await app.getUrl();
  log.info({ url }, 'control plane is up');
  const disposed = stack.move();
  return { url, [Symbol.asyncDispose]: () => disposed.disposeAsync() };
}

interface Wired {
  readonly db: Database;
  readonly authority: Authority;
  readonly trust: Trust;
  readonly relay: OutboxRelay;
  readonly news: News;
  readonly bus: () => Bus | undefined;
  readonly log: Log;
  readonly now: () => Date;
}

const bootMs = (): number => uptime() * 1_000;
const newId = (prefix: string): string => `${prefix}_${randomBytes(12).toString('hex')}`;

/**
 * After an older database was restored: the revocation log begins a new life, and every host notices. May be said
 * while control planes run.
 */
export async function renewRevocationLog(
  config: Config,
  { now, reason }: { readonly now: () => Date; readonly reason: string },
): Promise<{ readonly from: string; readonly to: string; readonly epoch: number }> {
  await sodiumReady();
  await migrate({ connectionString: config.databaseUrl, migrationsDir: config.migrationsDir });
  await using db = await openDatabase({ connectionString: config.databaseUrl, poolMax: 1 });
  const authority = new Authority(config.signingSeed, bootMs);
  const to = newId('log');
  const { from, epoch } = await renewLog(db, authority.author, to, (was, head) =>
    authority.entry('log_renewed', now(), { from: was, to, epoch: head, reason }),
  );
  return { from, to, epoch };
}

function compose(config: Config, { db, authority, trust, relay, news, bus, log, now }: Wired): Parts {
  const nudgeOutbox = (): void => relay.nudge();
  const secrets = new Secrets({ db, authority, kek: config.kek, now });
  const policies = new Policies({ db, authority, now, nudgeOutbox });
  const hosts = new Hosts({ db, authority, trust, busServers: config.busServersForHosts, now, newId });
  const grants = new Grants({ db, authority, policies, secrets, now, newId });
  const revocations = new Revocations({ db, authority, hosts, news, now, nudgeOutbox });
  const ledgers = new Ledgers({ db, authority, news, now, log });
  const health = new Health({ db, bus, grants, policies, revocations, version: controlPlaneVersion });
  const events = new Events({ db, news, log });
  return { secrets, policies, hosts, grants, revocations, ledgers, events, health };
}

/** Connects in the background, for as long as it takes. What `open` opens is closed before the connection. */
async function joinBus(
  config: Config,
  trust: Trust,
  signal: AbortSignal,
  log: Log,
  open: (bus: Bus) => Promise<AsyncDisposable[]>,
): Promise<AsyncDisposable> {
  await using stack = new AsyncDisposableStack();
  try {
    const { jwt, seed } = await mintControlPlaneUser(trust);
    const bus = await connectBus({
      servers: [...config.busServers],
      jwt,
      seed: Secret.fromUtf8(seed),
      name: 'custody-control-plane',
      waitOnFirstConnect: true,
      signal,
    });
    stack.use(bus);
    bus.onStatus((status, detail) => log.info({ status, detail }, 'bus'));
    for (const opened of await open(bus)) stack.use(opened);
  } catch (error) {
    if (!signal.aborted) {
      log.error({ err: error }, 'the bus could not be joined');
      throw error;
    }
  }
  return stack.move();
}

async function listen(
  config: Config,
  parts: Parts,
  db: Database,
  log: Log,
  now: () => Date,
): Promise<NestFastifyApplication> {
  const adapter = new FastifyAdapter({
    bodyLimit: httpBodyBytesMax,
    routerOptions: { maxParamLength: 1_024 },
    forceCloseConnections: true,
    frameworkErrors: refuseAddress,
  });
  const app = await NestFactory.create<NestFastifyApplication>(ControlPlaneModule.with(parts), adapter, {
    logger: false,
    bodyParser: false,
    abortOnError: false,
  });
  app.useGlobalFilters(new ProblemFilter(log));
  prepare(adapter.getInstance(), db, now);
  await app.listen(config.listen.port, config.listen.host);
  return app;
}
