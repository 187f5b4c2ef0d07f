// Owns the list of plain classes that the routes call. Nest injects this one object and knows nothing else.
import type { Events } from './events.ts';
import type { Grants } from './grants.ts';
import type { Health } from './health.ts';
import type { Hosts } from './hosts.ts';
import type { Ledgers } from './ledgers.ts';
import type { Policies } from './policies.ts';
import type { Revocations } from './revocations.ts';
import type { Secrets } from './secrets.ts';

export interface Parts {
  readonly secrets: Secrets;
  readonly policies: Policies;
  readonly hosts: Hosts;
  readonly grants: Grants;
  readonly revocations: Revocations;
  readonly ledgers: Ledgers;
  readonly events: Events;
  readonly health: Health;
}

export const PARTS = Symbol('parts');
