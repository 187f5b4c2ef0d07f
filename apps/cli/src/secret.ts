// Owns `custody secret …`.
import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { CustodyError } from '@custody/core/errors';
import { secretValueBytesMax } from '@custody/core/limits';
import { isFieldName, quote, requireSecretPath } from '@custody/core/names';
import type { SecretSummary } from '@custody/wire/http';
import { ask, show, table, type Context } from './context.ts';

export function secretCommands(program: Command, context: Context): void {
  const secret = program.command('secret').description('store and look at secrets');

  secret
    .command('put')
    .description('store a new version of a secret')
    .argument('<path>', 'such as prod/stripe')
    .requiredOption(
      '--field <name=value>',
      'a field: NAME=VALUE, NAME=@FILE, or NAME=- for standard input',
      collect,
      [],
    )
    .option('--json', 'answer as JSON')
    .addHelpText(
      'after',
      '\nA value on the command line can be seen by others on this machine: prefer @FILE or -.',
    )
    .action(async (path: string, options: { field: string[]; json?: boolean }) => {
      requireSecretPath(path);
      const fields = await readFields(context, options.field);
      const saved = await ask(context, 'secret.put', {
        params: { path },
        body: { encoding: 'base64', fields },
      });
      show(
        context,
        options.json,
        saved,
        () => `${saved.path} version ${saved.version}: ${saved.fields.join(', ')}`,
      );
    });

  secret
    .command('get')
    .description('show a secret; its values only with --reveal, which goes on record')
    .argument('<path>')
    .option('--reveal', 'show the values')
    .option('--version <n>', 'an older version (with --reveal)')
    .option('--json', 'answer as JSON')
    .action(async (path: string, options: { reveal?: boolean; version?: string; json?: boolean }) => {
      requireSecretPath(path);
      if (options.reveal !== true) {
        const found = await ask(context, 'secret.get', { params: { path } });
        show(context, options.json, found, () => summaries([found]));
        return;
      }
      const version =
        options.version === undefined ? {} : { version: wholeNumber(options.version, '--version') };
      const found = await ask(context, 'secret.reveal', { params: { path }, body: version });
      const lines = Object.entries(found.values).map(
        ([name, value]) => `${name}=${Buffer.from(value, 'base64').toString()}`,
      );
      show(context, options.json, found, () => lines.join('\n'));
    });

  secret
    .command('list')
    .description('list secrets, without values')
    .argument('[prefix]', 'a folder such as prod', '')
    .option('--json', 'answer as JSON')
    .action(async (prefix: string, options: { json?: boolean }) => {
      const { secrets } = await ask(context, 'secret.list', { query: { prefix } });
      show(context, options.json, secrets, () => summaries(secrets));
    });

  secret
    .command('versions')
    .description('list the versions of a secret, without values')
    .argument('<path>')
    .option('--json', 'answer as JSON')
    .action(async (path: string, options: { json?: boolean }) => {
      const { versions } = await ask(context, 'secret.versions', {
        params: { path: requireSecretPath(path) },
      });
      show(context, options.json, versions, () => summaries(versions));
    });

  secret
    .command('rm')
    .description('remove a secret: every version is erased')
    .argument('<path>')
    .option('--json', 'answer as JSON')
    .action(async (path: string, options: { json?: boolean }) => {
      const removed = await ask(context, 'secret.remove', { params: { path: requireSecretPath(path) } });
      show(context, options.json, removed, () => `${removed.path} removed`);
    });
}

function summaries(rows: readonly SecretSummary[]): string {
  if (rows.length === 0) return 'no secrets';
  return table(
    ['PATH', 'VERSION', 'FIELDS', 'CREATED', 'BY'],
    rows.map((row) => [row.path, String(row.version), row.fields.join(','), row.createdAt, row.createdBy]),
  );
}

async function readFields(context: Context, given: readonly string[]): Promise<Record<string, string>> {
  if (given.length === 0)
    throw new CustodyError('bad_request', '--field: at least one is needed: NAME=VALUE');
  const fields: Record<string, string> = {};
  let stdinTaken = false;
  for (const each of given) {
    const cut = each.indexOf('=');
    const name = each.slice(0, Math.max(cut, 0));
    if (!isFieldName(name)) throw new CustodyError('bad_request', `--field ${quote(name)}: write NAME=VALUE`);
    const source = each.slice(cut + 1);
    if (source === '-' && stdinTaken)
      throw new CustodyError('bad_request', '--field: only one can read standard input');
    stdinTaken ||= source === '-';
    const bytes = await readValue(context, name, source);
    if (bytes.byteLength > secretValueBytesMax) {
      throw new CustodyError(
        'too_large',
        `--field ${name}: ${bytes.byteLength} bytes, more than ${secretValueBytesMax}`,
      );
    }
    fields[name] = bytes.toString('base64');
    bytes.fill(0);
  }
  return fields;
}

async function readValue(context: Context, name: string, source: string): Promise<Buffer> {
  if (source === '-') {
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of context.stdin) {
      chunks.push(Buffer.from(chunk));
      size += chunks.at(-1)?.byteLength ?? 0;
      if (size > secretValueBytesMax + 1) break;
    }
    return withoutLastLineFeed(Buffer.concat(chunks));
  }
  if (!source.startsWith('@')) return Buffer.from(source);
  try {
    return withoutLastLineFeed(await readFile(source.slice(1)));
  } catch (cause) {
    throw new CustodyError('bad_request', `--field ${name}: cannot read ${source.slice(1)}`, { cause });
  }
}

/** Editors and `echo` end a file with one; nobody means it as part of the value. */
function withoutLastLineFeed(bytes: Buffer): Buffer {
  return bytes.at(-1) === 0x0a ? bytes.subarray(0, -1) : bytes;
}

export function collect(value: string, before: string[]): string[] {
  return [...before, value];
}

export function wholeNumber(text: string, what: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new CustodyError('bad_request', `${what}: ${quote(text)} is not a number`);
}
