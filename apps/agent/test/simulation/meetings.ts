// Owns the meetings of grant and revocation in virtual time: runs ask for a secret while it is revoked, ten thousand times.
import { beaconIntervalMs } from '@custody/core/limits';
import { sodiumReady } from '@custody/crypto/sodium';
import type { HostBody } from '@custody/wire/ledger';
import { fleet } from '@custody/wire/subjects';
import { ControlPlane, secret } from './control-plane.ts';
import { Host, type World } from './host.ts';
import type { Tree } from './keeper.ts';
import { Chance, Schedule } from './schedule.ts';
import type { Violation } from './world.ts';

const hosts = 3;
/** In which runs ask and the secret is revoked; a run takes about as long to begin. */
const windowMs = 40;
/** By then every agent that died has come back, and every tree that was revoked is dead. */
const overMs = 9_000;
const betweenMs = 10_000;

export interface Meetings {
  readonly seed: number;
  readonly meetings: number;
  /** How many orders of what happened were seen. */
  readonly orders: number;
  readonly counts: Readonly<Record<string, number>>;
  readonly violations: readonly Violation[];
}

export async function meet(seed: number, meetings: number, untilFound: boolean): Promise<Meetings> {
  await sodiumReady();
  return new Met(seed).all(meetings, untilFound);
}

class Met implements World {
  readonly schedule = new Schedule();
  readonly chance: Chance;
  readonly restartMsMax = 2_000;
  readonly controlPlane: ControlPlane;
  readonly verify;
  readonly #seed: number;
  readonly #hosts: Host[];
  readonly #trees = new Map<string, { readonly host: Host; readonly tree: Tree }>();
  /** Of this meeting. */
  #receipts = new Set<string>();
  #order: string[] = [];
  #met = 0;
  readonly #orders = new Set<string>();
  readonly #counts: Record<string, number> = {};
  readonly #violations: Violation[] = [];

  constructor(seed: number) {
    this.#seed = seed;
    this.chance = new Chance(seed);
    this.controlPlane = new ControlPlane(this.schedule, this.chance);
    this.controlPlane.onIssued = () => this.#happened('decided');
    this.verify = this.controlPlane.seals.verify;
    this.#hosts = Array.from({ length: hosts }, (_, index) => new Host(this, index + 1));
  }

  async all(meetings: number, untilFound: boolean): Promise<Meetings> {
    this.#beacons();
    for (const host of this.#hosts) host.start();
    for (let each = 0; each < meetings; each += 1) {
      this.schedule.at((each + 1) * betweenMs, () => this.#meet(each));
    }
    const found = (): boolean => untilFound && this.#violations.length > 0;
    await this.schedule.run((meetings + 1) * betweenMs, found);
    return {
      seed: this.#seed,
      meetings: this.#met,
      orders: this.#orders.size,
      counts: this.#counts,
      violations: this.#violations,
    };
  }

  onTree(host: Host, tree: Tree): void {
    this.#happened('begins');
    this.#trees.set(tree.grantId, { host, tree });
    if (this.#receipts.has(tree.grantId)) this.#violated('started after its receipt', host, tree.grantId);
  }

  onDead(tree: Tree): void {
    this.#happened('dies');
    this.#trees.delete(tree.grantId);
  }

  onReceipt(host: Host, { grantId, outcome }: HostBody<'receipt'>): void {
    this.#happened(`receipt ${outcome}`);
    this.#receipts.add(grantId);
    if (this.#trees.has(grantId)) this.#violated('alive after its receipt', host, grantId);
  }

  diesAtStep(): boolean {
    const dies = this.chance.happens(0.03);
    if (dies) this.#happened('an agent dies');
    return dies;
  }

  #meet(which: number): void {
    const { chance, schedule, controlPlane } = this;
    this.#met = which + 1;
    this.#order = [];
    const runs = 1 + Math.floor(chance.share() * 3);
    for (let run = 0; run < runs; run += 1) {
      const host = chance.one(this.#hosts);
      schedule.after(chance.between(0, windowMs), () => {
        this.#happened('asked');
        void host?.run({}, Infinity);
      });
    }
    schedule.after(chance.between(0, windowMs), () => {
      this.#happened('revoked');
      controlPlane.stand();
      this.#broadcast(controlPlane.revoke({ kind: 'secret', path: secret }));
    });
    schedule.after(overMs, () => this.#over());
  }

  /** Sometimes not at all: then a beacon tells of the gap. */
  #broadcast(data: Uint8Array): void {
    const { chance, schedule } = this;
    if (chance.happens(0.1)) return;
    for (const host of this.#hosts) {
      schedule.after(chance.between(1, 20), () =>
        host.hear({ subject: fleet('revocation'), data, headers: {} }),
      );
    }
  }

  #beacons(): void {
    this.schedule.after(beaconIntervalMs, () => this.#beacons());
    const data = this.controlPlane.beacon();
    for (const host of this.#hosts) {
      this.schedule.after(host.latencyMs, () => host.hear({ subject: fleet('beacon'), data, headers: {} }));
    }
  }

  #over(): void {
    for (const [grantId, { host }] of this.#trees) this.#violated('alive beyond its bound', host, grantId);
    this.#trees.clear();
    const order = this.#order.join(' ');
    this.#orders.add(order);
    this.controlPlane.grants.clear();
    this.controlPlane.lift();
    this.#receipts = new Set();
  }

  #happened(what: string): void {
    this.#order.push(what);
    this.#counts[what] = (this.#counts[what] ?? 0) + 1;
  }

  #violated(what: Violation['what'], host: Host, grantId: string): void {
    const detail = `meeting ${this.#met}: ${this.#order.join(', ')}`;
    const atHours = this.schedule.nowMs / 3_600_000;
    this.#violations.push({ what, host: host.id, grantId, atHours, detail, story: host.story });
  }
}
