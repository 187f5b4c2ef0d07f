// Owns the desk where hosts are served over the bus: grants, revocations missed, policy sets.
import type { Bus, Message } from '@custody/bus/bus';
import { CustodyError } from '@custody/core/errors';
import type { Database } from '@custody/store/database';
import { StoreError, toStoreError } from '@custody/store/errors';
import { hostById, hostSeen, type HostRow } from '@custody/store/hosts';
import { traced } from '@custody/telemetry/telemetry';
import { failureOf, grantRequest, policyRequest, revocationsRequest } from '@custody/wire/messages';
import { encodeJson, parseJson } from '@custody/wire/schema';
import { anyHostUp, hostOf, type UpWhat } from '@custody/wire/subjects';
import type { Grants } from './grants.ts';
import type { Log } from './log.ts';
import type { Policies } from './policies.ts';
import type { Revocations } from './revocations.ts';

export interface DeskOptions {
  readonly db: Database;
  readonly grants: Grants;
  readonly policies: Policies;
  readonly revocations: Revocations;
  readonly now: () => Date;
  readonly log: Log;
}

const concurrencyMax = 256;

/** Opens the desk. What a host may ask is what nats-server lets it publish: the subject names the host. */
export async function openDesk(bus: Bus, options: DeskOptions): Promise<AsyncDisposable> {
  const { db, grants, policies, revocations, now } = options;
  await using stack = new AsyncDisposableStack();
  const serve = async (
    what: UpWhat,
    answer: (host: HostRow, data: Uint8Array) => Promise<unknown>,
  ): Promise<void> => {
    const handler = (message: Message): Promise<Uint8Array> => respond(options, what, message, answer);
    stack.use(await bus.serve(anyHostUp(what), handler, { concurrencyMax }));
  };
  await serve('grant', (host, data) => grants.decide(host, parseJson(grantRequest, data, 'grant request')));
  await serve('revocations', async (host, data) => {
    const { after, nonce } = parseJson(revocationsRequest, data, 'revocations request');
    await hostSeen(db, host.id, now());
    return revocations.after(after, nonce);
  });
  await serve('policy', async (host, data) => {
    parseJson(policyRequest, data, 'policy request');
    return { ok: true, signed: await policies.signedFor(host) };
  });
  return stack.move();
}

async function respond(
  { db, log }: DeskOptions,
  what: UpWhat,
  message: Message,
  answer: (host: HostRow, data: Uint8Array) => Promise<unknown>,
): Promise<Uint8Array> {
  const hostId = hostOf(message.subject);
  return traced(
    `desk.${what}`,
    { parent: message.headers, attributes: { 'custody.host': hostId ?? '' } },
    async () => {
      try {
        const host = hostId === undefined ? undefined : await hostById(db, hostId);
        if (host === undefined) throw new CustodyError('not_found', `no host ${hostId} is enrolled`);
        // Of the log it may have the rest: the ban stands there.
        if (host.bannedAt !== undefined && what !== 'revocations') throw banned(host);
        return encodeJson(await answer(host, message.data));
      } catch (error) {
        if (!(error instanceof CustodyError))
          log.error({ err: error, hostId, what }, 'a host could not be served');
        return encodeJson({ ok: false, error: failureOf(unavailableWhenStoreIsDown(error)) });
      }
    },
  );
}

function banned({ name }: HostRow): CustodyError {
  return new CustodyError('revoked', `${name} was banned`, {
    next: 'it has to be enrolled again, with a new join token and an empty data folder',
  });
}

/** A database that does not answer is a fact the host's user should read; any other surprise is not. */
export function unavailableWhenStoreIsDown(thrown: unknown): unknown {
  // Reads outside of a transaction throw what the driver throws.
  const error = toStoreError('ask the database', thrown);
  if (!(error instanceof StoreError)) return thrown;
  const down = error.code === 'unreachable' || error.code === 'timeout' || error.code === 'too_many_retries';
  if (!down) return thrown;
  return new CustodyError('unavailable', 'the control plane cannot reach its database', {
    next: 'nothing was changed; try again when custody status shows it up',
    cause: error,
  });
}
