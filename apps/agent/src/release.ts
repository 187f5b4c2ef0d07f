// Owns what the keeper is told once everything is on record.
import type { Delivery, OnExit } from '@custody/core/policy';
import type { Ask } from './delivery.ts';
import type { openValues } from './opening.ts';
import type { Run } from './run.ts';

/** What the keeper is told once everything is on record. `wipe` must be called when it has been sent. */
export interface Release {
  readonly grantId: string;
  readonly ceilingBootMs: number;
  /** Infinite for `best_effort`. */
  readonly freshUntilBootMs: number;
  readonly graceMs: number;
  readonly environment: readonly (readonly [string, Uint8Array])[];
  /** What does not stand in the environment. */
  readonly delivered: readonly (readonly [Exclude<Delivery, 'env'>, string, Uint8Array])[];
  readonly onExit: OnExit;
  readonly keep: readonly string[] | undefined;
  readonly drop: readonly string[] | undefined;
  readonly notes: readonly string[];
  wipe(): void;
}

export function releaseOf(
  { grantId, ceilingBootMs, freshUntilBootMs, graceMs }: Run,
  { plain, keep, drop }: Ask,
  onExit: OnExit | undefined,
  values: ReturnType<typeof openValues>,
  notes: readonly string[],
  wipe: () => void,
): Release {
  return {
    ...{ grantId, ceilingBootMs, freshUntilBootMs, graceMs, keep, drop, notes, wipe },
    environment: [
      ...plain.map(([name, value]) => [name, Buffer.from(value)] as const),
      ...values.flatMap(({ deliver, name, value }) => (deliver === 'env' ? [[name, value] as const] : [])),
    ],
    delivered: values.flatMap(({ deliver, name, value }) =>
      deliver === 'env' ? [] : [[deliver, name, value] as const],
    ),
    onExit: onExit ?? 'kill',
  };
}
