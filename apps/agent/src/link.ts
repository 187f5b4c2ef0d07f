// Owns the link to the control plane: revocations in order, the policy copy, and grants asked for. Subscribe, catch up, serve.
import { readFile } from 'node:fs/promises';
import type { Bus } from '@custody/bus/bus';
import { BusError } from '@custody/bus/errors';
import { parsePolicies, PolicyEngine } from '@custody/core/cedar';
import { CustodyError } from '@custody/core/errors';
import {
  catchUpIntervalMs,
  grantRequestTimeoutMs,
  linkJoinMsMax,
  pullTimeoutMs,
  reconcileIntervalMs,
  revocationsKeptMax,
} from '@custody/core/limits';
import { classify, hits, type RevocableGrant } from '@custody/core/revocation';
import { verifyJws } from '@custody/crypto/jws';
import { writeFileAtomic } from '@custody/crypto/keyfiles';
import { carrier, traced } from '@custody/telemetry/telemetry';
import {
  errorOf,
  grantAnswer,
  grantClaims,
  policyAnswer,
  policyClaims,
  policyNotice,
  revocationBroadcast,
  revocationClaims,
  revocationsAnswer,
  signedTypes,
  type GrantClaims,
  type GrantRequest,
  type RevocationClaims,
} from '@custody/wire/messages';
import { encodeJson, parse, parseJson } from '@custody/wire/schema';
import { fleet, hostUp, type UpWhat } from '@custody/wire/subjects';
import type { z } from 'zod';
import type { Log } from './log.ts';

export type LinkState = 'down' | 'catching_up' | 'ready';

export interface PolicyCopy {
  readonly revision: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly engine: PolicyEngine;
}

export interface Granted {
  readonly claims: GrantClaims;
  readonly sealed: Uint8Array;
  readonly notes: readonly string[];
}

export interface LinkOptions {
  readonly hostId: string;
  readonly controlPlaneKey: string;
  /** Where the cursor is kept: the epoch up to which every revocation has been applied here. */
  readonly cursorFile: string;
  readonly bootMs: () => number;
  readonly wallClock: () => Date;
  readonly log: Log;
  /** Applies one revocation to this host's runs. Synchronous, so that nothing can come between. */
  readonly onRevocation: (claims: RevocationClaims, heardBootMs: number, heardAt: Date) => void;
}

export class Link implements AsyncDisposable {
  readonly #options: LinkOptions;
  readonly #subscriptions: AsyncDisposable[] = [];
  /** The one line along which entries are applied, whichever way they came. */
  #applying: Promise<void> = Promise.resolve();
  #recent: RevocationClaims[] = [];
  /** Undefined until the bus is joined. */
  #bus: Bus | undefined;
  readonly #openedBootMs: number;
  /** Settled once it is subscribed for the first time, or closed. */
  readonly #begun = Promise.withResolvers<void>();
  #onReady: () => void = () => {};
  #cursor: number | undefined;
  #state: LinkState = 'down';
  #policy: PolicyCopy | undefined;
  #catchingUp: Promise<void> | undefined;
  #again = false;
  #refreshing: Promise<void> | undefined;
  /** Why the last catching up failed. */
  #failure: Error | undefined;
  #timer: NodeJS.Timeout | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#openedBootMs = options.bootMs();
  }

  get state(): LinkState {
    return this.#state;
  }

  get cursor(): number {
    return this.#cursor ?? 0;
  }

  get policy(): PolicyCopy | undefined {
    return this.#policy;
  }

  /** Subscribes, then catches up, then serves; again at every reconnect. `onReady` is called each time it serves again. */
  async start(bus: Bus, onReady: () => void): Promise<void> {
    const { cursorFile, bootMs, wallClock } = this.#options;
    this.#cursor = await readCursor(cursorFile);
    this.#bus = bus;
    this.#onReady = onReady;
    this.#subscriptions.push(
      await bus.subscribe(fleet('revocation'), ({ data }) => {
        const heardBootMs = bootMs();
        const heardAt = wallClock();
        void this.#take(
          () => [parseJson(revocationBroadcast, data, 'revocation').entry],
          heardBootMs,
          heardAt,
          () => this.catchUp(),
        );
      }),
      await bus.subscribe(fleet('policy'), ({ data }) => this.#heardOfPolicy(data)),
    );
    bus.onStatus((status) => {
      if (status === 'connected') this.catchUp();
      else this.#setState('down');
    });
    this.#timer = setInterval(() => this.catchUp(), catchUpIntervalMs);
    this.catchUp();
    this.#begun.resolve();
  }

  /** Nudge and timer alike: pull what is missing, then serve. One pull at a time; a nudge during one means another. */
  catchUp(): void {
    if (this.#closed || this.#bus?.connected !== true) return;
    this.#again = true;
    this.#catchingUp ??= this.#pullUntilQuiet().finally(() => {
      this.#catchingUp = undefined;
    });
  }

  /**
   * Resolves when grants can be asked for. Rejects with `control_plane_unreachable`: at once when the bus is down,
   * but an agent that has just started is given its time to join it.
   */
  async whenReady(): Promise<void> {
    if (this.#state === 'ready') return;
    await this.#firstJoin();
    if (this.#bus?.connected !== true) throw unreachable('its message bus does not answer');
    if (this.#catchingUp === undefined) this.catchUp();
    await this.#catchingUp;
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #firstJoin(): Promise<void> {
    const leftMs = this.#openedBootMs + linkJoinMsMax - this.#options.bootMs();
    if (leftMs <= 0) return;
    const timer = setTimeout(() => this.#begun.resolve(), leftMs);
    await this.#begun.promise;
    clearTimeout(timer);
  }

  /** Makes sure that the policy copy is the newest. Without a network it stays what it is. */
  async refreshPolicy(): Promise<void> {
    if (this.#bus?.connected !== true) return;
    try {
      this.#refreshing ??= this.#pullPolicy().finally(() => {
        this.#refreshing = undefined;
      });
      await this.#refreshing;
    } catch (error) {
      this.#options.log.warn(
        { err: error },
        'the policy copy could not be refreshed; it denies as it stands',
      );
    }
  }

  /** Asks for a grant. Throws the control plane's refusal, or `control_plane_unreachable`. */
  requestGrant(request: GrantRequest): Promise<Granted> {
    return traced('agent.request_grant', {}, async () => {
      const answer = await this.#ask('grant', request, grantAnswer, grantRequestTimeoutMs);
      const claims = await this.#verify(signedTypes.grant, answer.grant, grantClaims);
      if (claims.requestId !== request.requestId || claims.hostId !== this.#options.hostId) {
        throw new CustodyError('internal', 'the control plane answered with a grant for another request');
      }
      return { claims, sealed: Buffer.from(answer.sealed, 'base64'), notes: answer.notes };
    });
  }

  /**
   * Whether a grant decided at `decidedEpoch` still stands, by every revocation applied here since.
   * Catches up first where the decision is newer than this host's cursor (invariant 6).
   */
  async standing(grant: RevocableGrant, decidedEpoch: number): Promise<RevocationClaims | undefined> {
    if (decidedEpoch > this.cursor) {
      await this.#pullRevocations();
      if (decidedEpoch > this.cursor)
        throw new CustodyError('host_behind', 'this host is behind on revocations');
    }
    return this.revokedSince(grant, decidedEpoch);
  }

  revokedSince(grant: RevocableGrant, decidedEpoch: number): RevocationClaims | undefined {
    const oldest = this.#recent[0]?.epoch ?? this.cursor + 1;
    if (oldest > decidedEpoch + 1 && this.cursor > decidedEpoch) {
      throw new CustodyError('host_behind', 'too many revocations came while the grant was under way', {
        next: 'run the command again',
      });
    }
    return this.#recent.find((entry) => entry.epoch > decidedEpoch && hits(entry.target, grant));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#begun.resolve();
    clearInterval(this.#timer);
    clearTimeout(this.#retry);
    await Promise.all(this.#subscriptions.map((subscription) => subscription[Symbol.asyncDispose]()));
    await this.#catchingUp;
    await this.#applying;
  }

  async #pullUntilQuiet(): Promise<void> {
    while (this.#again && !this.#closed) {
      this.#again = false;
      await this.#pullAll();
    }
  }

  async #pullAll(): Promise<void> {
    if (this.#state !== 'ready') this.#setState('catching_up');
    try {
      await this.#pullRevocations();
      await this.#pullPolicy();
      this.#failure = undefined;
      this.#setState('ready');
      this.#onReady();
    } catch (error) {
      this.#failure = error instanceof Error ? error : unreachable('catching up failed', error);
      this.#setState('down');
      this.#options.log.warn({ err: error }, 'catching up with the control plane failed');
      // The bus may be back before the control plane is.
      clearTimeout(this.#retry);
      if (!this.#closed) this.#retry = setTimeout(() => this.catchUp(), reconcileIntervalMs);
    }
  }

  async #pullRevocations(): Promise<void> {
    const { bootMs, wallClock } = this.#options;
    for (;;) {
      // A host without a cursor has no grant that an older entry could hit: it begins at the head.
      const after = this.#cursor ?? Number.MAX_SAFE_INTEGER;
      const { entries, head } = await this.#ask('revocations', { after }, revocationsAnswer, pullTimeoutMs);
      const before = this.#cursor;
      if (before === undefined) await this.#moveCursor(head);
      else
        await this.#take(
          () => entries,
          bootMs(),
          wallClock(),
          () => {},
        );
      if (this.cursor >= head) return;
      if (this.cursor === before) throw unreachable('its revocation log does not verify, or has a gap');
    }
  }

  /** The one path of every entry, pulled or broadcast: verified, in order, once. A pull finds its own gap. */
  #take(
    entriesOf: () => readonly string[],
    heardBootMs: number,
    heardAt: Date,
    onGap: () => void,
  ): Promise<void> {
    this.#applying = this.#applying.then(async () => {
      try {
        const before = this.#cursor;
        for (const entry of entriesOf()) {
          const claims = await this.#verify(signedTypes.revocation, entry, revocationClaims);
          if (this.#cursor === undefined) return;
          const what = classify(this.#cursor, claims.epoch);
          if (what === 'gap') {
            onGap();
            break;
          }
          if (what === 'known') continue;
          this.#options.onRevocation(claims, heardBootMs, heardAt);
          this.#cursor = claims.epoch;
          this.#recent = [...this.#recent.slice(1 - revocationsKeptMax), claims];
        }
        if (this.#cursor !== undefined && this.#cursor !== before) await this.#moveCursor(this.#cursor);
      } catch (error) {
        this.#options.log.error({ err: error }, 'a revocation was refused');
      }
    });
    return this.#applying;
  }

  async #moveCursor(epoch: number): Promise<void> {
    this.#cursor = epoch;
    await writeFileAtomic(this.#options.cursorFile, new TextEncoder().encode(`${epoch}\n`), 0o600);
  }

  #heardOfPolicy(data: Uint8Array): void {
    try {
      const { revision } = parseJson(policyNotice, data, 'policy notice');
      if (revision > (this.#policy?.revision ?? -1)) this.catchUp();
    } catch (error) {
      this.#options.log.warn({ err: error }, 'a policy notice was not understood');
    }
  }

  async #pullPolicy(): Promise<void> {
    const { signed } = await this.#ask(
      'policy',
      { have: this.#policy?.revision ?? 0 },
      policyAnswer,
      pullTimeoutMs,
    );
    const claims = await this.#verify(signedTypes.policy, signed, policyClaims);
    if (claims.hostId !== this.#options.hostId)
      throw new CustodyError('internal', 'a policy set for another host');
    if (claims.revision < (this.#policy?.revision ?? 0)) return;
    const engine =
      claims.revision === this.#policy?.revision
        ? this.#policy.engine
        : new PolicyEngine('copy', parsePolicies(claims.text));
    this.#policy = { revision: claims.revision, labels: claims.labels, engine };
  }

  async #ask<Answer extends z.ZodType<{ ok: true } | { ok: false; error: Parameters<typeof errorOf>[0] }>>(
    what: UpWhat,
    request: unknown,
    schema: Answer,
    timeoutMs: number,
  ): Promise<Extract<z.output<Answer>, { ok: true }>> {
    if (this.#bus === undefined) throw unreachable('its message bus does not answer');
    let data: Uint8Array;
    try {
      const subject = hostUp(this.#options.hostId, what);
      ({ data } = await this.#bus.request(subject, encodeJson(request), { timeoutMs, headers: carrier() }));
    } catch (cause) {
      throw unreachable(whyUnreachable(cause), cause);
    }
    const answer: { ok: true } | { ok: false; error: Parameters<typeof errorOf>[0] } = parseJson(
      schema,
      data,
      what,
    );
    if (!answer.ok) throw errorOf(answer.error);
    return answer as Extract<z.output<Answer>, { ok: true }>;
  }

  async #verify<Schema extends z.ZodType>(
    typ: string,
    token: string,
    schema: Schema,
  ): Promise<z.output<Schema>> {
    return parse(schema, await verifyJws(this.#options.controlPlaneKey, typ, token), typ);
  }

  #setState(state: LinkState): void {
    if (state === this.#state) return;
    this.#options.log.info({ from: this.#state, to: state }, 'link');
    this.#state = state;
  }
}

async function readCursor(path: string): Promise<number | undefined> {
  try {
    const text = await readFile(path, 'utf8');
    if (!/^\d{1,15}\n$/.test(text)) throw new CustodyError('internal', `${path} holds no revocation epoch`);
    return Number(text);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

function whyUnreachable(cause: unknown): string {
  if (!(cause instanceof BusError)) return 'its message bus failed';
  if (cause.code === 'no_responder') return 'it is not running';
  if (cause.code === 'timeout') return 'it did not answer in time';
  return `its message bus is ${cause.code}`;
}

function unreachable(why: string, cause?: unknown): CustodyError {
  return new CustodyError('control_plane_unreachable', `the control plane cannot be reached: ${why}`, {
    next: 'nothing was released; runs that already hold a grant go on to their ceiling; see custody agent status',
    cause,
  });
}
