// Owns virtual time: events in order, and chance from one seed. Nothing here reads the machine's clock.

export interface Event {
  readonly atMs: number;
  readonly order: number;
  readonly work: () => void;
  cancelled: boolean;
}

/** Everything that waits waits here. Two events of one instant happen in the order in which they were planned. */
export class Schedule {
  #nowMs = 0;
  #order = 0;
  /** A binary heap: the next event first. */
  readonly #heap: Event[] = [];
  happened = 0;

  get nowMs(): number {
    return this.#nowMs;
  }

  at(atMs: number, work: () => void): Event {
    const event = { atMs: Math.max(atMs, this.#nowMs), order: (this.#order += 1), work, cancelled: false };
    this.#heap.push(event);
    this.#rise(this.#heap.length - 1);
    return event;
  }

  after(ms: number, work: () => void): Event {
    return this.at(this.#nowMs + ms, work);
  }

  wait(ms: number): Promise<void> {
    return new Promise((resolve) => void this.after(ms, resolve));
  }

  /** Before time moves on, everything that was begun has come to rest: all of it waits here or for nobody. */
  async run(untilMs: number, stop: () => boolean = () => false): Promise<void> {
    while (!stop()) {
      await rest();
      const next = this.#heap[0];
      if (next === undefined || next.atMs > untilMs) break;
      this.#nowMs = next.atMs;
      for (let event = this.#due(); event !== undefined; event = this.#due()) {
        if (event.cancelled) continue;
        this.happened += 1;
        event.work();
      }
    }
    this.#nowMs = untilMs;
  }

  #due(): Event | undefined {
    const [first] = this.#heap;
    if (first === undefined || first.atMs > this.#nowMs) return undefined;
    const last = this.#heap.pop();
    if (last !== undefined && last !== first) {
      this.#heap[0] = last;
      this.#sink(0);
    }
    return first;
  }

  #rise(from: number): void {
    const heap = this.#heap;
    const event = heap[from];
    if (event === undefined) return;
    let at = from;
    while (at > 0) {
      const above = (at - 1) >> 1;
      const other = heap[above];
      if (other === undefined || !before(event, other)) break;
      heap[at] = other;
      at = above;
    }
    heap[at] = event;
  }

  #sink(from: number): void {
    const heap = this.#heap;
    const event = heap[from];
    if (event === undefined) return;
    let at = from;
    for (;;) {
      let below = 2 * at + 1;
      const [left, right] = [heap[below], heap[below + 1]];
      if (left === undefined) break;
      const least = right !== undefined && before(right, left) ? right : left;
      if (least === right) below += 1;
      if (!before(least, event)) break;
      heap[at] = least;
      at = below;
    }
    heap[at] = event;
  }
}

const before = (a: Event, b: Event): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

/** Promises settle before the next turn of the event loop. */
const rest = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Chance, the same for the same seed (sfc32). */
export class Chance {
  #a: number;
  #b: number;
  #c: number;
  #count = 1;

  constructor(seed: number, stream = 0) {
    this.#a = seed | 0;
    this.#b = Math.floor(seed / 2 ** 32) | 0;
    this.#c = stream | 0;
    for (let each = 0; each < 15; each += 1) this.share();
  }

  /** From 0, less than 1. */
  share(): number {
    const sum = (this.#a + this.#b + this.#count) | 0;
    this.#count = (this.#count + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum;
    return (sum >>> 0) / 2 ** 32;
  }

  happens(probability: number): boolean {
    return this.share() < probability;
  }

  between(least: number, most: number): number {
    return least + this.share() * (most - least);
  }

  /** As often from 1 to 10 as from 10 to 100. */
  magnitude(least: number, most: number): number {
    return least * (most / least) ** this.share();
  }

  /** Until the next of what happens every `meanMs` on average. */
  next(meanMs: number): number {
    return -Math.log(1 - this.share()) * meanMs;
  }

  one<Value>(of: readonly Value[]): Value | undefined {
    return of[Math.floor(this.share() * of.length)];
  }
}
