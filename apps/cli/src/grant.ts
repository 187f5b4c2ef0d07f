// Owns `custody grant …`.
import type { Command } from 'commander';
import { formatDuration } from '@custody/core/duration';
import type { GrantView } from '@custody/wire/http';
import type { ProcessRow } from '@custody/wire/ledger';
import { ask, show, table, type Context } from './context.ts';

export function grantCommands(program: Command, context: Context): void {
  const grant = program.command('grant').description('what runs hold');

  grant
    .command('list')
    .description('list grants, newest first')
    .option('--active', 'only those whose tree may still be alive')
    .option('--canaries', 'also those on which hosts prove their kill')
    .option('--json', 'answer as JSON')
    .action(async (options: { active?: boolean; canaries?: boolean; json?: boolean }) => {
      const query = {
        ...(options.active === true ? { active: 'true' as const } : {}),
        ...(options.canaries === true ? { canaries: 'true' as const } : {}),
      };
      const { grants } = await ask(context, 'grant.list', { query });
      show(context, options.json, grants, () => (grants.length === 0 ? 'no grants' : grantTable(grants)));
    });

  grant
    .command('show')
    .description('show one grant and how it ended')
    .argument('<id>')
    .option('--json', 'answer as JSON')
    .action(async (grantId: string, options: { json?: boolean }) => {
      const found = await ask(context, 'grant.get', { params: { grantId } });
      show(context, options.json, found, () => grantText(found));
    });
}

export function freshnessText(freshness: GrantView['freshness']): string {
  return freshness.kind === 'strict' ? `strict ${formatDuration(freshness.ms)}` : 'best effort';
}

function grantTable(grants: readonly GrantView[]): string {
  return table(
    ['GRANT', 'STATE', 'HOST', 'SUBJECT', 'HOLDS', 'CEILING', 'COMMAND'],
    grants.map((grant) => [
      grant.grantId,
      grant.ended === undefined ? grant.state : `${grant.state} (${grant.ended.cause})`,
      grant.host,
      grant.subject,
      [...new Set(grant.credentials.map((held) => `${held.path}@${held.version}`))].join(',') || '-',
      grant.ceilingAt,
      grant.command.join(' ').slice(0, 60),
    ]),
  );
}

function processText(row: ProcessRow, emptyBootMs: number): string {
  const { pid, ppid, name, how, endedBootMs, survivor } = row;
  const before = Math.max(0, emptyBootMs - (endedBootMs ?? 0));
  const when = endedBootMs === undefined ? '' : `, ${formatDuration(before)} before the tree was empty`;
  return `${pid} ${name}: ${how}${when}${survivor === true ? ', survivor' : ''} (parent ${ppid})`;
}

function grantText(grant: GrantView): string {
  const rows: [string, string][] = [
    ['grant', grant.grantId],
    ['state', grant.state],
    ['host', grant.host],
    ['subject', `${grant.subject} (uid ${grant.uid})`],
    ['command', grant.command.join(' ')],
    ['folder', grant.cwd],
    ...grant.credentials.map((held): [string, string] => [
      'holds',
      `${held.name} = ${held.path}/${held.field} version ${held.version}`,
    ]),
    ['policy', `revision ${grant.policyRevision}: ${grant.policyIds.join(', ')}`],
    ['granted', grant.grantedAt],
    ['ceiling', `${formatDuration(grant.ceilingMs)}, ${grant.ceilingAt}`],
    ['freshness', freshnessText(grant.freshness)],
    ['containment', grant.containment],
    ...(grant.root === undefined ? [] : [['root', `pid ${grant.root.pid}`] as [string, string]]),
    ...(grant.reason === undefined ? [] : [['reason', grant.reason] as [string, string]]),
    ...(grant.parent === undefined ? [] : [['parent', grant.parent] as [string, string]]),
  ];
  const { ended } = grant;
  if (ended !== undefined) {
    rows.push(
      [
        'ended',
        `${ended.at}: ${ended.cause}${ended.rootStatus === undefined ? '' : `, root ${ended.rootStatus}`}`,
      ],
      [
        'reaped',
        `${ended.processes} processes; ${ended.survivors} alive when the root had gone; proof: ${ended.proof}`,
      ],
      ...ended.rows.map((row): [string, string] => ['process', processText(row, ended.emptyBootMs)]),
      ...Object.entries(ended.unlisted ?? {}).map(([how, count]): [string, string] => [
        'unlisted',
        `${how}: ${count} more`,
      ]),
    );
  }
  return table(['FIELD', 'VALUE'], rows);
}
