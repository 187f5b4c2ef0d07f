// Owns `custody revoke`, `custody lift` and `custody revocation …`: taking back, waiting for proof, and letting again.
import { Option, type Command } from 'commander';
import { requireDurationMs } from '@custody/core/duration';
import { CustodyError } from '@custody/core/errors';
import { waitForReceiptMsDefault } from '@custody/core/limits';
import { quote, requireSecretPath } from '@custody/core/names';
import { describeTarget } from '@custody/core/revocation';
import type { ReceiptView, RevocationPreview, RevocationSummary, RevocationView } from '@custody/wire/http';
import type { NamedTarget } from '@custody/wire/messages';
import { ask, note, plain, show, table, type Context } from './context.ts';

/** What `--wait` exits with when something is not proven, only bounded. */
const boundedExit = 3;
const waitStepMs = 1_000;
const linesShownMax = 200;

export interface WaitOptions {
  readonly wait?: boolean;
  readonly timeout?: string;
  readonly json?: boolean;
}

interface TargetOptions {
  readonly grant?: string;
  readonly run?: string;
  readonly host?: string;
  readonly subject?: string;
  readonly secret?: string;
  readonly prefix?: string;
  readonly policyRevision?: string;
  readonly all?: boolean;
}

const standingOptions = [
  new Option('--host <name>', 'everything on a host; stands until it is lifted'),
  new Option(
    '--subject <subject>',
    'everything of a subject, such as build-1/1000; stands until it is lifted',
  ),
  new Option(
    '--secret <path[@version]>',
    'whatever holds a secret, one version or all; stands until it is lifted',
  ),
];

export function revokeCommands(program: Command, context: Context): void {
  const revoke = program
    .command('revoke')
    .description('take credentials back, now, wherever they are held')
    .option('--grant <id>', 'one grant, and the runs inside its run; custody grant list --active shows them')
    .option('--run <id>', 'one run, and the runs inside it');
  for (const option of standingOptions) revoke.addOption(option);
  revoke
    .option('--prefix <path>', 'whatever holds a secret under a path')
    .option('--policy-revision <n>', 'everything decided under a revision of the policy')
    .option('--all', 'everything')
    .requiredOption('--reason <text>', 'goes on record')
    .option('--dry-run', 'show what it would hit; nothing is written')
    .option('--wait', 'wait for the receipts; exit 0 when proven, 3 when only bounded')
    .option('--timeout <duration>', 'with --wait: give up after this long, with 3 unless all is proven')
    .option('--json', 'answer as JSON')
    .action(async (options: TargetOptions & WaitOptions & { reason: string; dryRun?: boolean }) => {
      const target = oneTarget(options, 'revoke');
      const { reason, dryRun = false } = options;
      // A wrong duration must not be found out after the revocation.
      waitLimit(options);
      const made = await ask(context, 'revocation.create', { body: { target, reason, dryRun } });
      if ('dryRun' in made) show(context, options.json, made, () => previewText(made));
      else await finish(context, made, options);
    });

  const lift = program
    .command('lift')
    .description('let new grants be given again that a standing revocation refuses')
    .option('--epoch <n>', 'one revocation; custody revocation list --standing shows them');
  for (const option of standingOptions) lift.addOption(option);
  lift
    .requiredOption('--reason <text>', 'goes on record')
    .option('--json', 'answer as JSON')
    .action(async (options: TargetOptions & { epoch?: string; reason: string; json?: boolean }) => {
      const { epoch, reason } = options;
      const what =
        epoch === undefined
          ? { target: oneTarget(options, 'lift') }
          : { epoch: wholeNumber(epoch, '--epoch') };
      const { lifted } = await ask(context, 'revocation.lift', { body: { what, reason } });
      show(context, options.json, lifted, () =>
        lifted.map((each) => `lifted revocation ${each.epoch}: ${describeTarget(each.target)}`).join('\n'),
      );
    });

  const revocation = program.command('revocation').description('what was revoked, and what still stands');
  revocation
    .command('list')
    .description('list revocations, newest first')
    .option('--standing', 'only those that refuse new grants now')
    .option('--json', 'answer as JSON')
    .action(async (options: { standing?: boolean; json?: boolean }) => {
      const query = options.standing === true ? { standing: 'true' as const } : {};
      const { revocations } = await ask(context, 'revocation.list', { query });
      show(context, options.json, revocations, () =>
        revocations.length === 0 ? 'no revocations' : revocationTable(revocations),
      );
    });
  revocation
    .command('show')
    .description('show one revocation with every receipt; --wait follows those that are owed')
    .argument('<epoch>')
    .option('--wait', 'wait for the receipts; exit 0 when proven, 3 when only bounded')
    .option('--timeout <duration>', 'with --wait: give up after this long, with 3 unless all is proven')
    .option('--json', 'answer as JSON')
    .action(async (epoch: string, options: WaitOptions) => {
      const params = { epoch: String(wholeNumber(epoch, 'revocation')) };
      await finish(context, await ask(context, 'revocation.get', { params }), options);
    });
}

/** Waits where that was asked for, shows where it stands in the end, and sets the exit code. */
export async function finish(context: Context, made: RevocationView, options: WaitOptions): Promise<void> {
  const untilMs = waitLimit(options);
  const last = options.wait === true ? await untilKnown(context, made, untilMs) : made;
  show(context, options.json, last, () => revocationText(last));
  if (options.wait === true && !last.proven) process.exitCode = boundedExit;
}

/** Throws where `--timeout` is no duration, or there is nothing to wait for: before anything is asked for. */
export function waitLimit({ wait, timeout }: WaitOptions): number {
  if (timeout === undefined) return Number.POSITIVE_INFINITY;
  if (wait !== true) throw new CustodyError('bad_request', '--timeout is for --wait');
  return requireDurationMs(timeout, '--timeout');
}

/** Follows the receipts until each is proven or its bound has passed, or the time is up. */
async function untilKnown(context: Context, made: RevocationView, limitMs: number): Promise<RevocationView> {
  let revocation = made;
  const progress = new Progress(context);
  const deadlineMs = context.now().getTime() + limitMs;
  for (;;) {
    progress.show(revocation);
    const { pending, unreachable } = revocation.counts;
    const leftMs = deadlineMs - context.now().getTime();
    if (pending + unreachable === 0 || leftMs <= 0) break;
    const waitMs = String(Math.min(waitStepMs, Math.ceil(leftMs)));
    revocation = await ask(
      context,
      'revocation.get',
      { params: { epoch: String(revocation.epoch) }, query: { waitMs } },
      waitForReceiptMsDefault * 2,
    );
  }
  progress.end();
  return revocation;
}

/** One line a host: rewritten in place on a terminal, written again when it changes elsewhere. */
class Progress {
  readonly #context: Context;
  readonly #live: boolean;
  readonly #said = new Map<string, string>();
  #drawn = 0;

  constructor(context: Context) {
    this.#context = context;
    this.#live = 'isTTY' in context.stderr && context.stderr.isTTY === true;
  }

  show({ receipts, more }: RevocationView): void {
    const hosts = [...Map.groupBy(receipts, ({ host }) => host)].map(
      ([host, of]) => [host, hostLine(host, of)] as const,
    );
    if (this.#live) {
      const lines = hosts.slice(0, linesShownMax).map(([, line]) => line);
      const hidden = hosts.length - lines.length;
      if (hidden > 0) lines.push(`and ${hidden} more hosts`);
      if (more > 0) lines.push(`and ${more} more runs`);
      const up = this.#drawn === 0 ? '' : `\u001b[${this.#drawn}A`;
      this.#context.stderr.write(up + lines.map((line) => `\u001b[2K${line}\n`).join(''));
      this.#drawn = lines.length;
      return;
    }
    for (const [host, line] of hosts) {
      if (this.#said.get(host) !== line) note(this.#context, line);
      this.#said.set(host, line);
    }
  }

  end(): void {
    this.#drawn = 0;
  }
}

function hostLine(host: string, receipts: readonly ReceiptView[]): string {
  const owed = receipts.filter(({ proven }) => !proven);
  const proven = `${receipts.length - owed.length} of ${receipts.length} proven`;
  const [slowest] = owed.toSorted((a, b) => b.boundAt.localeCompare(a.boundAt));
  if (slowest === undefined) return `${host}: ${proven}`;
  const why = owed.find((each) => each.why !== undefined)?.why;
  const word = owed.some(({ state }) => state === 'unreachable') ? 'unreachable' : slowest.state;
  return plain(
    `${host}: ${proven}; ${word}: ended by ${slowest.boundAt} at the latest${why === undefined ? '' : `; ${why}`}`,
  );
}

function receiptText(receipt: ReceiptView): string {
  const who = `${receipt.host} ${receipt.grantId}`;
  switch (receipt.state) {
    case 'pending':
      return `${who}: no receipt yet; the host ends it by ${receipt.boundAt} at the latest`;
    case 'unreachable':
      return `${who}: no receipt, the host cannot be reached; it ends it by ${receipt.boundAt} at the latest${whyText(receipt)}`;
    case 'late':
      return receipt.proven
        ? `${who}: ended, and said so late, at ${receipt.receivedAt ?? ''}; bound ${receipt.boundAt}`
        : `${who}: no receipt; it had to be ended by ${receipt.boundAt}, and nobody has proven it${whyText(receipt)}`;
    case 'ended':
      return `${who}: the run had already ended`;
    case 'never_released':
      return `${who}: nothing was ever released`;
    case 'killed': {
      const {
        signalledMicros,
        emptyMicros,
        processes = 0,
        survivors = 0,
        escapes = 0,
        containment = '',
      } = receipt;
      const after = `signalled ${milliseconds(signalledMicros)} and tree empty ${milliseconds(emptyMicros)} after the host heard of it`;
      return `${who}: killed; ${after}; processes ended ${processes}, survivors ${survivors}, escapes ${escapes} (${containment})`;
    }
  }
}

function whyText({ why }: ReceiptView): string {
  return why === undefined ? '' : `: ${why}`;
}

function milliseconds(micros: number | undefined): string {
  return micros === undefined ? 'at an unknown time' : `${(micros / 1_000).toFixed(1)} ms`;
}

function revocationText(revocation: RevocationView): string {
  const { epoch, target, reason, standing, lifted, receipts, counts, more } = revocation;
  const lines = [
    `revocation ${epoch}: ${describeTarget(target)}: ${reason}`,
    ...(lifted === undefined ? [] : [`  lifted at ${lifted.at} by ${lifted.by}: ${lifted.reason}`]),
    ...(standing && lifted === undefined
      ? [`  new grants are refused until custody lift --epoch ${epoch}`]
      : []),
    ...receipts.map((receipt) => `  ${receiptText(receipt)}`),
    ...(more > 0 ? [`  and ${more} more, counted below`] : []),
    counts.expected === 0
      ? '  it hit no run that may be alive'
      : `  ${counts.proven} of ${counts.expected} proven`,
  ];
  return lines.map(plain).join('\n');
}

function previewText({ target, standing, grants, hosts, hits, more }: RevocationPreview): string {
  const head = `${describeTarget(target)} would hit ${grants} on ${hosts.length} hosts${standing ? ', and refuse new grants until it is lifted' : ''}; nothing was written`;
  if (hits.length === 0) return head;
  const rows = hits.map(({ host, grantId, subject, paths, command }) => [
    host,
    grantId,
    subject,
    paths.join(',') || '-',
    command.join(' ').slice(0, 60),
  ]);
  const tail = more > 0 ? `\nand ${more} more` : '';
  return `${head}\n${table(['HOST', 'GRANT', 'SUBJECT', 'HOLDS', 'COMMAND'], rows)}${tail}`;
}

function revocationTable(revocations: readonly RevocationSummary[]): string {
  return table(
    ['EPOCH', 'AT', 'BY', 'STANDS', 'TARGET', 'REASON'],
    revocations.map(({ epoch, createdAt, createdBy, standing, lifted, target, reason }) => [
      String(epoch),
      createdAt,
      createdBy,
      lifted === undefined ? (standing ? 'yes' : '-') : `lifted ${lifted.at}`,
      describeTarget(target),
      reason,
    ]),
  );
}

/** Exactly one of them must be named: what a revocation hits is never guessed. */
function oneTarget(options: TargetOptions, command: 'revoke' | 'lift'): NamedTarget {
  const { grant, run, host, subject, secret, prefix, policyRevision, all } = options;
  const named: NamedTarget[] = [
    ...(grant === undefined ? [] : [{ kind: 'grant', id: grant } as const]),
    ...(run === undefined ? [] : [{ kind: 'run', id: run } as const]),
    ...(host === undefined ? [] : [{ kind: 'host', name: host } as const]),
    ...(subject === undefined ? [] : [{ kind: 'subject', subject } as const]),
    ...(secret === undefined ? [] : [secretTarget(secret)]),
    ...(prefix === undefined
      ? []
      : [{ kind: 'prefix', path: requireSecretPath(prefix.replace(/\/$/, '')) } as const]),
    ...(policyRevision === undefined
      ? []
      : [{ kind: 'policy_revision', revision: wholeNumber(policyRevision, '--policy-revision') } as const]),
    ...(all === true ? [{ kind: 'all' } as const] : []),
  ];
  const [target, second] = named;
  if (target !== undefined && second === undefined) return target;
  throw new CustodyError(
    'bad_request',
    target === undefined ? `${command}: name what` : `${command}: name one thing at a time`,
    { next: `custody ${command} --help lists the targets` },
  );
}

function secretTarget(text: string): NamedTarget {
  const [path = '', version] = text.split('@', 2);
  const target = { kind: 'secret', path: requireSecretPath(path) } as const;
  return version === undefined
    ? target
    : { ...target, version: wholeNumber(version, '--secret PATH@VERSION') };
}

function wholeNumber(text: string, what: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new CustodyError('bad_request', `${what}: ${quote(text)} is not a number from 1 on`);
}
