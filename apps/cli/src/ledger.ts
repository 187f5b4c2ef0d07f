// Owns `custody ledger …`: verification here, with nothing to trust but keys, and questions to the central ledger.
import type { Command } from 'commander';
import { CustodyError } from '@custody/core/errors';
import { quote, requireSecretPath } from '@custody/core/names';
import { parseLine } from '@custody/ledger/entry';
import { readLinesOfFile } from '@custody/ledger/lines';
import { verifyChain } from '@custody/ledger/verify';
import type { LedgerAuthorView, LedgerLine, PossessionRow, QueryOf } from '@custody/wire/http';
import { ask, plain, show, type Context } from './context.ts';

interface Verdict {
  readonly name: string;
  readonly author: string;
  readonly ok: boolean;
  readonly entries: number;
  readonly epoch: number;
  readonly seq: number;
  readonly problem?: string;
  readonly detail?: string;
}

export function ledgerCommands(program: Command, context: Context): void {
  const ledger = program.command('ledger').description('the record, and proofs about it');

  ledger
    .command('verify')
    .description('verify chains: hashes, links, signatures, and the head the control plane confirmed')
    .option('--host <name>', 'one host (default: every author)')
    .option('--file <path>', 'a ledger file, offline; the key comes from --key or the control plane')
    .option('--key <key>', "with --file: the host's signing key, base64url")
    .option('--json', 'answer as JSON')
    .action(async (options: { host?: string; file?: string; key?: string; json?: boolean }) => {
      const verdicts =
        options.file === undefined
          ? await verifyCentral(context, options.host)
          : [await verifyFile(context, options.file, options.key)];
      show(context, options.json, verdicts, () => verdicts.map(verdictText).join('\n'));
      if (verdicts.some((verdict) => !verdict.ok)) process.exitCode = 1;
    });

  ledger
    .command('query')
    .description('who held a secret, where, in which process tree, from when to when')
    .requiredOption('--secret <path>', 'such as prod/stripe')
    .option('--from <time>', 'RFC 3339, such as 2026-11-22T00:00:00Z')
    .option('--to <time>', 'RFC 3339')
    .option('--json', 'answer as JSON')
    .action(async (options: { secret: string; from?: string; to?: string; json?: boolean }) => {
      const path = requireSecretPath(options.secret);
      const query = { path, ...instant('from', options.from), ...instant('to', options.to) };
      const { rows } = await ask(context, 'ledger.possession', { query });
      show(context, options.json, rows, () =>
        rows.length === 0 ? `nobody held ${path}` : rows.map(possessionText).join('\n'),
      );
    });

  ledger
    .command('tail')
    .description('the newest entries of all chains')
    .option('--follow', 'keep showing new ones')
    .option('--host <name>', 'one host')
    .option('--json', 'each entry as one JSON line')
    .action(async (options: { follow?: boolean; host?: string; json?: boolean }) => {
      const author =
        options.host === undefined ? {} : { author: (await findAuthor(context, options.host)).author };
      let asked: QueryOf<'ledger.lines'> = { last: 'true' };
      for (;;) {
        const { lines, next } = await ask(context, 'ledger.lines', { query: { ...author, ...asked } });
        for (const line of lines)
          context.stdout.write(`${options.json === true ? jsonLine(line) : lineText(line)}\n`);
        if (options.follow !== true || next === undefined) return;
        asked = { after: String(next), waitMs: '20000' };
      }
    });
}

async function verifyCentral(context: Context, host: string | undefined): Promise<Verdict[]> {
  const authors =
    host === undefined
      ? (await ask(context, 'ledger.authors', {})).authors
      : [await findAuthor(context, host)];
  const verdicts: Verdict[] = [];
  for (const author of authors) {
    const { name, publicKey, head } = author;
    const verdict = await verifyChain(linesOf(context, author), {
      host: author.author,
      publicKey,
      expect: head,
    });
    verdicts.push(verdictOf(name, author.author, verdict));
  }
  return verdicts;
}

/** Every line that the control plane holds of one author, page by page, epoch by epoch. */
async function* linesOf(context: Context, { author, head }: LedgerAuthorView): AsyncGenerator<string> {
  for (let epoch = 1; epoch <= head.epoch; epoch += 1) {
    let afterSeq = 0;
    for (;;) {
      const query = { author, epoch: String(epoch), afterSeq: String(afterSeq) };
      const { lines } = await ask(context, 'ledger.lines', { query });
      for (const { line } of lines) yield line;
      const last = lines.at(-1);
      if (last === undefined) break;
      afterSeq = parseLine(last.line).entry.seq;
    }
  }
}

async function verifyFile(context: Context, path: string, key: string | undefined): Promise<Verdict> {
  const first = await firstLine(path);
  const { host, epoch, seq, prev } = parseLine(first).entry;
  const publicKey = key ?? (await findAuthor(context, host)).publicKey;
  // A file may begin where older, confirmed segments were freed.
  const from = { epoch, seq: seq - 1, hash: prev };
  return verdictOf(path, host, await verifyChain(readLinesOfFile(path), { host, publicKey, from }));
}

async function firstLine(path: string): Promise<Uint8Array> {
  try {
    for await (const line of readLinesOfFile(path)) return line;
  } catch (cause) {
    throw new CustodyError('bad_request', `cannot read the ledger ${path}`, { cause });
  }
  throw new CustodyError('bad_request', `the ledger ${path} is empty`);
}

function verdictOf(name: string, author: string, verdict: Awaited<ReturnType<typeof verifyChain>>): Verdict {
  if (verdict.ok) {
    const { entries, head } = verdict;
    return { name, author, ok: true, entries, epoch: head.epoch, seq: head.seq };
  }
  const { entriesBefore: entries, epoch, seq, problem, detail } = verdict;
  return { name, author, ok: false, entries, epoch, seq, problem, detail };
}

function verdictText(verdict: Verdict): string {
  if (verdict.ok)
    return `${verdict.name}: sound; ${verdict.entries} entries, head ${verdict.epoch}/${verdict.seq}`;
  return `${verdict.name}: NOT SOUND: first bad sequence number ${verdict.seq} (${verdict.problem}: ${verdict.detail}); ${verdict.entries} sound entries before it`;
}

async function findAuthor(context: Context, nameOrId: string): Promise<LedgerAuthorView> {
  const { authors } = await ask(context, 'ledger.authors', {});
  const found = authors.find(({ name, author }) => name === nameOrId || author === nameOrId);
  if (found !== undefined) return found;
  throw new CustodyError('not_found', `the central ledger holds nothing of ${quote(nameOrId)}`, {
    next: 'custody host list shows the hosts; for a file of another installation give --key',
  });
}

function possessionText(row: PossessionRow): string {
  const to = row.to === undefined ? 'now' : `${row.to} (${row.cause ?? 'ended'})`;
  const lines = [
    `${row.path}/${row.field} version ${row.version} as ${row.name}`,
    `  by ${row.subject} on ${row.host}, ${row.command.join(' ').slice(0, 100)}`,
    `  from ${row.from} to ${to}; grant ${row.grantId}, root pid ${row.rootPid ?? '-'}, ledger ${row.entry.epoch}/${row.entry.seq}`,
  ];
  for (const { pid, name, how, survivor } of row.processes)
    lines.push(`  also pid ${pid} ${name}: ${how}${survivor === true ? ', survivor' : ''}`);
  return lines.map(plain).join('\n');
}

function lineText(line: LedgerLine): string {
  const { entry } = parseLine(line.line);
  const body = JSON.stringify(entry.body);
  const shown = body.length > 160 ? `${body.slice(0, 160)}…` : body;
  return plain(`${entry.at}  ${line.name}  ${entry.epoch}/${entry.seq}  ${entry.kind}  ${shown}`);
}

function jsonLine(line: LedgerLine): string {
  return JSON.stringify({ ...line, entry: parseLine(line.line).entry });
}

function instant<Key extends 'from' | 'to'>(
  key: Key,
  text: string | undefined,
): Partial<Record<Key, string>> {
  if (text === undefined) return {};
  const at = new Date(text);
  if (Number.isNaN(at.getTime()))
    throw new CustodyError('bad_request', `--${key}: ${quote(text)} is not a time`);
  return { [key]: at.toISOString() } as Partial<Record<Key, string>>;
}
