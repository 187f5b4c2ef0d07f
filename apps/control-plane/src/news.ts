// Owns the word that the central ledger has grown, for those who wait on it.

/** Waiting is bounded by the caller; a missed word costs a wait, never correctness. */
export interface Listener extends Disposable {
  /** Resolves at the first word since `listen`, or after `timeoutMs`. */
  next(timeoutMs: number): Promise<void>;
}

export class News {
  readonly #listeners = new Set<() => void>();

  announce(): void {
    for (const wake of this.#listeners) wake();
  }

  listen(): Listener {
    const heard = Promise.withResolvers<void>();
    const wake = (): void => heard.resolve();
    this.#listeners.add(wake);
    return {
      next: async (timeoutMs) => {
        const timer = setTimeout(wake, timeoutMs);
        await heard.promise;
        clearTimeout(timer);
      },
      [Symbol.dispose]: () => void this.#listeners.delete(wake),
    };
  }
}
