// Owns `custody events`: what happens in the fleet, as it happens.
import type { Command } from 'commander';
import { CustodyError } from '@custody/core/errors';
import { reconnectWaitMs } from '@custody/core/limits';
import { quote } from '@custody/core/names';
import { describeTarget } from '@custody/core/revocation';
import { follow } from '@custody/wire/client';
import type { FleetEvent } from '@custody/wire/events';
import { controlPlaneKinds } from '@custody/wire/ledger';
import { setTimeout as delay } from 'node:timers/promises';
import { controlPlane, plain, type Context } from './context.ts';

export function eventsCommand(program: Command, context: Context): void {
  program
    .command('events')
    .description('what happened in the fleet: grants, runs, revocations, receipts, hosts')
    .option('--follow', 'keep showing new ones; goes on by itself where a connection broke')
    .option('--since <id>', 'those after this id')
    .option('--json', 'each event as one JSON line')
    .action(async (options: { follow?: boolean; since?: string; json?: boolean }) => {
      const { since } = options;
      if (since !== undefined && !/^\d{1,15}$/.test(since))
        throw new CustodyError('bad_request', `--since: ${quote(since)} is not the id of an event`);
      const say = (event: FleetEvent): void =>
        void context.stdout.write(`${options.json === true ? JSON.stringify(event) : eventText(event)}\n`);
      const last = await tell(context, since, say);
      if (options.follow === true) await keepTelling(context, last ?? since ?? '0', say);
    });
}

/** What there is; returns the last id. */
async function tell(
  context: Context,
  since: string | undefined,
  say: (event: FleetEvent) => void,
): Promise<string | undefined> {
  let last: string | undefined;
  const asked = { follow: 'false' as const, ...(since === undefined ? {} : { since }) };
  for await (const event of follow(await controlPlane(context), asked)) {
    say(event);
    last = String(event.id);
  }
  return last;
}

/** A stream that ends is taken up again after the last id seen. Only a refusal ends it. */
async function keepTelling(context: Context, from: string, say: (event: FleetEvent) => void): Promise<never> {
  let since = from;
  for (;;) {
    try {
      for await (const event of follow(await controlPlane(context), { since, follow: 'true' })) {
        say(event);
        since = String(event.id);
      }
    } catch (error) {
      const away =
        error instanceof CustodyError &&
        (error.code === 'control_plane_unreachable' || error.code === 'unavailable');
      if (!away) throw error;
    }
    await delay(reconnectWaitMs);
  }
}

function eventText({ id, at, kind, name, body }: FleetEvent): string {
  return plain(`${id}  ${at}  ${name}  ${kind}  ${bodyText(kind, body)}`);
}

function bodyText(kind: FleetEvent['kind'], body: FleetEvent['body']): string {
  if (kind === 'revoked' || kind === 'lifted') {
    const { data } = controlPlaneKinds[kind].safeParse(body);
    if (data !== undefined)
      return `${data.epoch}: ${describeTarget(data.target)} by ${data.by}: ${data.reason}`;
  }
  const text = JSON.stringify(body);
  return text.length > 160 ? `${text.slice(0, 160)}…` : text;
}
