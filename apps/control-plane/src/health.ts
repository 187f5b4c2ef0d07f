// Owns what the control plane says of itself.
import type { Bus } from '@custody/bus/bus';
import type { Database } from '@custody/store/database';
import { countHosts } from '@custody/store/hosts';
import { countUnsent } from '@custody/store/outbox';
import type { ReplyOf } from '@custody/wire/http';
import { protocolVersion } from '@custody/wire/protocol';
import type { Grants } from './grants.ts';
import type { Policies } from './policies.ts';
import type { Revocations } from './revocations.ts';

export interface HealthOptions {
  readonly db: Database;
  readonly bus: () => Bus | undefined;
  readonly grants: Grants;
  readonly policies: Policies;
  readonly revocations: Revocations;
  readonly version: string;
}

export class Health {
  readonly #options: HealthOptions;

  constructor(options: HealthOptions) {
    this.#options = options;
  }

  async readiness(): Promise<{ ready: boolean; postgres: 'up' | 'down'; bus: 'up' | 'down' }> {
    const postgres = await this.#options.db.pool.query('SELECT 1').then(
      () => 'up' as const,
      () => 'down' as const,
    );
    const bus = this.#options.bus()?.connected === true ? 'up' : 'down';
    return { ready: postgres === 'up' && bus === 'up', postgres, bus };
  }

  async status(): Promise<ReplyOf<'status'>> {
    const { db, grants, policies, revocations, version } = this.#options;
    const { postgres, bus } = await this.readiness();
    const [hosts, activeGrants, epoch, inForce, outboxPending] = await Promise.all([
      countHosts(db),
      grants.countActive(),
      revocations.head(),
      policies.inForce(),
      countUnsent(db),
    ]);
    const { revision: policyRevision } = inForce;
    return {
      version,
      protocol: protocolVersion,
      hosts,
      activeGrants,
      epoch,
      policyRevision,
      outboxPending,
      postgres,
      bus,
    };
  }
}
