// Owns one host of the simulation: the agent's real Link and Runs, on a disk, a bus and keepers that can fail.
import type { Headers, Message, Reply, StatusListener, Subscription } from '@custody/bus/bus';
import { BusError } from '@custody/bus/errors';
import type { LedgerEntry } from '@custody/ledger/entry';
import type { HostBody, HostKind } from '@custody/wire/ledger';
import type { Cursor } from '../../src/cursor.ts';
import type { Ask } from '../../src/delivery.ts';
import { Link, type LinkBus } from '../../src/link.ts';
import type { Log } from '../../src/log.ts';
import { Runs } from '../../src/runs.ts';
import type { Timers } from '../../src/timers.ts';
import { noGroups } from '../fakes.ts';
import { secret, variable, wallTime, type ControlPlane } from './control-plane.ts';
import { Keeper, type Door, type Tree } from './keeper.ts';
import type { Chance, Event, Schedule } from './schedule.ts';

/** No process of this machine: what the agent asks /proc of them is not known. */
const pidsFrom = 2 ** 22 + 1;
/** From a cut to when the client's pings tell it. */
const noticeMsMax = 9_000;
const serverWaitsMs = 30_000;
const notesKept = 120;

export interface World {
  readonly schedule: Schedule;
  readonly chance: Chance;
  readonly controlPlane: ControlPlane;
  /** How long one that died so stays away at the most. */
  readonly restartMsMax: number;
  /** Whether an agent dies at this step of its own. */
  diesAtStep(host: Host): boolean;
  readonly verify: ControlPlane['seals']['verify'];
  onTree(host: Host, tree: Tree): void;
  onDead(tree: Tree): void;
  onReceipt(host: Host, receipt: HostBody<'receipt'>): void;
}

interface Entry {
  readonly kind: HostKind;
  readonly body: HostBody<HostKind>;
  readonly seq: number;
}

const nothing = (): void => {};
const quiet = { debug: nothing, info: nothing, warn: nothing, error: nothing } as unknown as Log;

export class Host {
  readonly id: string;
  readonly keepers = new Map<string, Keeper>();
  readonly #world: World;
  /** Milliseconds from here to the control plane. */
  readonly latencyMs: number;
  /** What is on disk. */
  readonly #disk: { cursor: Cursor | undefined; entries: Entry[] } = { cursor: undefined, entries: [] };
  readonly #bootedMs: number;
  readonly #notes: { readonly atMs: number; readonly what: string; readonly provenMs?: number }[] = [];
  #wallSkewMs = 0;
  #pids = 0;
  #ids = 0;
  /** The connection to the bus: whether bytes pass, and whether the agent thinks so. */
  cut = false;
  #believed = true;
  /** What the server has sent into a cut that nobody has noticed. */
  #underWay: (() => void)[] = [];
  /** Messages are lost, late, out of order and repeated. */
  disorderly = false;
  /** Somebody in between holds broadcasts back for so long, and lets no question pass. */
  heldBackMs = 0;
  life: Life | undefined;

  constructor(world: World, index: number) {
    this.#world = world;
    this.id = `h_${String(index).padStart(8, '0')}`;
    this.latencyMs = 1 + (index % 8);
    this.#bootedMs = -world.chance.between(0, 1e9);
  }

  readonly bootMs = (): number => this.#world.schedule.nowMs - this.#bootedMs;
  readonly wallClock = (): Date =>
    new Date(Date.parse(wallTime(this.#world.schedule.nowMs)) + this.#wallSkewMs);

  /** Somebody sets the clock. */
  skew(ms: number): void {
    this.note(`its clock is ${Math.round(ms / 60_000)} minutes off`);
    this.#wallSkewMs = ms;
  }

  get connected(): boolean {
    return this.#believed;
  }

  note(what: string): void {
    this.#notes.push({ atMs: this.#world.schedule.nowMs, what });
    if (this.#notes.length > notesKept) this.#notes.shift();
  }

  /** Of many proofs in a row the last is enough. */
  noteProof(provenBootMs: number): void {
    const last = this.#notes.at(-1);
    if (last?.provenMs !== undefined) this.#notes.pop();
    const provenMs = provenBootMs + this.#bootedMs;
    this.#notes.push({ atMs: this.#world.schedule.nowMs, what: 'proven until', provenMs });
  }

  /** The last that happened here, for whoever asks why. */
  get story(): string[] {
    const seconds = (ms: number): string => `${(ms / 1_000).toFixed(3)} s`;
    return this.#notes.map(
      ({ atMs, what, provenMs }) =>
        `${seconds(atMs)}: ${what}${provenMs === undefined ? '' : ` ${seconds(provenMs)}`}`,
    );
  }

  newId(prefix: string): string {
    return `${prefix}_${this.id.slice(2)}${String((this.#ids += 1)).padStart(24, '0')}`;
  }

  // The agent's process.

  /** Starts an agent; the keepers of open runs come back to it. */
  start(): void {
    const { schedule, chance } = this.#world;
    this.note('an agent starts');
    const life = new Life(this, this.#world);
    this.life = life;
    life.begin(this.#disk.entries);
    for (const keeper of this.keepers.values()) {
      void schedule.after(chance.between(10, 2_000), () => this.#comeBack(keeper, life));
    }
  }

  crash(): void {
    this.note('the agent dies');
    this.life?.die();
    this.life = undefined;
    for (const keeper of this.keepers.values()) keeper.disconnect();
  }

  #comeBack(keeper: Keeper, life: Life): void {
    if (!keeper.alive || keeper.stopped || life.dead || keeper.door !== undefined) return;
    this.note(`the keeper of ${keeper.grantId} comes back`);
    life.gate(() => {
      if (keeper.alive) life.resume(keeper);
    });
  }

  /** What the agent's disk does, and where the agent dies of it. */
  async step(life: Life, work: () => void): Promise<void> {
    const { schedule, chance } = this.#world;
    await schedule.wait(chance.between(0.2, 4));
    if (life.dead) return forever();
    const dies = this.#world.diesAtStep(this);
    if (dies && chance.happens(0.5)) {
      this.#dieAndStart();
      return forever();
    }
    work();
    if (dies) {
      this.#dieAndStart();
      return forever();
    }
    await schedule.wait(chance.between(0.2, 2));
    if (life.dead) return forever();
    await life.running();
  }

  #dieAndStart(): void {
    const { schedule, chance, restartMsMax } = this.#world;
    this.crash();
    void schedule.after(chance.magnitude(300, restartMsMax), () => {
      if (this.life === undefined) this.start();
    });
  }

  keep(entry: Entry): void {
    const { entries } = this.#disk;
    this.note(`on record: ${entry.kind} ${JSON.stringify(entry.body)}`);
    if (entry.kind === 'refused' || entry.kind === 'receipt') return;
    if (entry.kind !== 'ended') return void entries.push(entry);
    const { grantId } = entry.body as HostBody<'ended'>;
    this.#disk.entries = entries.filter((each) => (each.body as { grantId?: string }).grantId !== grantId);
    this.keepers.delete(grantId);
    this.#world.controlPlane.grants.delete(grantId);
  }

  readonly readCursor = async (): Promise<Cursor | undefined> => this.#disk.cursor;

  writeCursor(cursor: Cursor): void {
    if (this.keepers.size > 0) this.note(`cursor ${cursor.epoch} of ${cursor.log}`);
    this.#disk.cursor = cursor;
  }

  // Runs.

  /** `custody run` on this host; resolves when it runs or was refused. */
  async run(ask: Partial<Ask>, exitsAfterMs: number): Promise<void> {
    const { life } = this;
    const { schedule, chance } = this.#world;
    if (life === undefined) return;
    const pid = pidsFrom + (this.#pids += 1);
    const release = await life.admit({ ...plainAsk, ...ask }, pid).catch(() => undefined);
    if (release === undefined || life.dead) return;
    const keeper = new Keeper({
      schedule,
      pid,
      bootMs: this.bootMs,
      grantId: release.grantId,
      ceilingBootMs: release.ceilingBootMs,
      freshUntilBootMs: release.freshUntilBootMs,
      stubborn: chance.happens(0.3),
      onDead: (tree) => this.#world.onDead(tree),
    });
    release.wipe();
    this.keepers.set(keeper.grantId, keeper);
    this.note(`${keeper.grantId} runs`);
    this.#world.onTree(this, keeper.tree);
    life.attach(keeper);
    if (exitsAfterMs !== Infinity) void schedule.after(exitsAfterMs, () => keeper.exit());
  }

  keeperOf(pid: number): Keeper | undefined {
    for (const keeper of this.keepers.values()) if (keeper.pid === pid) return keeper;
    return undefined;
  }

  // The bus.

  /** The server sends this to the agent. */
  hear(message: Message): void {
    const { schedule, chance } = this.#world;
    const arrive = (): void => this.#arrive(() => this.life?.bus.deliver(message));
    if (this.heldBackMs > 0) return void schedule.after(this.heldBackMs, arrive);
    if (!this.disorderly) return arrive();
    if (chance.happens(0.3)) return;
    const copies = chance.happens(0.2) ? 2 : 1;
    for (let copy = 0; copy < copies; copy += 1) {
      void schedule.after(chance.magnitude(1, 20_000), arrive);
    }
  }

  /** In order of the connection: nothing passes a cut; what the server believes sent may come when it heals. */
  #arrive(work: () => void): void {
    const { life } = this;
    if (life === undefined) return;
    if (this.cut) {
      if (this.#believed) this.#underWay.push(work);
      return;
    }
    if (this.#believed) life.gate(work);
  }

  /** A question of the agent's and its answer; undefined where either is lost. */
  async ask(what: string, data: Uint8Array): Promise<Uint8Array | undefined> {
    const { schedule, chance, controlPlane } = this.#world;
    const leg = (): number =>
      this.latencyMs + (this.disorderly ? chance.magnitude(1, 8_000) : chance.between(0, 2));
    const passes = (): boolean =>
      !this.cut && this.heldBackMs === 0 && !(this.disorderly && chance.happens(0.2));
    await schedule.wait(leg());
    if (!passes()) return undefined;
    if (!controlPlane.up) throw new BusError('no_responder', 'nobody answers');
    const answer = controlPlane.answer(this.id, what, data);
    await schedule.wait(leg() + chance.between(0, 4));
    return passes() ? answer : undefined;
  }

  /** Bytes stop passing. `told`: the connection is reset, and the agent knows. */
  sever(told: boolean): void {
    this.note(`cut off${told ? '' : ', and does not know'}`);
    const { schedule, chance } = this.#world;
    this.cut = true;
    const severed = (this.#severed = schedule.after(told ? 0 : chance.between(3_000, noticeMsMax), () => {
      if (this.#severed !== severed) return;
      this.#believed = false;
      this.#underWay = [];
      this.life?.bus.status('disconnected');
    }));
  }

  #severed: Event | undefined;

  heal(): void {
    this.note('the cut heals');
    const { schedule, chance } = this.#world;
    this.cut = false;
    if (this.#severed !== undefined) this.#severed.cancelled = true;
    if (this.#believed) {
      const { life } = this;
      const came = this.#underWay.splice(0);
      if (life !== undefined) for (const work of came) life.gate(work);
      return;
    }
    void schedule.after(chance.between(250, 4_000), () => {
      if (this.cut || this.#believed) return;
      this.#believed = true;
      this.life?.bus.status('connected');
    });
  }

  /** SIGSTOP to the agent. A server does not wait for ever for who does not read. */
  stopAgent(forMs: number): void {
    const { schedule } = this.#world;
    const { life } = this;
    if (life === undefined || life.stopped) return;
    this.note(`the agent is stopped for ${forMs.toFixed(0)} ms`);
    life.stopped = true;
    if (forMs > serverWaitsMs)
      void schedule.after(serverWaitsMs, () => {
        if (!this.cut) this.sever(true);
      });
    void schedule.after(forMs, () => {
      life.goOn();
      if (forMs > serverWaitsMs) this.heal();
    });
  }
}

/** Of a dead process nothing goes on. */
const forever = (): Promise<never> => new Promise(() => {});

const plainAsk: Ask = {
  command: ['agent'],
  cwd: '/',
  ttlMs: undefined,
  reason: undefined,
  parent: undefined,
  containment: 'subreaper',
  traceparent: undefined,
  wanted: [{ name: variable, path: secret, field: 'key' }],
  plain: [],
  onExit: undefined,
  keep: undefined,
  drop: undefined,
  place: undefined,
  manifest: undefined,
};

/** One process of the agent: what it holds in memory goes when it dies. */
export class Life {
  dead = false;
  stopped = false;
  readonly bus: LifeBus;
  readonly #host: Host;
  readonly #world: World;
  readonly #runs: Runs;
  readonly #link: Link;
  #seq = 0;
  #held: (() => void)[] = [];
  #appending: Promise<unknown> = Promise.resolve();

  constructor(host: Host, world: World) {
    this.#host = host;
    this.#world = world;
    const { timers } = this;
    this.bus = new LifeBus(host, this, timers);
    this.#runs = new Runs({
      hostId: host.id,
      hostName: host.id.replace('_', '-'),
      refusal: () => undefined,
      isCanaryKeeper: () => false,
      sealingKey: world.controlPlane.sealingKey,
      link: () => this.#link,
      spool: () => ({ append: (kind, body) => this.#append(kind, body) }),
      sweep: (grantId) => this.#sweep(grantId),
      groups: noGroups,
      escapes: () => ({ watch: nothing, look: async () => [], lookShared: async () => [] }),
      stopped: (pid) => host.keeperOf(pid)?.stopped ?? false,
      alive: (pid) => host.keeperOf(pid)?.alive ?? false,
      manifests: { granted: () => [] },
      bootMs: host.bootMs,
      newId: (prefix) => host.newId(prefix),
      log: quiet,
      timers,
    });
    this.#link = new Link({
      hostId: host.id,
      controlPlaneKey: '',
      cursorFile: '',
      bootMs: host.bootMs,
      wallClock: host.wallClock,
      log: quiet,
      onRevocation: (claims, heardBootMs, heardAt) => {
        if (host.keepers.size > 0) host.note(`applies ${claims.epoch}: ${JSON.stringify(claims.target)}`);
        this.#runs.revoke(claims, heardBootMs, heardAt);
      },
      onFresh: (provenBootMs) => {
        host.noteProof(provenBootMs);
        this.#runs.renew(provenBootMs);
      },
      onLogChange: (change) => this.#runs.logChanged(change),
      newNonce: () => host.newId('n'),
      settled: async () => {},
      openSince: () => this.#runs.lowestOpenEpoch(),
      machine: {
        timers,
        verify: world.verify,
        readCursor: host.readCursor,
        writeCursor: (_path, cursor) => host.step(this, () => host.writeCursor(cursor)),
      },
    });
  }

  begin(entries: readonly Entry[]): void {
    for (const { kind, body, seq } of entries) {
      this.#runs.replay({ kind, body, seq } as unknown as LedgerEntry);
      this.#seq = Math.max(this.#seq, seq);
    }
    void this.#link.start(this.bus, nothing);
    this.#runs.awaitKeepers();
  }

  /** What reaches this process: now, or when it goes on; never where it is dead. */
  gate(work: () => void): void {
    if (this.dead) return;
    if (this.stopped) this.#held.push(work);
    else work();
  }

  /** Resolves while it runs. */
  running(): Promise<void> {
    return this.stopped ? new Promise((resolve) => this.#held.push(resolve)) : Promise.resolve();
  }

  goOn(): void {
    this.stopped = false;
    for (const work of this.#held.splice(0)) if (!this.dead) work();
  }

  die(): void {
    this.dead = true;
    this.#held = [];
  }

  readonly timers: Timers = {
    once: (work, ms) => {
      const event = this.#world.schedule.after(ms, () => this.gate(work));
      return { cancel: () => (event.cancelled = true) };
    },
    every: (work, ms) => {
      let event: Event;
      const again = (): void => {
        event = this.#world.schedule.after(ms, () => {
          if (this.dead) return;
          again();
          this.gate(work);
        });
      };
      again();
      return { cancel: () => (event.cancelled = true) };
    },
  };

  admit(ask: Ask, pid: number): ReturnType<Runs['admit']> {
    return this.#runs.admit(ask, { pid, uid: 1_000, gid: 1_000 });
  }

  attach(keeper: Keeper): void {
    const { schedule } = this.#world;
    this.#runs.attach(keeper.grantId, keeper.connect(this.#door));
    void schedule.after(2, () => this.gate(() => this.#runs.started(keeper.grantId, keeper.pid + 1, '1')));
  }

  resume(keeper: Keeper): void {
    const end = keeper.connect(this.#door);
    const until = keeper.freshUntilBootMs === Infinity ? undefined : keeper.freshUntilBootMs;
    try {
      this.#runs.resume(keeper.grantId, { pid: keeper.pid, uid: 1_000, gid: 1_000 }, end, until);
      this.#runs.started(keeper.grantId, keeper.pid + 1, '1');
    } catch {
      end.end('agent', 0);
    }
  }

  readonly #door: Door = {
    ended: (grantId, end) => this.gate(() => this.#runs.ended(grantId, end)),
    detached: (grantId, keeper) => this.gate(() => this.#runs.detached(grantId, keeper)),
  };

  /** One after the other, as a file is written. */
  async #append<Kind extends HostKind>(kind: Kind, body: HostBody<Kind>): Promise<number> {
    const seq = (this.#seq += 1);
    const written = this.#appending.then(() =>
      this.#host.step(this, () => {
        this.#host.keep({ kind, body, seq });
        if (kind === 'receipt') this.#world.onReceipt(this.#host, body as HostBody<'receipt'>);
      }),
    );
    this.#appending = written;
    await written;
    return seq;
  }

  async #sweep(grantId: string): Promise<{ processes: []; emptyBootMs: number; complaints: [] }> {
    await this.#host.step(this, () => this.#host.keepers.get(grantId)?.sweep());
    return { processes: [], emptyBootMs: this.#host.bootMs(), complaints: [] };
  }
}

/** The agent's end of the bus. */
class LifeBus implements LinkBus {
  readonly #host: Host;
  readonly #life: Life;
  readonly #timers: Timers;
  readonly #handlers = new Map<string, (message: Message) => void>();
  readonly #listeners: StatusListener[] = [];
  readonly #waiting = new Set<(error: BusError) => void>();

  constructor(host: Host, life: Life, timers: Timers) {
    this.#host = host;
    this.#life = life;
    this.#timers = timers;
  }

  get connected(): boolean {
    return this.#host.connected;
  }

  deliver(message: Message): void {
    this.#handlers.get(message.subject)?.(message);
  }

  status(status: 'connected' | 'disconnected'): void {
    this.#life.gate(() => {
      if (status === 'disconnected') {
        for (const reject of this.#waiting) reject(new BusError('unreachable', 'the connection was lost'));
      }
      for (const listener of this.#listeners) listener(status, 'simulated');
    });
  }

  async subscribe(subject: string, handler: (message: Message) => void): Promise<Subscription> {
    this.#handlers.set(subject, handler);
    return { subject, [Symbol.asyncDispose]: async () => void this.#handlers.delete(subject) };
  }

  onStatus(listener: StatusListener): () => void {
    this.#listeners.push(listener);
    return nothing;
  }

  async request(
    subject: string,
    data: Uint8Array,
    { timeoutMs }: { readonly timeoutMs: number; readonly headers?: Headers },
  ): Promise<Reply> {
    if (!this.connected) throw new BusError('unreachable', 'there is no connection');
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    this.#waiting.add(reject);
    const late = this.#timers.once(() => reject(new BusError('timeout', 'no answer in time')), timeoutMs);
    const what = subject.slice(subject.lastIndexOf('.') + 1);
    this.#host.ask(what, data).then(
      (answer) =>
        answer === undefined ? undefined : this.#life.gate(() => resolve({ data: answer, headers: {} })),
      (error: unknown) => this.#life.gate(() => reject(error)),
    );
    try {
      return await promise;
    } finally {
      late.cancel();
      this.#waiting.delete(reject);
    }
  }
}
