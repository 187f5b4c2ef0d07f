// Owns what the agent is told by flags and environment: read here, checked here, nowhere else.
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { CustodyError } from '@custody/core/errors';
import { isHostName, quote } from '@custody/core/names';
import { shellVariables, unknownVariable } from '@custody/core/variables';

export interface StartConfig {
  readonly verb: 'start';
  readonly dataDir: string;
  readonly socketPath: string;
  readonly logLevel: string;
  /** Whether runs are held in groups where those can be made; not with `CUSTODY_CONTAINMENT=subreaper`. */
  readonly groups: boolean;
  /** Whether this host proves its kill on a canary of its own; not with `CUSTODY_CANARY=off`. */
  readonly canary: boolean;
}

export interface EnrollConfig {
  readonly verb: 'enroll';
  readonly dataDir: string;
  readonly url: string;
  readonly token: string;
  readonly name: string | undefined;
}

type Environment = Readonly<Record<string, string | undefined>>;

const logLevels = ['debug', 'info', 'warn', 'error', 'silent'];

/** Throws `bad_request` with the one line to show. */
export function readConfig(argv: readonly string[], environment: Environment): StartConfig | EnrollConfig {
  const unknown = unknownVariable(environment);
  if (unknown !== undefined)
    throw usage(`${unknown} is not a variable of custody; known: ${shellVariables.join(', ')}`);
  const { values, positionals } = parse(argv);
  const dataDir = values.data ?? environment['CUSTODY_DATA'] ?? defaultDataDir(environment);
  if (positionals[0] === 'enroll') {
    const { url, name } = values;
    const token = values.token ?? environment['CUSTODY_JOIN_TOKEN'];
    if (url === undefined) throw usage('agent enroll needs --url, the address of the control plane');
    if (token === undefined)
      throw usage('agent enroll needs --token or CUSTODY_JOIN_TOKEN, from custody host token create');
    if (!URL.canParse(url)) throw usage(`--url: ${quote(url)} is not an address`);
    if (name !== undefined && !isHostName(name)) throw usage(`--name: ${quote(name)} is not a host name`);
    return { verb: 'enroll', dataDir, url, token, name };
  }
  if (positionals[0] !== 'start') throw usage('say agent enroll or agent start');
  const logLevel = environment['CUSTODY_LOG'] ?? 'info';
  if (!logLevels.includes(logLevel)) throw usage(`CUSTODY_LOG is none of ${logLevels.join(', ')}`);
  const containment = environment['CUSTODY_CONTAINMENT'] ?? 'cgroup';
  if (containment !== 'subreaper' && containment !== 'cgroup')
    throw usage('CUSTODY_CONTAINMENT is neither subreaper nor cgroup');
  const canary = environment['CUSTODY_CANARY'] ?? 'on';
  if (canary !== 'on' && canary !== 'off') throw usage('CUSTODY_CANARY is neither on nor off');
  return {
    verb: 'start',
    dataDir,
    socketPath: values.socket ?? defaultSocket(dataDir, environment),
    logLevel,
    groups: containment === 'cgroup',
    canary: canary === 'on',
  };
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        data: { type: 'string' },
        url: { type: 'string' },
        token: { type: 'string' },
        name: { type: 'string' },
        socket: { type: 'string' },
      },
    });
  } catch (cause) {
    throw usage(cause instanceof Error ? (cause.message.split('.')[0] ?? '').toLowerCase() : 'bad arguments');
  }
}

function defaultDataDir(environment: Environment): string {
  return join(environment['XDG_DATA_HOME'] ?? join(homedir(), '.local', 'share'), 'custody', 'agent');
}

/** Where `custody run` looks too: the host's own place for root, the user's for anyone else. */
function defaultSocket(dataDir: string, environment: Environment): string {
  if (process.getuid?.() === 0) return '/run/custody/agent.sock';
  const runtime = environment['XDG_RUNTIME_DIR'];
  return runtime === undefined || runtime === ''
    ? join(dataDir, 'agent.sock')
    : join(runtime, 'custody', 'agent.sock');
}

function usage(message: string): CustodyError {
  return new CustodyError('bad_request', message, { next: 'see custody agent --help' });
}
