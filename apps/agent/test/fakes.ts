// Holds what stands around the runs in tests: a spool that is durable when told to be, a link that grants, a keeper's end.
import { encodeFields } from '@custody/crypto/payload';
import { generateSealingKeySeed, sealingKeyFromSeed } from '@custody/crypto/keys';
import { createHash } from 'node:crypto';
import type { JsonObject } from '@custody/ledger/canonical';
import type { LedgerEntry } from '@custody/ledger/entry';
import { sealTo } from '@custody/crypto/seal';
import { sodiumReady } from '@custody/crypto/sodium';
import type { Outsider } from '@custody/keeper/scan';
import type { SweepResult } from '@custody/keeper/sweep';
import { hostKinds, type HostBody, type HostKind } from '@custody/wire/ledger';
import type { GrantClaims, GrantRequest, RevocationClaims } from '@custody/wire/messages';
import { vi } from 'vitest';
import type { Ask } from '../src/delivery.ts';
import type { RunGroups } from '../src/groups.ts';
import type { Granted, PolicyCopy } from '../src/link.ts';
import type { Ended } from '../src/record.ts';
import type { KeeperEnd, Peer } from '../src/run.ts';
import { Runs, type RunsOptions } from '../src/runs.ts';
import { at, captureLog, claimsOf, Clock, grantId, hostId, settle } from './support.ts';

export type Written = { [Kind in HostKind]: { kind: Kind; body: HostBody<Kind> } }[HostKind];

/** Every body must be one that the control plane's schema takes: a host is not believed otherwise. */
export class FakeSpool {
  readonly written: Written[] = [];
  /** Called before an entry counts as durable; what it rejects with is what `append` rejects with. */
  durable: (kind: HostKind) => Promise<void> = async () => {};

  async append<Kind extends HostKind>(kind: Kind, body: HostBody<Kind>): Promise<number> {
    const seq = this.written.length + 1;
    this.written.push({ kind, body: hostKinds[kind].parse(body) } as Written);
    await this.durable(kind);
    return seq;
  }

  of<Kind extends HostKind>(kind: Kind): HostBody<Kind>[] {
    return this.written.filter((each) => each.kind === kind).map(({ body }) => body as HostBody<Kind>);
  }

  get kinds(): string[] {
    return this.written.map(({ kind }) => kind);
  }
}

export class FakeLink {
  policy: PolicyCopy | undefined;
  readonly asked: GrantRequest[] = [];
  claims: Partial<GrantClaims> = {};
  notes: string[] = [];
  ready: () => Promise<void> = async () => {};
  refresh: () => Promise<void> = async () => {};
  /** Called while the request is under way. */
  underWay: () => void = () => {};
  since: () => Promise<RevocationClaims | undefined> = async () => undefined;
  /** What is proven when a proof of that age is asked for. */
  proof: (sinceBootMs: number) => Promise<number> = async (sinceBootMs) => sinceBootMs;
  values = new Map<string, Uint8Array>();
  readonly #publicKey: string;

  constructor(publicKey: string) {
    this.#publicKey = publicKey;
  }

  whenReady(): Promise<void> {
    return this.ready();
  }

  refreshPolicy(): Promise<void> {
    return this.refresh();
  }

  standing(): Promise<RevocationClaims | undefined> {
    return this.since();
  }

  prove(sinceBootMs: number): Promise<number> {
    return this.proof(sinceBootMs);
  }

  async requestGrant(request: GrantRequest): Promise<Granted> {
    this.asked.push(request);
    this.underWay();
    const values = new Map(
      request.credentials.map(({ name }) => [name, this.values.get(name) ?? Buffer.from(canary)]),
    );
    const sealed = sealTo(this.#publicKey, encodeFields(values));
    const claims = claimsOf(request, {
      grantId: grantId(this.asked.length),
      sealedSha256: createHash('sha256').update(sealed).digest('hex'),
      ...this.claims,
    });
    return { claims, sealed, notes: this.notes };
  }
}

export const canary = 'sk_live_canary_0123456789';

export class FakeKeeper implements KeeperEnd {
  readonly told: { cause: string; graceMs: number }[] = [];

  readonly freshUntil: number[] = [];

  end(cause: 'revoked' | 'ceiling' | 'agent', graceMs: number): void {
    this.told.push({ cause, graceMs });
  }

  fresh(untilBootMs: number): void {
    this.freshUntil.push(untilBootMs);
  }
}

export interface Scene {
  readonly runs: Runs;
  readonly spool: FakeSpool;
  readonly link: FakeLink;
  readonly clock: Clock;
  readonly swept: string[];
  /** The roots that were to end with it. */
  readonly roots: number[];
  /** From where files were removed. */
  readonly places: string[];
  readonly log: () => string;
  /** What the next sweeps find. */
  found: () => Promise<SweepResult>;
  /** Who holds a marker outside of its tree. */
  outside: () => Promise<readonly Outsider[] | undefined>;
  /** Pids that count as living. */
  readonly living: Set<number>;
}

export async function scene(more: Partial<RunsOptions> = {}): Promise<Scene> {
  await sodiumReady();
  const sealingKey = sealingKeyFromSeed(generateSealingKeySeed());
  const [spool, link, clock] = [new FakeSpool(), new FakeLink(sealingKey.publicKey), new Clock()];
  const { log, text } = captureLog();
  let ids = 0;
  const made: Scene = {
    spool,
    link,
    clock,
    swept: [],
    roots: [],
    places: [],
    living: new Set([peer.pid]),
    log: text,
    outside: async () => [],
    found: async () => ({ processes: [], emptyBootMs: clock.bootMs(), complaints: [] }),
    runs: new Runs({
      hostId,
      refusal: () => undefined,
      hostName: 'host-a',
      sealingKey,
      link: () => link,
      spool: () => spool,
      manifests: { granted: () => [] },
      sweep: (id, { root, place }) => {
        made.swept.push(id);
        if (root !== undefined) made.roots.push(root.pid);
        if (place !== undefined) made.places.push(place);
        return made.found();
      },
      groups: noGroups,
      escapes: () => ({ watch: () => {}, look: () => made.outside(), lookShared: () => made.outside() }),
      alive: (pid) => made.living.has(pid),
      stopped: () => false,
      isCanaryKeeper: () => false,
      bootMs: clock.bootMs,
      newId: (prefix) => `${prefix}_${String((ids += 1)).padStart(8, '0')}`,
      log,
      ...more,
    }),
  };
  return made;
}

/** A system where no group can be made. */
export const noGroups: RunGroups = {
  hold: () => ({ sure: false, done: Promise.resolve('no groups here') }),
  freeKeeper: async () => {},
  kill: () => false,
  killAll: () => {},
  membersOf: () => [],
  emptied: async () => true,
  drop: () => {},
};

export const peer: Peer = { pid: 4242, uid: 1000, gid: 1000 };

export const ask = (more: Partial<Ask> = {}): Ask => ({
  command: ['node', 'agent.js'],
  cwd: '/srv',
  ttlMs: undefined,
  reason: 'a test',
  parent: undefined,
  containment: 'subreaper',
  traceparent: undefined,
  wanted: [{ name: 'STRIPE_KEY', path: 'prod/stripe', field: 'api_key' }],
  plain: [['MODE', 'test']],
  onExit: undefined,
  keep: undefined,
  drop: undefined,
  place: undefined,
  manifest: undefined,
  ...more,
});

export const revocation = (id: string, epoch = 1): RevocationClaims => ({
  epoch,
  target: { kind: 'grant', id },
  reason: 'leaked',
  at,
});

export const ended = (clock: Clock, more: Partial<Ended> = {}): Ended => ({
  cause: 'exit',
  rootStatus: 'exit:0',
  signalledBootMs: undefined,
  emptyBootMs: clock.bootMs() + 0.25,
  survivors: 1,
  processes: 3,
  rows: [{ pid: 5, ppid: 1, startTicks: '77', how: 'killed:9', name: 'daemon' }],
  unlisted: {},
  ...more,
});

/** So much time passes, on the boot-time clock and for timers, which must be fake. */
export async function pass(s: Scene, ms: number): Promise<void> {
  s.clock.advance(ms);
  await vi.advanceTimersByTimeAsync(ms);
  await settle();
}

/** A run whose keeper is attached and whose root has started. */
export async function running(s: Scene): Promise<FakeKeeper> {
  const { grantId: id } = await s.runs.admit(ask(), peer);
  const keeper = new FakeKeeper();
  s.runs.attach(id, keeper);
  s.runs.started(id, 5000, '123');
  await settle();
  return keeper;
}

/** An entry of the ledger, as the agent's next life reads it. */
export const entryOf = ({ kind, body }: Written, index: number): LedgerEntry => ({
  ...{ v: 1, host: hostId, epoch: 1, seq: index + 1, at, boot_ms: 1, kind, prev: 'a'.repeat(64) },
  body: body as unknown as JsonObject,
});

/** The agent's next life, with what it finds in its ledger. `make`: its scene. */
export async function reborn(
  s: Scene,
  make: (more: Partial<RunsOptions>) => Promise<Scene> = scene,
): Promise<Scene> {
  const next = await make({ bootMs: s.clock.bootMs });
  s.spool.written.forEach((written, index) => next.runs.replay(entryOf(written, index)));
  return next;
}
