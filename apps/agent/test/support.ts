// Holds what the tests of the agent share: keys, a clock, a log that can be read, a folder, and a control plane of a few lines.
import type { Bus } from '@custody/bus/bus';
import { createFakeBroker, type FakeBroker } from '@custody/bus/fake-bus';
import { signJws } from '@custody/crypto/jws';
import { signingKeyFromSeed } from '@custody/crypto/keys';
import {
  failureOf,
  grantRequest,
  revocationsRequest,
  signedTypes,
  type BeaconClaims,
  type GrantAnswer,
  type GrantClaims,
  type GrantRequest,
  type HeadClaims,
  type RevocationClaims,
} from '@custody/wire/messages';
import { encodeJson, parseJson } from '@custody/wire/schema';
import { anyHostUp, fleet, hostMayPublish, hostMaySubscribe, inboxPrefix } from '@custody/wire/subjects';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { onTestFinished } from 'vitest';
import type { Log } from '../src/log.ts';

export const hostId = 'h_0000000000000001';
export const hostKey = signingKeyFromSeed(new Uint8Array(32).fill(1));
export const controlSeed = new Uint8Array(32).fill(9);
export const controlKey = signingKeyFromSeed(controlSeed).publicKey;
export const strangerSeed = new Uint8Array(32).fill(5);
export const at = '2026-11-22T09:30:00.000Z';

export const grantId = (n: number): string => `g_${String(n).padStart(8, '0')}`;

/** A folder of the test's own, gone when it ends. */
export function folder(): string {
  const dir = mkdtempSync(join(tmpdir(), 'ca-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** A clock that moves when it is told to. */
export class Clock {
  #ms = 1_000_000;
  readonly bootMs = (): number => this.#ms;
  readonly wallClock = (): Date => new Date(Date.UTC(2026, 10, 22) + this.#ms);

  advance(ms: number): void {
    this.#ms += ms;
  }
}

export function captureLog(): { log: Log; text: () => string } {
  const lines: string[] = [];
  const log = pino({ level: 'debug', base: null }, { write: (line: string) => void lines.push(line) });
  return { log, text: () => lines.join('') };
}

/** Resolves when `condition` holds: as soon as the event loop has brought it about. */
export async function until(condition: () => boolean): Promise<void> {
  const startedMs = performance.now();
  while (!condition()) {
    if (performance.now() - startedMs > 5_000) throw new Error(`never came about: ${condition.toString()}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Lets everything that is under way without a timer come to rest. */
export async function settle(): Promise<void> {
  for (let turns = 0; turns < 20; turns += 1) await new Promise((resolve) => setImmediate(resolve));
}

export function claimsOf(request: GrantRequest, more: Partial<GrantClaims> = {}): GrantClaims {
  return {
    grantId: grantId(1),
    requestId: request.requestId,
    runId: request.runId,
    hostId,
    subject: `host-a/${request.uid}`,
    credentials: request.credentials.map((wanted) => ({ ...wanted, version: 1 })),
    ceilingMs: request.ttlMs ?? 60_000,
    graceMs: 2_000,
    freshness: { kind: 'best_effort' },
    policyRevision: 1,
    policyIds: ['p'],
    containment: 'subreaper',
    epoch: 0,
    sealedSha256: '0'.repeat(64),
    grantedAt: at,
    ...more,
  };
}

/** The other end of the bus: a revocation log, a policy and whatever grants a test gives. */
export class ControlPlane {
  readonly broker: FakeBroker = createFakeBroker();
  readonly bus: Bus = this.broker.connect();
  readonly hostBus: Bus = this.broker.connect({
    allowPublish: hostMayPublish(hostId),
    allowSubscribe: hostMaySubscribe(hostId),
    inboxPrefix: inboxPrefix(hostId),
  });
  readonly log: string[] = [];
  /** What was asked for, in order. */
  readonly asked: string[] = [];
  policy = { revision: 1, text: '', hostId };
  pageMax = 500;
  grant: (request: GrantRequest) => Promise<GrantAnswer> = async () => {
    throw new Error('no grant was prepared');
  };
  /** Which log it is, and what its database's clock says. */
  identity: { log: string; since?: number } = { log: 'log_00000001' };
  atMs = Date.parse(at);
  /** Overrules the proof of a pull. */
  proven: (claims: HeadClaims) => Promise<string> = (claims) =>
    signJws(controlSeed, signedTypes.head, claims);
  /** Overrules the log's answer to a pull. */
  pulled: ((after: number) => { entries: string[]; head: number }) | undefined;

  static async open(): Promise<ControlPlane> {
    const made = new ControlPlane();
    const { bus } = made;
    await bus.serve(anyHostUp('revocations'), ({ data }) => made.#revocations(data), { concurrencyMax: 9 });
    await bus.serve(anyHostUp('policy'), () => made.#policy(), { concurrencyMax: 9 });
    await bus.serve(anyHostUp('grant'), ({ data }) => made.#grant(data), { concurrencyMax: 9 });
    return made;
  }

  /** The next entry of the log, signed; not broadcast. */
  async revoke(target: string): Promise<string> {
    const epoch = this.log.length + 1;
    const { log, since } = this.identity;
    const claims: RevocationClaims = {
      ...{ epoch, target: { kind: 'grant', id: target }, reason: 'leaked', at },
      ...(since === undefined ? {} : { log }),
    };
    const entry = await signJws(controlSeed, signedTypes.revocation, claims);
    this.log.push(entry);
    return entry;
  }

  broadcast(entry: string): void {
    this.bus.publish(fleet('revocation'), encodeJson({ entry }));
  }

  /** Where the log stands now, as it is said to all. */
  stands(more: Partial<BeaconClaims> = {}): BeaconClaims {
    return {
      ...this.identity,
      epoch: this.log.length,
      at: new Date(this.atMs).toISOString(),
      ...more,
    };
  }

  /** Sends a beacon; by default a true one of this moment. */
  async beacon(more: Partial<BeaconClaims> = {}, seed = controlSeed): Promise<string> {
    const beacon = await signJws(seed, signedTypes.beacon, this.stands(more));
    this.send(beacon);
    return beacon;
  }

  send(beacon: string): void {
    this.bus.publish(fleet('beacon'), encodeJson({ beacon }));
  }

  async #revocations(data: Uint8Array): Promise<Uint8Array> {
    const { after, nonce = '' } = parseJson(revocationsRequest, data, 'test');
    this.asked.push(`revocations ${after}`);
    const length = this.log.length;
    const found = after >= length ? [] : this.log.slice(after, after + this.pageMax);
    const { entries, head } = this.pulled?.(after) ?? { entries: found, head: length };
    const proof = await this.proven({ ...this.stands({ epoch: head }), nonce });
    return encodeJson({ ok: true, entries, head, proof });
  }

  async #policy(): Promise<Uint8Array> {
    this.asked.push('policy');
    const claims = { ...this.policy, labels: {}, at };
    return encodeJson({ ok: true, signed: await signJws(controlSeed, signedTypes.policy, claims) });
  }

  async #grant(data: Uint8Array): Promise<Uint8Array> {
    this.asked.push('grant');
    try {
      return encodeJson(await this.grant(parseJson(grantRequest, data, 'test')));
    } catch (error) {
      return encodeJson({ ok: false, error: failureOf(error) });
    }
  }
}
