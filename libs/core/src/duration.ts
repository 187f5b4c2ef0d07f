// Owns durations as people write them: 500ms, 30s, 15m, 1h, 7d.
import { CustodyError } from './errors.ts';
import { quote } from './names.ts';

const pattern = /^(\d{1,12})(ms|s|m|h|d)$/;
const unitMs: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds, or undefined when `text` is no duration. */
export function durationMs(text: string): number | undefined {
  const match = pattern.exec(text);
  if (match === null) return undefined;
  const ms = Number(match[1]) * (unitMs[match[2] ?? ''] ?? Number.NaN);
  return Number.isSafeInteger(ms) ? ms : undefined;
}

/** Throws `bad_request` when `text` is no duration. */
export function requireDurationMs(text: string, what: string): number {
  const ms = durationMs(text);
  if (ms !== undefined) return ms;
  throw new CustodyError('bad_request', `${what}: ${quote(text)} is not a duration`, {
    next: 'write a number and a unit, such as 30s, 15m or 1h',
  });
}

/** The largest unit that divides evenly: 900000 → `15m`. */
export function formatDuration(ms: number): string {
  for (const unit of ['d', 'h', 'm', 's'] as const) {
    const size = unitMs[unit] ?? 1;
    if (ms >= size && ms % size === 0) return `${ms / size}${unit}`;
  }
  return `${ms}ms`;
}
