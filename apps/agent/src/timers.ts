// Owns how the agent waits: on the machine's timers, or on those of whoever simulates time.

export interface Timer {
  cancel(): void;
}

export interface Timers {
  once(work: () => void, ms: number): Timer;
  every(work: () => void, ms: number): Timer;
}

export const machineTimers: Timers = {
  once: (work, ms) => {
    const timer = setTimeout(work, ms);
    return { cancel: () => clearTimeout(timer) };
  },
  every: (work, ms) => {
    const timer = setInterval(work, ms);
    return { cancel: () => clearInterval(timer) };
  },
};
