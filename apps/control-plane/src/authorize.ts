// Owns who may do what: one row an action, and the bearer tokens that say who is asking.
import { CustodyError } from '@custody/core/errors';
import { hashToken, isToken } from '@custody/crypto/tokens';
import { accessByHash } from '@custody/store/access';
import type { Database } from '@custody/store/database';
import type { Action } from '@custody/wire/http';

export type Role = 'operator' | 'auditor';

/** Who is asking, by their bearer token. */
export interface Caller {
  readonly subject: string;
  readonly role: Role;
}

const operators: readonly Role[] = ['operator'];
const everyone: readonly Role[] = ['operator', 'auditor'];

/** `join-token`: the body carries its own proof. A test lists the routes and fails on one without a row. */
export const authorizeTable: Readonly<Record<Action, readonly Role[] | 'join-token'>> = {
  enroll: 'join-token',
  'secret.list': everyone,
  'secret.put': operators,
  'secret.get': everyone,
  'secret.versions': everyone,
  'secret.reveal': operators,
  'secret.remove': operators,
  'policy.apply': operators,
  'policy.validate': operators,
  'policy.history': everyone,
  'policy.show': everyone,
  'policy.explain': everyone,
  'host.list': everyone,
  'host.get': everyone,
  'host.ban': operators,
  'host.token': operators,
  'grant.list': everyone,
  'grant.get': everyone,
  'revocation.create': operators,
  'revocation.lift': operators,
  'revocation.list': everyone,
  'revocation.get': everyone,
  'ledger.possession': everyone,
  'ledger.authors': everyone,
  'ledger.lines': everyone,
  'events.follow': everyone,
  status: everyone,
};

/** Who holds this `authorization` header. Throws `unauthenticated`. */
export async function authenticate(db: Database, header: string | undefined, now: Date): Promise<Caller> {
  const token = /^Bearer (\S{1,128})$/.exec(header ?? '')?.[1];
  if (token === undefined || !isToken('cst', token)) {
    throw new CustodyError('unauthenticated', 'a bearer token is needed', {
      next: 'set CUSTODY_TOKEN; custody env prints it for a constellation of your own',
    });
  }
  const row = await accessByHash(db, hashToken(token), now);
  if (row === undefined || (row.role !== 'operator' && row.role !== 'auditor')) {
    throw new CustodyError('unauthenticated', 'the bearer token is not known here, or no longer stands', {
      next: 'ask an operator for a new one',
    });
  }
  return { subject: row.subject, role: row.role };
}

/** Throws `forbidden` unless the caller's role stands in the action's row. */
export function authorize(caller: Caller, action: Action): Caller {
  const row = authorizeTable[action];
  if (row !== 'join-token' && row.includes(caller.role)) return caller;
  throw new CustodyError('forbidden', `${action}: not for the role ${caller.role}`, {
    next: `it takes one of: ${row === 'join-token' ? 'a join token' : row.join(', ')}`,
  });
}
