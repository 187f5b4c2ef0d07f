// Owns a wall clock that is wrong: for a program of Node, since the kernel gives none to a process alone.

/**
 * Environment under which a Node program reads a wall clock that is off by so much. `Date` is what is moved:
 * the machine's clock is not, nor is any other clock of the program, nor the clock of what it starts.
 */
export function wrongClock(byMs: number): Record<string, string> {
  const code = `const right = Date;
    globalThis.Date = class Date extends right {
      constructor(...of) { if (of.length === 0) super(right.now() + ${byMs}); else super(...of); }
      static now() { return right.now() + ${byMs}; }
    };`;
  return { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(code)}` };
}
