// Owns the promise that only ever rejects, and harms nobody when no one waits for it.

export function rejectable(): PromiseWithResolvers<never> {
  const made = Promise.withResolvers<never>();
  made.promise.catch(() => undefined);
  return made;
}
