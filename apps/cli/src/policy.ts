// Owns `custody policy …`.
import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { CustodyError } from '@custody/core/errors';
import { formatDuration } from '@custody/core/duration';
import { policyTextBytesMax } from '@custody/core/limits';
import { problem, type PolicySummary } from '@custody/wire/http';
import { ask, note, show, table, type Context } from './context.ts';
import { freshnessText } from './grant.ts';
import { wholeNumber } from './secret.ts';

export function policyCommands(program: Command, context: Context): void {
  const policy = program.command('policy').description('apply and explain policies (Cedar)');

  policy
    .command('apply')
    .description('apply a policy file as the next revision')
    .argument('<file>', 'a Cedar file, or - for standard input')
    .option('--json', 'answer as JSON')
    .action(async (file: string, options: { json?: boolean }) => {
      const text = await readPolicy(context, file);
      const applied = await located(context, file, () => ask(context, 'policy.apply', { body: { text } }));
      show(context, options.json, applied, () => `revision ${applied.revision} applied: ${count(applied)}`);
    });

  policy
    .command('validate')
    .description('check a policy file without applying it')
    .argument('<file>', 'a Cedar file, or - for standard input')
    .option('--json', 'answer as JSON')
    .action(async (file: string, options: { json?: boolean }) => {
      const text = await readPolicy(context, file);
      const { policies } = await located(context, file, () =>
        ask(context, 'policy.validate', { body: { text } }),
      );
      show(context, options.json, policies, () => `${file} is valid: ${count({ policies })}`);
    });

  policy
    .command('show')
    .description('show a policy revision')
    .option('--revision <n>', 'default: the current one')
    .option('--json', 'answer as JSON')
    .action(async (options: { revision?: string; json?: boolean }) => {
      const revision =
        options.revision === undefined ? 'current' : String(wholeNumber(options.revision, '--revision'));
      const found = await ask(context, 'policy.show', { params: { revision } });
      show(
        context,
        options.json,
        found,
        () => `// revision ${found.revision}, ${found.createdAt}, by ${found.createdBy}\n${found.text}`,
      );
    });

  policy
    .command('history')
    .description('list policy revisions')
    .option('--json', 'answer as JSON')
    .action(async (options: { json?: boolean }) => {
      const { revisions } = await ask(context, 'policy.history', {});
      const rows = revisions.map((row) => [
        String(row.revision),
        row.createdAt,
        row.createdBy,
        String(row.policies.length),
        row.sha256.slice(0, 12),
      ]);
      show(context, options.json, revisions, () =>
        table(['REVISION', 'APPLIED', 'BY', 'POLICIES', 'SHA256'], rows),
      );
    });

  policy
    .command('explain')
    .description('say whether a subject may hold a secret now, and why')
    .requiredOption('--subject <host/uid>', 'such as host-a/1000')
    .requiredOption('--secret <path>', 'such as prod/stripe')
    .option('--host <name>', 'the host, where --subject is a bare uid')
    .option('--reason <text>', 'the reason a run would give')
    .option('--json', 'answer as JSON')
    .argument('[command...]', 'after --: the command the run would start')
    .action(
      async (
        command: string[],
        options: { subject: string; secret: string; host?: string; reason?: string; json?: boolean },
      ) => {
        const subject = options.subject.includes('/')
          ? options.subject
          : `${options.host ?? ''}/${options.subject}`;
        const { secret: path, reason } = options;
        const body = { subject, path, command, ...(reason === undefined ? {} : { reason }) };
        const found = await ask(context, 'policy.explain', { body });
        show(context, options.json, found, () => explained(found));
      },
    );
}

function explained(found: Awaited<ReturnType<typeof ask<'policy.explain'>>>): string {
  const lines = [
    `${found.allow ? 'allow' : 'deny'}: LocalUser::"${found.subject}" may ${found.allow ? '' : 'not '}hold Secret::"${found.path}" (revision ${found.revision})`,
    `  ${found.why}`,
  ];
  if (found.ceilingMs !== undefined) lines.push(`  ceiling ${formatDuration(found.ceilingMs)}`);
  if (found.freshness !== undefined) lines.push(`  freshness ${freshnessText(found.freshness)}`);
  if (found.containment !== undefined) lines.push(`  requires containment ${found.containment.join(', ')}`);
  if (found.deliver !== undefined) lines.push(`  deliver ${found.deliver.join(' ')}`);
  if (found.onExit !== undefined) lines.push(`  on_exit ${found.onExit}`);
  if (found.next !== undefined) lines.push(`  ${found.next}`);
  return lines.join('\n');
}

function count({ policies }: Pick<PolicySummary, 'policies'>): string {
  const permits = policies.filter((policy) => policy.effect === 'permit').length;
  return `${permits} permit, ${policies.length - permits} forbid`;
}

/** Shows every problem of a policy where it stands, as compilers do, and then how many there are. */
async function located<Result>(context: Context, file: string, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    const problems =
      error instanceof CustodyError ? problem.safeParse(error.cause).data?.problems : undefined;
    if (!(error instanceof CustodyError) || problems === undefined) throw error;
    for (const { line, column, message } of problems) note(context, `${file}:${line}:${column}: ${message}`);
    const how = problems.length === 1 ? 'one problem' : `${problems.length} problems`;
    throw new CustodyError(error.code, `${file} is not valid: ${how}`, {
      next: 'nothing was applied',
      cause: error,
    });
  }
}

async function readStdin(context: Context): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of context.stdin) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks);
}

async function readPolicy(context: Context, file: string): Promise<string> {
  let bytes: Buffer;
  try {
    bytes = file === '-' ? await readStdin(context) : await readFile(file);
  } catch (cause) {
    throw new CustodyError('bad_request', `cannot read ${file}`, { cause });
  }
  if (bytes.byteLength > policyTextBytesMax) {
    throw new CustodyError(
      'too_large',
      `${file} has ${bytes.byteLength} bytes, more than ${policyTextBytesMax}`,
    );
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new CustodyError('bad_utf8', `${file} is not valid UTF-8`, { cause });
  }
}
