// Owns `custody host …` and `custody agent …`.
import { connect } from 'node:net';
import { join } from 'node:path';
import type { Command } from 'commander';
import { CustodyError } from '@custody/core/errors';
import { formatDuration, requireDurationMs } from '@custody/core/duration';
import type { Freshness } from '@custody/core/policy';
import {
  encodeFrame,
  fieldAll,
  FrameReader,
  lossyTextOf,
  textMaybe,
  type Frame,
} from '@custody/keeper/frames';
import type { HostView } from '@custody/wire/http';
import { findRunning, layoutOf } from '@custody/constellation/layout';
import { ask, defaultDataDir, show, table, type Context } from './context.ts';
import { finish, waitLimit, type WaitOptions } from './revoke.ts';
import { collect } from './secret.ts';

const statusTimeoutMs = 3_000;

export function hostCommands(program: Command, context: Context): void {
  const host = program.command('host').description('enrolled hosts and their join tokens');

  host
    .command('list')
    .description('list enrolled hosts')
    .option('--json', 'answer as JSON')
    .action(async (options: { json?: boolean }) => {
      const { hosts } = await ask(context, 'host.list', {});
      show(context, options.json, hosts, () => (hosts.length === 0 ? 'no hosts' : hostTable(hosts)));
    });

  host
    .command('show')
    .description('show one host')
    .argument('<name>')
    .option('--json', 'answer as JSON')
    .action(async (name: string, options: { json?: boolean }) => {
      const found = await ask(context, 'host.get', { params: { name } });
      show(context, options.json, found, () =>
        table(
          ['FIELD', 'VALUE'],
          Object.entries(found).map(([key, value]) => [
            key,
            typeof value === 'string' ? value : JSON.stringify(value),
          ]),
        ),
      );
    });

  host
    .command('ban')
    .description('end everything on a host, wipe its keys, and cut it off; it has to enrol again')
    .argument('<name>')
    .requiredOption('--reason <text>', 'goes on record')
    .option('--wait', 'wait for the receipts; exit 0 when proven, 3 when only bounded')
    .option('--timeout <duration>', 'with --wait: give up after this long, with 3 unless all is proven')
    .option('--json', 'answer as JSON')
    .action(async (name: string, options: { reason: string } & WaitOptions) => {
      waitLimit(options);
      const made = await ask(context, 'host.ban', { params: { name }, body: { reason: options.reason } });
      await finish(context, made, options);
    });

  host
    .command('token')
    .description('join tokens')
    .command('create')
    .description('make a join token: one use, expiring; it is shown once')
    .option('--ttl <duration>', 'how long it can be used', '1h')
    .option('--name <name>', 'the only name it enrols')
    .option('--label <k=v>', 'a label that policies can see', collect, [])
    .option('--json', 'answer as JSON')
    .action(async (options: { ttl: string; name?: string; label: string[]; json?: boolean }) => {
      const ttlMs = requireDurationMs(options.ttl, '--ttl');
      const { name } = options;
      const body = { ttlMs, labels: readLabels(options.label), ...(name === undefined ? {} : { name }) };
      const made = await ask(context, 'host.token', { body });
      show(
        context,
        options.json,
        made,
        () => `${made.token}\n(expires ${made.expiresAt}; use it with custody agent enroll)`,
      );
    });
}

export function agentCommands(program: Command, context: Context): void {
  const agent = program.command('agent').description('the daemon of this host');

  agent
    .command('enroll')
    .description('make this machine a host: keys are made here and never leave it')
    .requiredOption('--url <url>', 'the control plane')
    .requiredOption('--token <token>', 'from custody host token create; or CUSTODY_JOIN_TOKEN')
    .option('--name <name>', 'the name of the host, where the token gives none')
    .option('--data <dir>', 'where keys and ledger are kept');

  agent
    .command('start')
    .description('serve runs on this host, in the foreground')
    .option('--data <dir>', 'where keys and ledger are kept')
    .option('--socket <path>', 'where runs ask (default: agent.sock in the data folder)');

  agent
    .command('status')
    .description('how the agent of this host is, and what it holds open')
    .option('--socket <path>', 'default: CUSTODY_SOCKET, or the first host of custody up')
    .option('--json', 'answer as JSON')
    .action(async (options: { socket?: string; json?: boolean }) => {
      const frame = await askAgent(options.socket ?? (await findSocket(context)));
      const runs = fieldAll(frame, 'run').map((bytes) => JSON.parse(lossyTextOf(bytes)) as RunStatus);
      const facts = frame.fields
        .filter(([key]) => key !== 'run')
        .map(([key, value]) => [key, lossyTextOf(value)] as const);
      const status = { ...Object.fromEntries(facts), runs };
      show(context, options.json, status, () => {
        const lines = [...facts, ['open_runs', String(runs.length)] as const];
        return [table(['FIELD', 'VALUE'], lines), ...(runs.length === 0 ? [] : ['', runTable(runs)])].join(
          '\n',
        );
      });
      if (textMaybe(frame, 'link') !== 'ready') process.exitCode = 1;
    });
}

/** One run of this host, as its agent shows it. */
export interface RunStatus {
  readonly grantId: string;
  readonly uid: number;
  readonly ceilingInMs: number;
  readonly freshness?: Freshness;
  readonly staleInMs?: number;
  readonly renewable: boolean;
  readonly command: readonly string[];
}

export function runTable(runs: readonly RunStatus[]): string {
  return table(
    ['GRANT', 'UID', 'CEILING', 'WHEN CUT OFF', 'COMMAND'],
    runs.map((run) => [
      run.grantId,
      String(run.uid),
      `in ${seconds(run.ceilingInMs)}`,
      whenCutOff(run),
      run.command.join(' ').slice(0, 60),
    ]),
  );
}

/** What the host will do with a run when it hears no beacon any more. */
function whenCutOff({ freshness, staleInMs = 0, ceilingInMs, renewable }: RunStatus): string {
  if (freshness?.kind !== 'strict') return 'lives to its ceiling';
  if (staleInMs >= ceilingInMs) return `lives to its ceiling (strict ${formatDuration(freshness.ms)})`;
  const unless = renewable ? 'unless a beacon comes' : 'whatever comes: the revocation log was set back';
  return `ends in ${seconds(staleInMs)} ${unless} (strict ${formatDuration(freshness.ms)})`;
}

function seconds(ms: number): string {
  return `${Math.ceil(ms / 1_000)} s`;
}

/** Where this shell's runs would ask. */
async function findSocket(context: Context): Promise<string> {
  const { CUSTODY_SOCKET: named, XDG_RUNTIME_DIR: runtime } = context.environment;
  if (named !== undefined && named !== '') return named;
  const running = await findRunning(layoutOf(defaultDataDir(context)));
  return (
    running?.hosts[0]?.socket ??
    (runtime === undefined ? '/run/custody/agent.sock' : join(runtime, 'custody', 'agent.sock'))
  );
}

async function askAgent(path: string): Promise<Frame> {
  const socket = connect(path);
  const answer = Promise.withResolvers<Frame>();
  const reader = new FrameReader();
  const failed = (cause: unknown): void =>
    answer.reject(
      new CustodyError('agent_unavailable', `no agent answers at ${path}`, {
        next: 'custody agent start starts one; custody up starts a constellation with its own',
        cause,
      }),
    );
  socket.setTimeout(statusTimeoutMs, () => failed(new Error('timeout')));
  socket.on('error', failed);
  socket.on('close', failed);
  socket.on('data', (chunk: Buffer) => {
    const [frame] = reader.push(chunk);
    if (frame !== undefined) answer.resolve(frame);
  });
  socket.write(encodeFrame({ verb: 'status', fields: [] }));
  try {
    return await answer.promise;
  } finally {
    socket.destroy();
  }
}

function hostTable(hosts: readonly HostView[]): string {
  return table(
    ['NAME', 'ID', 'LAST SEEN', 'CONTAINMENT', 'LAST PROVED ITS KILL', 'LEDGER'],
    hosts.map(({ name, hostId, lastSeenAt, containment, canary, ledger, bannedAt }) => [
      bannedAt === undefined ? name : `${name} BANNED`,
      hostId,
      lastSeenAt ?? 'never',
      containment ?? '',
      proofText(canary),
      ledger === undefined ? 'empty' : `${ledger.epoch}/${ledger.seq}${ledger.forked ? ' FORKED' : ''}`,
    ]),
  );
}

function proofText({ state, provedAt, emptyMicros = 0 }: HostView['canary']): string {
  const last = provedAt === undefined ? 'never' : `${provedAt} in ${(emptyMicros / 1_000).toFixed(1)} ms`;
  return state === 'failed' || state === 'absent' ? `${state.toUpperCase()} (${last})` : last;
}

function readLabels(given: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    given.map((label) => {
      const cut = label.indexOf('=');
      if (cut < 1) throw new CustodyError('bad_request', `--label ${JSON.stringify(label)}: write KEY=VALUE`);
      return [label.slice(0, cut), label.slice(cut + 1)];
    }),
  );
}
