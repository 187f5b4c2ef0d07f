// Owns the simulation: a fleet over virtual time, what befalls it, and the one thing that must hold of every tree.
import { beaconIntervalMs, graceMsDefault, keeperLagMsMax } from '@custody/core/limits';
import type { RevocationTarget } from '@custody/core/revocation';
import { sodiumReady } from '@custody/crypto/sodium';
import type { HostBody } from '@custody/wire/ledger';
import { fleet } from '@custody/wire/subjects';
import { ControlPlane, type Issued } from './control-plane.ts';
import { Host, type World } from './host.ts';
import type { Tree } from './keeper.ts';
import { Chance, Schedule } from './schedule.ts';

const minute = 60_000;
const hour = 60 * minute;
/** TERM, grace, and the agent behind a keeper that does not act. Not taken from the code that is on trial here. */
const slackMs = graceMsDefault + keeperLagMsMax;

export interface Scenario {
  readonly seed: number;
  readonly hosts: number;
  readonly hours: number;
  /** Ends at the first violation. */
  readonly untilFound?: boolean;
}

export interface Violation {
  readonly what:
    | 'alive beyond its ceiling'
    | 'alive beyond its bound'
    | 'alive after its receipt'
    | 'started after its receipt';
  readonly host: string;
  readonly grantId: string;
  readonly atHours: number;
  readonly detail: string;
  readonly story: readonly string[];
}

export interface Findings {
  readonly seed: number;
  readonly hosts: number;
  readonly hours: number;
  readonly events: number;
  readonly counts: Readonly<Record<string, number>>;
  readonly violations: readonly Violation[];
}

interface Watched {
  readonly host: Host;
  readonly tree: Tree;
}

export async function simulate(scenario: Scenario): Promise<Findings> {
  await sodiumReady();
  return new Fleet(scenario).run();
}

class Fleet implements World {
  readonly schedule = new Schedule();
  readonly chance: Chance;
  readonly restartMsMax = 20_000;
  readonly controlPlane: ControlPlane;
  readonly verify;
  readonly #scenario: Scenario;
  readonly #hosts: Host[];
  readonly #hostOf: ReadonlyMap<string, Host>;
  /** Hosts whose way here takes equally long hear together. */
  readonly #near = new Map<number, Host[]>();
  readonly #trees = new Map<string, Watched>();
  readonly #revokedAtMs = new Map<string, number>();
  readonly #receipts = new Set<string>();
  readonly #violations: Violation[] = [];
  readonly #counts: Record<string, number> = {};

  constructor(scenario: Scenario) {
    this.#scenario = scenario;
    this.chance = new Chance(scenario.seed);
    this.controlPlane = new ControlPlane(this.schedule, this.chance);
    this.controlPlane.onIssued = (issued) => this.#onIssued(issued);
    this.verify = this.controlPlane.seals.verify;
    this.#hosts = Array.from({ length: scenario.hosts }, (_, index) => new Host(this, index + 1));
    this.#hostOf = new Map(this.#hosts.map((host) => [host.id, host]));
    for (const host of this.#hosts) {
      this.#near.set(host.latencyMs, [...(this.#near.get(host.latencyMs) ?? []), host]);
    }
  }

  async run(): Promise<Findings> {
    const { seed, hosts, hours } = this.#scenario;
    this.#beacons();
    this.#outages();
    this.#every(8 * hour, () => this.#restore());
    this.#every((24 * hour) / Math.min(1_000, 20 * hosts), () => this.#revokeSomething());
    for (const [index, host] of this.#hosts.entries()) {
      // Together with others: an instant that many share costs less than many instants.
      this.schedule.at((index % 20) * 250, () => host.start());
      this.#befall(host);
    }
    const found = (): boolean => this.#scenario.untilFound === true && this.#violations.length > 0;
    await this.schedule.run(hours * hour, found);
    const { happened } = this.schedule;
    return { seed, hosts, hours, events: happened, counts: this.#counts, violations: this.#violations };
  }

  // What must hold.

  onTree(host: Host, tree: Tree): void {
    this.#count('trees');
    this.#trees.set(tree.grantId, { host, tree });
    if (this.#receipts.has(tree.grantId)) this.#violated('started after its receipt', host, tree.grantId, '');
    const revokedAtMs = this.#revokedAtMs.get(tree.grantId);
    if (revokedAtMs !== undefined) this.#count('started although revoked');
  }

  /** Most often where something is at stake. */
  diesAtStep(host: Host): boolean {
    const atStake = [...host.keepers.keys()].some((grantId) => this.#revokedAtMs.has(grantId));
    const dies = this.chance.happens(atStake ? 0.25 : 0.001) && !this.#keeperFails(host);
    if (dies) this.#count(atStake ? 'agents died at a step of a revocation' : 'agents died at another step');
    return dies;
  }

  onDead(tree: Tree): void {
    this.#trees.delete(tree.grantId);
    const revokedAtMs = this.#revokedAtMs.get(tree.grantId);
    if (revokedAtMs === undefined) return;
    this.#count(this.schedule.nowMs - revokedAtMs < 1_000 ? 'dead within a second' : 'dead within the bound');
  }

  onReceipt(host: Host, { grantId, outcome }: HostBody<'receipt'>): void {
    this.#count(`receipts: ${outcome}`);
    this.#receipts.add(grantId);
    if (this.#trees.has(grantId)) this.#violated('alive after its receipt', host, grantId, outcome);
  }

  /** The promise, as the control plane states it to people. */
  #expectDead({ claims, grantedAtMs }: Issued): void {
    const { grantId, hostId, freshness, ceilingMs } = claims;
    const nowMs = this.schedule.nowMs;
    const staleMs = freshness.kind === 'strict' ? nowMs + freshness.ms : Infinity;
    const boundMs = Math.min(staleMs, grantedAtMs + ceilingMs) + slackMs;
    this.schedule.at(boundMs, () => {
      const found = this.#trees.get(grantId);
      const bound = freshness.kind === 'strict' ? `strict ${freshness.ms} ms` : 'best effort';
      const detail = `revoked ${Math.round(boundMs - nowMs)} ms before, ${bound}, ceiling ${ceilingMs} ms, ${hostId}`;
      if (found !== undefined) this.#violated('alive beyond its bound', found.host, grantId, detail);
      this.#revokedAtMs.delete(grantId);
      this.#receipts.delete(grantId);
    });
  }

  #violated(what: Violation['what'], host: Host, grantId: string, detail: string): void {
    this.#violations.push({
      what,
      host: host.id,
      grantId,
      atHours: this.schedule.nowMs / hour,
      detail,
      story: host.story,
    });
  }

  #count(what: string): void {
    this.#counts[what] = (this.#counts[what] ?? 0) + 1;
  }

  // The control plane's side.

  #publish(subject: string, data: Uint8Array, reaches: (host: Host) => boolean = () => true): void {
    const message = { subject, data, headers: {} };
    for (const [latencyMs, hosts] of this.#near) {
      void this.schedule.after(latencyMs, () => {
        for (const host of hosts) if (reaches(host)) host.hear(message);
      });
    }
  }

  #beacons(): void {
    const { chance, schedule } = this;
    schedule.after(beaconIntervalMs, () => this.#beacons());
    if (!this.controlPlane.up) return;
    const data = this.controlPlane.beacon();
    this.#count('beacons');
    // Whoever was stopped in between, or held it back, says something old.
    const heldMs = chance.happens(0.01) ? chance.magnitude(1_000, 10 * minute) : 0;
    if (heldMs === 0) this.#publish(fleet('beacon'), data);
    else schedule.after(heldMs, () => this.#publish(fleet('beacon'), data));
  }

  #outages(): void {
    const { chance, schedule, controlPlane } = this;
    schedule.after(chance.next(4 * hour), () => {
      controlPlane.up = false;
      this.#count('outages of the control plane');
      schedule.after(chance.magnitude(1_000, 10 * minute), () => {
        controlPlane.up = true;
        this.#outages();
      });
    });
  }

  /** What the lost entries promised is kept all the same. */
  #restore(): void {
    this.#count('databases restored');
    for (const host of this.#hosts) host.note('the database is restored');
    this.controlPlane.restore(Math.floor(this.chance.magnitude(1, 100)));
  }

  #onIssued({ claims, grantedAtMs }: Issued): void {
    this.#count('grants');
    const { grantId, ceilingMs } = claims;
    this.schedule.at(grantedAtMs + ceilingMs + slackMs, () => {
      this.controlPlane.grants.delete(grantId);
      const found = this.#trees.get(grantId);
      if (found !== undefined)
        this.#violated('alive beyond its ceiling', found.host, grantId, `${ceilingMs} ms`);
    });
    // While it is under way to its host, or has just begun.
    if (this.chance.happens(0.06)) {
      this.schedule.after(this.chance.magnitude(0.1, 100), () => this.#revoke(claims.grantId));
    }
  }

  #revokeSomething(): void {
    const { chance } = this;
    const open = [...this.controlPlane.grants.keys()];
    const many = chance.happens(0.1) ? chance.between(2, 20) : 1;
    for (let each = 0; each < many; each += 1) {
      const grantId = chance.one(open);
      if (grantId !== undefined) this.#revoke(grantId);
    }
  }

  /** When something befalls a host is when a revocation is most likely to find it unprepared. */
  #strike(host: Host): void {
    if (this.chance.happens(0.3)) return;
    this.schedule.after(this.chance.magnitude(10, 60_000), () => {
      const grantId = this.chance.one([...host.keepers.keys()]);
      if (grantId !== undefined) this.#revoke(grantId);
    });
  }

  #revoke(grantId: string): void {
    const issued = this.controlPlane.grants.get(grantId);
    if (!this.controlPlane.up || issued === undefined || this.#revokedAtMs.has(grantId)) return;
    const { hostId, runId } = issued.claims;
    const kind = this.chance.share();
    if (kind < 0.8) return this.#commit({ kind: 'grant', id: grantId }, [issued]);
    if (kind < 0.95) return this.#commit({ kind: 'run', id: runId }, [issued]);
    const open = [...this.controlPlane.grants.values()];
    if (kind < 0.96) return this.#commit({ kind: 'all' }, open);
    // A host that is revoked is granted nothing until that is lifted.
    this.controlPlane.stand(hostId);
    this.schedule.after(this.chance.magnitude(1_000, 30 * minute), () => this.controlPlane.lift(hostId));
    const there = open.filter(({ claims }) => claims.hostId === hostId);
    this.#commit({ kind: 'host', id: hostId, name: 'simulated' }, there);
  }

  #commit(target: RevocationTarget, hit: readonly Issued[]): void {
    const { chance, schedule, controlPlane } = this;
    this.#count(`revocations: ${target.kind}`);
    const data = controlPlane.revoke(target);
    for (const issued of hit) {
      const { grantId, hostId } = issued.claims;
      if (this.#revokedAtMs.has(grantId)) continue;
      this.#revokedAtMs.set(grantId, schedule.nowMs);
      this.#expectDead(issued);
      this.#hostOf.get(hostId)?.note(`${grantId} is revoked: ${controlPlane.head}`);
    }
    const say = (reaches?: (host: Host) => boolean): void =>
      this.#publish(fleet('revocation'), data, reaches);
    const relayMs = chance.between(0.5, 5);
    if (chance.happens(0.95)) return void schedule.after(relayMs, () => say());
    // Killed in the middle of a broadcast: some have heard; it is said again, if it is.
    schedule.after(relayMs, () => say(() => chance.happens(0.5)));
    if (chance.happens(0.8)) schedule.after(chance.magnitude(1_000, 60_000), () => say());
  }

  // What befalls a host.

  #befall(host: Host): void {
    const { chance, schedule } = this;
    this.#every(30 * minute, () => {
      const ttlMs = chance.one([5 * minute, 15 * minute, hour, undefined]);
      // What ends by itself proves nothing.
      const exitsAfterMs = chance.happens(0.3) ? chance.magnitude(100, 10 * minute) : Infinity;
      this.#ignore(host.run(ttlMs === undefined ? {} : { ttlMs }, exitsAfterMs));
    });
    this.#every(1.5 * hour, () => {
      if (host.cut) return;
      this.#count('partitions');
      this.#strike(host);
      host.sever(chance.happens(0.5));
      schedule.after(chance.magnitude(1_000, 2 * hour), () => host.heal());
    });
    this.#every(3 * hour, () => {
      this.#count('disorders');
      this.#strike(host);
      host.disorderly = true;
      schedule.after(chance.magnitude(10_000, 20 * minute), () => (host.disorderly = false));
    });
    this.#every(2 * hour, () => {
      this.#count('held back');
      this.#strike(host);
      host.heldBackMs = chance.magnitude(5_000, 5 * minute);
      schedule.after(chance.magnitude(10_000, hour), () => (host.heldBackMs = 0));
    });
    this.#every(2 * hour, () => {
      if (host.life === undefined || this.#keeperFails(host)) return;
      this.#count('agents killed');
      this.#strike(host);
      host.crash();
      schedule.after(chance.magnitude(300, 30 * minute), () =>
        host.life === undefined ? host.start() : undefined,
      );
    });
    this.#every(3 * hour, () => {
      if (host.life === undefined || this.#keeperFails(host)) return;
      this.#count('agents stopped');
      this.#strike(host);
      host.stopAgent(chance.magnitude(100, 10 * minute));
    });
    this.#every(3 * hour, () => host.skew(chance.between(-12 * hour, 12 * hour)));
    this.#every(2 * hour, () => this.#failKeeper(host));
    this.#every(hour, () => this.#deceive(host));
  }

  /** One process at a time: with its keeper and its agent both gone a tree is nobody's. */
  #failKeeper(host: Host): void {
    const { chance, schedule } = this;
    const keeper = chance.one([...host.keepers.values()].filter(({ alive, stopped }) => alive && !stopped));
    if (keeper === undefined || host.life === undefined || host.life.stopped) return;
    if (chance.happens(0.5)) {
      this.#count('keepers killed');
      this.#strike(host);
      return keeper.kill();
    }
    this.#count('keepers stopped');
    this.#strike(host);
    keeper.stop();
    schedule.after(chance.magnitude(100, 20 * minute), () => keeper.goOn());
  }

  #keeperFails(host: Host): boolean {
    return [...host.keepers.values()].some(({ tree, alive, stopped }) => tree.alive && (!alive || stopped));
  }

  /** What was true once, and what never was, to one host. */
  #deceive(host: Host): void {
    const { chance, controlPlane } = this;
    const encode = (value: object): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
    const entry = chance.one(controlPlane.entries);
    const beacon = chance.one(controlPlane.beacons);
    const lies = [
      { subject: fleet('beacon'), data: encode({ beacon: beacon ?? 'f.1.f' }) },
      { subject: fleet('revocation'), data: encode({ entry: entry ?? 'f.1.f' }) },
      { subject: fleet('beacon'), data: encode({ beacon: entry ?? 'f.1.f' }) },
      { subject: fleet('revocation'), data: encode({ entry: 'f.2.f' }) },
      { subject: fleet('beacon'), data: encode({ beacon: 'f.2.f', more: true }) },
    ];
    const lie = chance.one(lies);
    if (lie === undefined) return;
    this.#count('replays and forgeries');
    host.hear({ ...lie, headers: {} });
  }

  #every(meanMs: number, work: () => void): void {
    this.schedule.after(this.chance.next(meanMs), () => {
      this.#every(meanMs, work);
      work();
    });
  }

  #ignore(work: Promise<void>): void {
    work.catch((error: unknown) => {
      throw error;
    });
  }
}
