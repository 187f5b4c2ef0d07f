// Owns the link to the control plane: revocations in order, freshness, the policy copy, grants. Subscribe, catch up, serve.
import type { Bus } from '@custody/bus/bus';
import { BusError } from '@custody/bus/errors';
import { parsePolicies, PolicyEngine } from '@custody/core/cedar';
import { CustodyError } from '@custody/core/errors';
import {
  hearBeacon,
  hearProof,
  isOfLog,
  isSetBack,
  mustAsk,
  unproven,
  type HeadStatement,
  type Standing,
  type Verdict,
} from '@custody/core/freshness';
import {
  beaconIntervalMs,
  grantRequestTimeoutMs,
  linkJoinMsMax,
  pullTimeoutMs,
  reconcileIntervalMs,
  revocationsKeptMax,
} from '@custody/core/limits';
import { classify, hits, type RevocableGrant } from '@custody/core/revocation';
import { verifyJws } from '@custody/crypto/jws';
import { carrier, counter, traced } from '@custody/telemetry/telemetry';
import {
  beaconBroadcast,
  beaconClaims,
  errorOf,
  grantAnswer,
  grantClaims,
  headClaims,
  policyAnswer,
  policyClaims,
  policyNotice,
  revocationBroadcast,
  revocationClaims,
  revocationsAnswer,
  signedTypes,
  type BeaconClaims,
  type GrantClaims,
  type GrantRequest,
  type HeadClaims,
  type RevocationClaims,
} from '@custody/wire/messages';
import { encodeJson, parse, parseJson } from '@custody/wire/schema';
import { fleet, hostUp, type UpWhat } from '@custody/wire/subjects';
import type { z } from 'zod';
import { readCursor, writeCursor, type Cursor } from './cursor.ts';
import type { Log } from './log.ts';
import { machineTimers, type Timer, type Timers } from './timers.ts';

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
  /** Every revocation made before that instant has been applied here. */
  readonly onFresh: (provenBootMs: number) => void;
  /** The log was set back. Resolves, when that is on record, with how many runs are open. */
  readonly onLogChange: (change: LogChange) => Promise<number>;
  readonly newNonce: () => string;
  /** Resolves when what applied entries ask of this host is on its disk: only then does the kept cursor pass them. */
  readonly settled: () => Promise<void>;
  /** The least epoch at which an open run was decided: kills that a dying agent left undone are behind the cursor. */
  readonly openSince: () => number;
  /** Absent: this machine. */
  readonly machine?: LinkMachine;
}

/** What stands beneath a link: a simulation has its own. */
export interface LinkMachine {
  readonly timers: Timers;
  readonly verify: typeof verifyJws;
  readonly readCursor: typeof readCursor;
  readonly writeCursor: typeof writeCursor;
}

const thisMachine: LinkMachine = { timers: machineTimers, verify: verifyJws, readCursor, writeCursor };

/** As much of the bus as a link uses. */
export type LinkBus = Pick<Bus, 'connected' | 'subscribe' | 'request' | 'onStatus'>;

export interface LogChange {
  readonly from: { readonly log?: string; readonly epoch: number };
  readonly to: { readonly log: string; readonly epoch: number };
}

const beaconsHeard = counter('custody.agent.beacons', 'beacons heard, by what they were to this host');

export class Link implements AsyncDisposable {
  readonly #options: LinkOptions;
  readonly #machine: LinkMachine;
  readonly #subscriptions: AsyncDisposable[] = [];
  /** The one line along which entries are applied, whichever way they came. */
  #applying: Promise<void> = Promise.resolve();
  #recent: RevocationClaims[] = [];
  /** Undefined until the bus is joined. */
  #bus: LinkBus | undefined;
  readonly #openedBootMs: number;
  /** Settled once it is subscribed for the first time, or closed. */
  readonly #begun = Promise.withResolvers<void>();
  #onReady: () => void = () => {};
  #cursor: Cursor | undefined;
  #standing: Standing = unproven;
  /** On the last beacon: what is wrong with many in a row goes into the log once. */
  #verdict: Verdict | 'refused' = 'fresh';
  #beaconBootMs: number | undefined;
  #state: LinkState = 'down';
  #policy: PolicyCopy | undefined;
  #catchingUp: Promise<void> | undefined;
  #again = false;
  #refreshing: Promise<void> | undefined;
  #proving: Promise<void> | undefined;
  #refusal: string | undefined;
  /** Why the last catching up failed. */
  #failure: Error | undefined;
  #timer: Timer | undefined;
  #retry: Timer | undefined;
  #closed = false;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#machine = options.machine ?? thisMachine;
    this.#openedBootMs = options.bootMs();
  }

  get state(): LinkState {
    return this.#state;
  }

  get cursor(): number {
    return this.#cursor?.epoch ?? 0;
  }

  /** Every revocation made before it has been applied here; undefined before the control plane was reached. */
  get provenBootMs(): number | undefined {
    return this.#standing.provenBootMs;
  }

  /** When a beacon last counted. */
  get beaconBootMs(): number | undefined {
    return this.#beaconBootMs;
  }

  get policy(): PolicyCopy | undefined {
    return this.#policy;
  }

  /** Subscribes, then catches up, then serves; again at every reconnect. `onReady` is called each time it serves again. */
  async start(bus: LinkBus, onReady: () => void): Promise<void> {
    const { cursorFile, bootMs, wallClock } = this.#options;
    const kept = await this.#machine.readCursor(cursorFile);
    this.#cursor =
      kept === undefined ? undefined : { ...kept, epoch: Math.min(kept.epoch, this.#options.openSince()) };
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
      await bus.subscribe(fleet('beacon'), ({ data }) => void this.#hearBeacon(data, bootMs())),
      await bus.subscribe(fleet('policy'), ({ data }) => this.#heardOfPolicy(data)),
    );
    bus.onStatus((status, detail) => {
      if (status === 'connected') {
        this.#refusal = undefined;
        this.catchUp();
      } else this.#setState('down');
      if (status === 'refused' && detail.startsWith('user')) this.refused(detail);
    });
    this.#timer = this.#machine.timers.every(() => {
      if (this.#state !== 'ready' || mustAsk(this.#standing, bootMs())) this.catchUp();
    }, beaconIntervalMs);
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
    if (this.#bus?.connected !== true) throw this.#away();
    if (this.#catchingUp === undefined) this.catchUp();
    await this.#catchingUp;
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #firstJoin(): Promise<void> {
    const leftMs = this.#openedBootMs + linkJoinMsMax - this.#options.bootMs();
    if (leftMs <= 0) return;
    const late = this.#machine.timers.once(() => this.#begun.resolve(), leftMs);
    await this.#begun.promise;
    late.cancel();
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

  /** The bus does not let this host in. No word of the control plane's, so nothing is wiped for it. */
  refused(detail: string): void {
    if (this.#refusal === undefined) {
      this.#options.log.error(
        { detail },
        'the bus refuses this host: it was banned, or enrolled at another control plane; its runs end as policy says',
      );
    }
    this.#refusal = detail;
  }

  /** Why the bus does not let this host in; undefined while it does. */
  get refusal(): string | undefined {
    return this.#refusal;
  }

  /** For a host that was banned: what policy permits is no longer its to know. */
  forgetPolicy(): void {
    this.#policy = undefined;
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

  /** Makes sure that what is proven is not older than that instant, and says what is. Throws where nothing newer can be had. */
  async prove(sinceBootMs: number): Promise<number> {
    if ((this.provenBootMs ?? -Infinity) < sinceBootMs) {
      // After a suspend many may want it at once: one question does for all.
      this.#proving ??= this.#pullRevocations().finally(() => {
        this.#proving = undefined;
      });
      await this.#proving;
    }
    return this.provenBootMs ?? -Infinity;
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
    this.#timer?.cancel();
    this.#retry?.cancel();
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
      this.#retry?.cancel();
      if (!this.#closed) this.#retry = this.#machine.timers.once(() => this.catchUp(), reconcileIntervalMs);
    }
  }

  async #pullRevocations(): Promise<void> {
    const { bootMs, wallClock } = this.#options;
    for (let setBack = false; ;) {
      const asked = this.#cursor;
      // A host without a cursor has no grant that an older entry could hit: it begins at the head.
      const after = asked?.epoch ?? Number.MAX_SAFE_INTEGER;
      const askedBootMs = bootMs();
      const { entries, head } = await this.#askForHead(after);
      if (isSetBack({ log: asked?.log, cursor: asked?.epoch ?? 0 }, head)) {
        if (setBack) throw unreachable('two revocation logs answer in turn');
        setBack = true;
        await this.#beginAnew(head);
        continue;
      }
      await this.#inLine(() => this.#nameLog(head));
      await this.#take(
        () => entries,
        bootMs(),
        wallClock(),
        () => {},
      );
      if (this.#cursor?.log !== head.log) throw unreachable('its revocation log was set back meanwhile');
      if (this.cursor >= head.epoch) return this.#prove(hearProof(this.#standing, head, askedBootMs));
      if (this.cursor === asked?.epoch) throw unreachable('its revocation log does not verify, or has a gap');
    }
  }

  /** Of a host that has no cursor yet, and of one whose cursor was left by an agent that knew of one log only. */
  async #nameLog({ log, since, epoch }: HeadStatement & HeadClaims): Promise<void> {
    const cursor = this.#cursor;
    if (cursor === undefined) await this.#moveCursor({ epoch, log, since });
    else if (cursor.log === undefined) await this.#moveCursor({ ...cursor, log, since });
  }

  /** Entries after a cursor, and the signed word on where the log stands, made after this was asked. */
  async #askForHead(after: number): Promise<{ entries: string[]; head: HeadStatement & HeadClaims }> {
    const nonce = this.#options.newNonce();
    const asked = { after, nonce };
    const { entries, proof } = await this.#ask('revocations', asked, revocationsAnswer, pullTimeoutMs);
    if (proof === undefined) throw unreachable('it is older than this agent, and proves nothing');
    const claims = await this.#verify(signedTypes.head, proof, headClaims);
    if (claims.nonce !== nonce) throw unreachable('it answered another question than was asked');
    return { entries, head: stated(claims) };
  }

  /**
   * An older database was restored, or this is another one. What of the new log has been applied here cannot be
   * known: it is followed from its start, unless nothing is open that it could hit.
   */
  async #beginAnew(head: HeadStatement & HeadClaims): Promise<void> {
    const { onLogChange, log: logger } = this.#options;
    await this.#inLine(async () => {
      const was = this.#cursor;
      // Another pull may have found it first.
      if (!isSetBack({ log: was?.log, cursor: this.cursor }, head)) return;
      const { log, since, epoch } = head;
      const from = { ...(was?.log === undefined ? {} : { log: was.log }), epoch: was?.epoch ?? 0 };
      logger.error(
        { from, to: { log, epoch } },
        'the revocation log was set back: strict runs of before are not renewed; see docs/revocation.md',
      );
      const open = await onLogChange({ from, to: { log, epoch } });
      this.#recent = [];
      await this.#moveCursor({ epoch: open > 0 ? 0 : epoch, log, since });
    });
  }

  /** Judged in one line with the entries: what was said before a beacon has been applied when it is its turn. */
  async #hearBeacon(data: Uint8Array, heardBootMs: number): Promise<void> {
    await this.#inLine(async () => {
      let beacon: HeadStatement & BeaconClaims;
      try {
        const token = parseJson(beaconBroadcast, data, 'beacon').beacon;
        beacon = stated(await this.#verify(signedTypes.beacon, token, beaconClaims));
      } catch (error) {
        return this.#judged('refused', error);
      }
      const followed = { log: this.#cursor?.log, cursor: this.cursor };
      const { verdict, standing } = hearBeacon(this.#standing, beacon, followed, heardBootMs);
      this.#judged(verdict);
      if (verdict === 'fresh') {
        this.#beaconBootMs = heardBootMs;
        this.#prove(standing);
      } else if (verdict !== 'old') this.catchUp();
    });
  }

  #judged(verdict: Verdict | 'refused', error?: unknown): void {
    beaconsHeard.add(1, { verdict });
    const notable = verdict !== 'fresh' && verdict !== 'old' && verdict !== 'behind';
    if (notable && verdict !== this.#verdict)
      this.#options.log.warn({ verdict, err: error }, 'a beacon does not count');
    this.#verdict = verdict;
  }

  #prove(standing: Standing): void {
    this.#standing = standing;
    if (standing.provenBootMs !== undefined) this.#options.onFresh(standing.provenBootMs);
  }

  /** The one path of every entry, pulled or broadcast: verified, in order, once. A pull finds its own gap. */
  #take(
    entriesOf: () => readonly string[],
    heardBootMs: number,
    heardAt: Date,
    onGap: () => void,
  ): Promise<void> {
    const taken = this.#inLine(async () => {
      const before = this.#cursor;
      for (const entry of entriesOf()) {
        const claims = await this.#verify(signedTypes.revocation, entry, revocationClaims);
        const cursor = this.#cursor;
        if (cursor === undefined) return;
        const what = classify(cursor.epoch, claims.epoch);
        if (what === 'known') continue;
        // Of another log than is followed here: the answer to a question will tell.
        if (what === 'gap' || !isOfLog(cursor, claims)) {
          onGap();
          break;
        }
        this.#options.onRevocation(claims, heardBootMs, heardAt);
        this.#cursor = { ...cursor, epoch: claims.epoch };
        this.#recent = [...this.#recent.slice(1 - revocationsKeptMax), claims];
      }
      if (this.#cursor !== undefined && this.#cursor !== before) {
        await this.#options.settled();
        await this.#moveCursor(this.#cursor);
      }
    });
    return taken.catch((error: unknown) =>
      this.#options.log.error({ err: error }, 'a revocation was refused'),
    );
  }

  /** One after the other, whichever way it came. */
  #inLine(work: () => Promise<void>): Promise<void> {
    const done = this.#applying.then(work);
    this.#applying = done.catch(() => {});
    return done;
  }

  async #moveCursor(cursor: Cursor): Promise<void> {
    this.#cursor = cursor;
    await this.#machine.writeCursor(this.#options.cursorFile, cursor);
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
    if (this.#bus === undefined) throw this.#away();
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
    return parse(schema, await this.#machine.verify(this.#options.controlPlaneKey, typ, token), typ);
  }

  #away(): CustodyError {
    if (this.#refusal === undefined) return unreachable('its message bus does not answer');
    return new CustodyError('control_plane_unreachable', 'the message bus refuses this host', {
      next: 'it was banned, or enrolled at another control plane: ask an operator; it can be enrolled again',
    });
  }

  #setState(state: LinkState): void {
    if (state === this.#state) return;
    this.#options.log.info({ from: this.#state, to: state }, 'link');
    this.#state = state;
  }
}

function stated<Claims extends BeaconClaims>(claims: Claims): HeadStatement & Claims {
  return { ...claims, atMs: Date.parse(claims.at) };
}

function whyUnreachable(cause: unknown): string {
  if (!(cause instanceof BusError)) return 'its message bus failed';
  if (cause.code === 'no_responder') return 'it is not running';
  if (cause.code === 'timeout') return 'it did not answer in time';
  return `its message bus is ${cause.code}`;
}

function unreachable(why: string, cause?: unknown): CustodyError {
  return new CustodyError('control_plane_unreachable', `the control plane cannot be reached: ${why}`, {
    next: 'nothing was released; custody agent status shows how long open runs may go on',
    cause,
  });
}
