// Owns the keys and JWTs of the bus: operator, accounts, users, the server's configuration, and revoked users.
import { busMessageBytesMax } from '@custody/core/limits';
import { hostMayPublish, hostMaySubscribe } from '@custody/wire/subjects';
import { encodeAccount, encodeOperator, encodeUser } from '@nats-io/jwt';
import {
  createAccount,
  createOperator,
  createUser,
  fromPublic,
  fromSeed,
  type KeyPair,
} from '@nats-io/nkeys';
import {
  accountConsumersMax,
  accountStreamsMax,
  hostSubscriptionsMax,
  serverConnectionsMax,
  serverStoreBytesDefault,
} from './bounds.ts';
import type { Bus } from './bus.ts';
import { BusError } from './errors.ts';

type Holder = { readonly publicKey: string; readonly seed: string; readonly jwt: string };

/**
 * The whole authority over the bus, JSON-serialisable. It holds the operator's and the accounts' seeds: it
 * belongs into a file of mode 0600 at the control plane. The NATS server needs none of the seeds.
 */
export type Trust = {
  readonly version: 1;
  readonly operator: Holder;
  readonly system: Holder;
  readonly account: Holder;
  /** User public key → unix seconds; a JWT issued at or before that time is refused. */
  readonly revocations: Readonly<Record<string, number>>;
};

/** An nkey pair of a user: `seed` is secret, `publicKey` begins with `U`. */
export type UserKey = { readonly seed: string; readonly publicKey: string };

export type UserCredentials = { readonly jwt: string; readonly seed: string };

const accountName = 'custody';
const systemName = 'system';
/** The form that `hostOf` in wire/subjects knows; nothing in it can widen a permission. */
const hostPattern = /^[A-Za-z0-9_-]{1,64}$/;

export async function createTrust(): Promise<Trust> {
  const operator = createOperator();
  const system = createAccount();
  const account = createAccount();
  const operatorJwt = await encodeOperator(accountName, operator, { system_account: system.getPublicKey() });
  return {
    version: 1,
    operator: holder(operator, operatorJwt),
    system: holder(system, await encodeSystem(system, operator)),
    account: holder(account, await encodeCustody(account, operator, {})),
    revocations: {},
  };
}

export function generateUserKey(): UserKey {
  const key = createUser();
  return { seed: seedOf(key), publicKey: key.getPublicKey() };
}

/**
 * A JWT with which the holder of `publicKey` may publish to the host's own subjects and hear its own, the
 * broadcasts and its inbox; nothing else: no JetStream API, no answering of requests.
 * Throws `bad_subject` when `host` is not 1 to 64 of `A-Za-z0-9_-` or `publicKey` is not a user nkey.
 */
export async function mintHostUser(
  trust: Trust,
  user: { readonly host: string; readonly publicKey: string },
): Promise<string> {
  if (!hostPattern.test(user.host)) {
    throw new BusError('bad_subject', `mint host user: ${JSON.stringify(user.host)} is not a host id`);
  }
  return encodeUser(`host-${user.host}`, publicUser(user.publicKey), keyOf(trust.account), {
    pub: { allow: hostMayPublish(user.host), deny: [] },
    sub: { allow: hostMaySubscribe(user.host), deny: [] },
    subs: hostSubscriptionsMax,
    payload: busMessageBytesMax,
    // The server does not enforce `data` on users.
    data: -1,
    allowed_connection_types: ['STANDARD'],
  });
}

/** A fresh user that may do everything in the custody account, and nothing in the system account. */
export async function mintControlPlaneUser(trust: Trust): Promise<UserCredentials> {
  return mint('control-plane', keyOf(trust.account));
}

/** A fresh user of the system account: what `pushAccount` needs, and nothing else should have. */
export async function mintSystemUser(trust: Trust): Promise<UserCredentials> {
  return mint('control-plane-system', keyOf(trust.system));
}

/**
 * The trust in which the user's JWTs issued at or before `atSeconds` are revoked. Make the result durable
 * before `pushAccount`: a later push from an older trust would lift the revocation.
 */
export async function revokeUser(
  trust: Trust,
  user: { readonly publicKey: string; readonly atSeconds: number },
): Promise<Trust> {
  publicUser(user.publicKey);
  const atSeconds = Math.max(user.atSeconds, trust.revocations[user.publicKey] ?? 0);
  const revocations = { ...trust.revocations, [user.publicKey]: atSeconds };
  const jwt = await encodeCustody(keyOf(trust.account), keyOf(trust.operator), revocations);
  return { ...trust, account: { ...trust.account, jwt }, revocations };
}

/**
 * Gives the server this trust's account JWT; it ends the connections of revoked users at once. Idempotent:
 * to be done on every start. `systemBus` is connected as a `mintSystemUser`. Rejects as `request` does, and
 * with `refused` when the server will not have it.
 */
export async function pushAccount(
  trust: Trust,
  systemBus: Bus,
  options: { readonly timeoutMs: number },
): Promise<void> {
  const jwt = new TextEncoder().encode(trust.account.jwt);
  const reply = await systemBus.request('$SYS.REQ.CLAIMS.UPDATE', jwt, options);
  const answer: unknown = JSON.parse(new TextDecoder().decode(reply.data));
  if (!isAccepted(answer)) {
    throw new BusError('refused', 'push account: the server did not take the account JWT', { cause: answer });
  }
}

export type ServerOptions = {
  readonly host: string;
  /** `-1`: the server picks a free one and writes it to `portsDir`. */
  readonly port: number;
  readonly storeDir: string;
  readonly resolverDir: string;
  readonly serverName: string;
  readonly maxPayloadBytes?: number;
  readonly storeBytesMax?: number;
  readonly portsDir?: string;
};

/**
 * The text of a nats-server configuration file (2.9.10 or newer). It holds JWTs and no seed. The resolver
 * keeps the newest account JWT it was given, so that a preload never lifts a revocation. No monitoring port.
 */
export function serverConfig(trust: Trust, options: ServerOptions): string {
  const text = (value: string): string => quoted(value);
  const lines = [
    `server_name: ${text(options.serverName)}`,
    `host: ${text(options.host)}`,
    `port: ${options.port}`,
    ...(options.portsDir === undefined ? [] : [`ports_file_dir: ${text(options.portsDir)}`]),
    `max_payload: ${options.maxPayloadBytes ?? busMessageBytesMax}`,
    `max_connections: ${serverConnectionsMax}`,
    'ping_interval: "10s"',
    'ping_max: 2',
    // What one host does not read holds up whoever publishes to it, which is the control plane to all hosts.
    'write_deadline: "2s"',
    `operator: ${text(trust.operator.jwt)}`,
    `system_account: ${text(trust.system.publicKey)}`,
    `resolver: { type: full, dir: ${text(options.resolverDir)}, allow_delete: false, interval: "2m" }`,
    'resolver_preload: {',
    `  ${trust.system.publicKey}: ${text(trust.system.jwt)}`,
    `  ${trust.account.publicKey}: ${text(trust.account.jwt)}`,
    '}',
    'jetstream: {',
    `  store_dir: ${text(options.storeDir)}`,
    `  max_memory_store: 0`,
    `  max_file_store: ${options.storeBytesMax ?? serverStoreBytesDefault}`,
    '}',
  ];
  return `${lines.join('\n')}\n`;
}

// Every limit is written out: an account JWT's absent limits mean none of it, not all of it.
const plainLimits = {
  subs: -1,
  data: -1,
  payload: -1,
  imports: -1,
  exports: -1,
  wildcards: true,
  conn: -1,
  leaf: 0,
  disallow_bearer: true,
};

function encodeSystem(system: KeyPair, operator: KeyPair): Promise<string> {
  return encodeAccount(systemName, system, { limits: plainLimits }, { signer: operator });
}

function encodeCustody(
  account: KeyPair,
  operator: KeyPair,
  revocations: Readonly<Record<string, number>>,
): Promise<string> {
  const limits = {
    ...plainLimits,
    mem_storage: 0,
    disk_storage: -1, // the server's own max_file_store bounds it
    streams: accountStreamsMax,
    consumer: accountConsumersMax,
    max_bytes_required: true,
  };
  return encodeAccount(
    accountName,
    fromPublic(account.getPublicKey()),
    { limits, revocations: { ...revocations } },
    { signer: operator },
  );
}

async function mint(name: string, issuer: KeyPair): Promise<UserCredentials> {
  const key = createUser();
  const jwt = await encodeUser(name, key, issuer, {
    subs: -1,
    payload: -1,
    data: -1,
    allowed_connection_types: ['STANDARD'],
  });
  return { jwt, seed: seedOf(key) };
}

function holder(key: KeyPair, jwt: string): Holder {
  return { publicKey: key.getPublicKey(), seed: seedOf(key), jwt };
}

function seedOf(key: KeyPair): string {
  return new TextDecoder().decode(key.getSeed());
}

function keyOf(of: Holder): KeyPair {
  return fromSeed(new TextEncoder().encode(of.seed));
}

function publicUser(publicKey: string): KeyPair {
  try {
    if (publicKey.startsWith('U')) return fromPublic(publicKey);
  } catch (cause) {
    throw new BusError('bad_subject', 'host user: not the public key of a user', { cause });
  }
  throw new BusError('bad_subject', 'host user: not the public key of a user');
}

function quoted(value: string): string {
  if (/["\\\p{Cc}]/u.test(value)) {
    throw new BusError('bad_subject', `server configuration: ${JSON.stringify(value)} cannot be written`);
  }
  return `"${value}"`;
}

function isAccepted(answer: unknown): boolean {
  if (typeof answer !== 'object' || answer === null || !('data' in answer)) return false;
  const { data } = answer;
  return typeof data === 'object' && data !== null && 'code' in data && data.code === 200;
}
