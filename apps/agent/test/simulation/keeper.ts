// Owns the keeper of the simulation: run.c of libs/keeper in a few lines, with the tree it holds.
import { graceMsDefault } from '@custody/core/limits';
import type { Ended } from '../../src/record.ts';
import type { KeeperEnd } from '../../src/run.ts';
import type { Event, Schedule } from './schedule.ts';

/** How long a word over the socket, and a kill, take. */
const wordMs = 1;
const killMs = 3;

/** The agent at the other end of its connection. */
export interface Door {
  ended(grantId: string, end: Ended): void;
  detached(grantId: string, keeper: KeeperEnd): void;
}

export interface Tree {
  readonly grantId: string;
  alive: boolean;
  deadMs: number | undefined;
}

export interface KeeperOptions {
  readonly schedule: Schedule;
  readonly pid: number;
  readonly bootMs: () => number;
  readonly grantId: string;
  readonly ceilingBootMs: number;
  readonly freshUntilBootMs: number;
  /** Whether the tree ignores TERM. */
  readonly stubborn: boolean;
  readonly onDead: (tree: Tree) => void;
}

/** Ends its tree at its bound, at a word, or when it is told; by itself, whoever is dead. */
export class Keeper {
  readonly pid: number;
  readonly grantId: string;
  readonly tree: Tree;
  freshUntilBootMs: number;
  /** The process. */
  alive = true;
  stopped = false;
  /** The connection: who hears it, and what it is to them. */
  door: Door | undefined;
  end: KeeperEnd | undefined;
  readonly #options: KeeperOptions;
  /** What came while it was stopped. */
  readonly #unread: (() => void)[] = [];
  #cause: Ended['cause'] | undefined;
  #bound: Event | undefined;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.pid = options.pid;
    this.grantId = options.grantId;
    this.freshUntilBootMs = options.freshUntilBootMs;
    this.tree = { grantId: options.grantId, alive: true, deadMs: undefined };
    this.#watch();
  }

  /** A connection to this agent: what is written to it arrives, even where the writer dies. */
  connect(door: Door): KeeperEnd {
    const { schedule } = this.#options;
    const mine = (work: () => void): void => {
      void schedule.after(wordMs, () => this.#read(() => (this.end === end ? work() : undefined)));
    };
    const end: KeeperEnd = {
      end: (cause, graceMs) => mine(() => this.#endTree(cause, graceMs)),
      fresh: (untilBootMs) => mine(() => this.#fresh(untilBootMs)),
    };
    this.door = door;
    this.end = end;
    return end;
  }

  /** The agent at the other end has died. */
  disconnect(): void {
    this.door = undefined;
  }

  /** The root exits by itself. */
  exit(): void {
    if (this.#cause !== undefined || !this.alive) return;
    this.#endTree('exit', 0);
  }

  stop(): void {
    this.stopped = true;
  }

  /** It reads what was written in time before it looks at its bound. */
  goOn(): void {
    this.stopped = false;
    for (const work of this.#unread.splice(0)) work();
    if (this.#cause === undefined) this.#watch();
    else this.#endTree(this.#cause, 0);
  }

  /** SIGKILL: the tree stays, the connection closes. */
  kill(): void {
    if (!this.alive) return;
    this.alive = false;
    this.#forgetBound();
    const { door, end } = this;
    if (door !== undefined && end !== undefined)
      void this.#options.schedule.after(wordMs, () => door.detached(this.grantId, end));
  }

  /** A sweep, or what killed the group: the tree first, then whoever held it. */
  sweep(): void {
    this.#die();
    this.alive = false;
    this.#forgetBound();
  }

  #read(work: () => void): void {
    if (!this.alive) return;
    if (this.stopped) this.#unread.push(work);
    else work();
  }

  #fresh(untilBootMs: number): void {
    if (this.#cause !== undefined || untilBootMs <= this.freshUntilBootMs) return;
    this.freshUntilBootMs = untilBootMs;
    this.#watch();
  }

  #forgetBound(): void {
    if (this.#bound !== undefined) this.#bound.cancelled = true;
  }

  #watch(): void {
    this.#forgetBound();
    const { schedule, bootMs, ceilingBootMs } = this.#options;
    const boundBootMs = Math.min(ceilingBootMs, this.freshUntilBootMs);
    this.#bound = schedule.after(Math.max(0, boundBootMs - bootMs()), () => {
      if (!this.alive || this.stopped || this.#cause !== undefined) return;
      this.#endTree(this.freshUntilBootMs < ceilingBootMs ? 'stale' : 'ceiling', graceMsDefault);
    });
  }

  #endTree(cause: Ended['cause'], graceMs: number): void {
    this.#cause ??= cause;
    const { schedule, stubborn } = this.#options;
    const signalledBootMs = this.#options.bootMs();
    void schedule.after(graceMs === 0 || !stubborn ? killMs : graceMs + killMs, () => {
      if (!this.alive || !this.tree.alive) return;
      if (this.stopped) return;
      this.#die();
      this.#account(signalledBootMs);
    });
  }

  #account(signalledBootMs: number): void {
    const { schedule, bootMs } = this.#options;
    const end: Ended = {
      cause: this.#cause ?? 'exit',
      rootStatus: 'exit:0',
      signalledBootMs,
      emptyBootMs: bootMs(),
      survivors: 0,
      processes: 1,
      unlisted: {},
      rows: [],
    };
    this.alive = false;
    const { door } = this;
    if (door !== undefined) void schedule.after(wordMs, () => door.ended(this.grantId, end));
  }

  #die(): void {
    if (!this.tree.alive) return;
    this.tree.alive = false;
    this.tree.deadMs = this.#options.schedule.nowMs;
    this.#options.onDead(this.tree);
  }
}
