// Owns what the control plane is told by its environment: read here, checked here, nowhere else.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { requireDurationMs } from '@custody/core/duration';
import { CustodyError } from '@custody/core/errors';
import { canaryIntervalMsDefault, reasonBytesMax } from '@custody/core/limits';
import { quote } from '@custody/core/names';
import { controlPlaneVariables, unknownVariable } from '@custody/core/variables';
import { readKeyFile } from '@custody/crypto/keyfiles';

/** Files that `init` makes and `start` reads, all 0600 in one 0700 folder. */
export const fileNames = {
  trust: 'trust.json',
  signing: 'signing.seed',
  kek: 'kek',
  operatorToken: 'operator.token',
  nats: 'nats.conf',
} as const;

export interface Config {
  readonly listen: { readonly host: string; readonly port: number };
  readonly databaseUrl: string;
  readonly poolMax: number;
  /** What the control plane dials, and what it tells hosts to dial. */
  readonly busServers: readonly string[];
  readonly busServersForHosts: readonly string[];
  readonly trust: string;
  readonly signingSeed: Uint8Array;
  readonly kek: Uint8Array;
  readonly operatorToken: string;
  readonly migrationsDir: string;
  readonly logLevel: string;
  /** Between two rounds in which hosts prove their kill; undefined: only those that operators make. */
  readonly canaryIntervalMs: number | undefined;
}

export interface InitConfig {
  readonly dir: string;
  readonly natsHost: string;
  readonly natsPort: number;
  readonly natsStoreDir: string;
  readonly natsResolverDir: string;
}

export type Command =
  | { readonly verb: 'start'; readonly config: Config }
  | { readonly verb: 'renew-log'; readonly config: Config; readonly reason: string }
  | ({ readonly verb: 'init' } & InitConfig);

type Environment = Readonly<Record<string, string | undefined>>;

/** Throws `bad_request` naming the key, never its value. */
export async function readCommand(argv: readonly string[], environment: Environment): Promise<Command> {
  const { values, positionals } = parse(argv);
  const verb = positionals[0] ?? 'start';
  if (verb === 'init') {
    const dir = values.dir ?? missing('--dir');
    return {
      verb,
      dir,
      natsHost: values['nats-host'] ?? '127.0.0.1',
      natsPort: portOf(values['nats-port'] ?? '4222', '--nats-port'),
      natsStoreDir: values['nats-store'] ?? join(dir, 'nats', 'jetstream'),
      natsResolverDir: values['nats-resolver'] ?? join(dir, 'nats', 'resolver'),
    };
  }
  if (verb !== 'start' && verb !== 'renew-log')
    throw usage(`${quote(verb)} is none of start, init, renew-log`);
  const unknown = unknownVariable(environment);
  if (unknown !== undefined)
    throw usage(
      `${unknown} is not a variable of the control plane; known: ${controlPlaneVariables.join(', ')}`,
    );
  if (verb === 'start') return { verb, config: await readConfig(environment) };
  const reason = values.reason ?? missing('--reason');
  if (reason === '' || Buffer.byteLength(reason) > reasonBytesMax)
    throw usage(`--reason has 1 to ${reasonBytesMax} bytes`);
  return { verb, reason, config: await readConfig(environment) };
}

async function readConfig(environment: Environment): Promise<Config> {
  const need = (key: string): string => environment[key] ?? missing(key);
  const keys = need('CUSTODY_KEYS_DIR');
  const bus = need('CUSTODY_BUS_SERVERS').split(',');
  return {
    listen: listenOf(environment['CUSTODY_LISTEN'] ?? '127.0.0.1:4100'),
    databaseUrl: (await readFile(need('CUSTODY_DATABASE_URL_FILE'), 'utf8')).trim(),
    poolMax: portOf(environment['CUSTODY_DATABASE_POOL'] ?? '10', 'CUSTODY_DATABASE_POOL'),
    busServers: bus,
    busServersForHosts: environment['CUSTODY_BUS_SERVERS_FOR_HOSTS']?.split(',') ?? bus,
    trust: await readFile(join(keys, fileNames.trust), 'utf8'),
    signingSeed: await readKeyFile(join(keys, fileNames.signing)),
    kek: await readKeyFile(join(keys, fileNames.kek)),
    operatorToken: (await readFile(join(keys, fileNames.operatorToken), 'utf8')).trim(),
    migrationsDir: join(import.meta.dirname, '..', '..', '..', 'prisma', 'migrations'),
    logLevel: environment['CUSTODY_LOG'] ?? 'info',
    canaryIntervalMs: canaryIntervalOf(environment['CUSTODY_CANARY_INTERVAL']),
  };
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        dir: { type: 'string' },
        reason: { type: 'string' },
        'nats-host': { type: 'string' },
        'nats-port': { type: 'string' },
        'nats-store': { type: 'string' },
        'nats-resolver': { type: 'string' },
      },
    });
  } catch (cause) {
    throw usage(cause instanceof Error ? cause.message : 'bad arguments');
  }
}

function listenOf(text: string): Config['listen'] {
  const match = /^\[?([^\]]+)\]?:(\d{1,5})$/.exec(text);
  if (match === null) throw usage('CUSTODY_LISTEN is not HOST:PORT');
  return { host: match[1] ?? '', port: Number(match[2]) };
}

function portOf(text: string, what: string): number {
  const number = Number(text);
  if (Number.isInteger(number) && number > 0 && number < 65_536) return number;
  throw usage(`${what} is not a number from 1 to 65535`);
}

function canaryIntervalOf(text: string | undefined): number | undefined {
  if (text === 'off') return undefined;
  return text === undefined ? canaryIntervalMsDefault : requireDurationMs(text, 'CUSTODY_CANARY_INTERVAL');
}

function missing(key: string): never {
  throw usage(`${key} is not set`);
}

function usage(message: string): CustodyError {
  return new CustodyError('bad_request', message, { next: 'see docs/operators.md' });
}
