// Owns what `/v1/events` tells of: which ledger entries are events, and the shape of one.
import { z } from 'zod';
import type { ControlPlaneKind, HostKind } from './ledger.ts';
import { count, timestamp } from './schema.ts';

/** The kinds of ledger entries that `/v1/events` tells of. */
const ownEvents = [
  'control_plane_started',
  'host_enrolled',
  'policy_applied',
  'granted',
  'denied',
  'revoked',
  'lifted',
  'log_renewed',
  'canary_judged',
  'ledger_forked',
] as const satisfies readonly ControlPlaneKind[];
const hostEvents = [
  'agent_started',
  'started',
  'ended',
  'escape',
  'receipt',
  'log_changed',
  'banned',
] as const satisfies readonly HostKind[];
export const eventKinds = [...ownEvents, ...hostEvents] as const;
export type EventKind = (typeof eventKinds)[number];

export const fleetEvent = z.strictObject({
  /** Grows; may have gaps. */
  id: count,
  /** By its author's clock. */
  at: timestamp,
  kind: z.enum(eventKinds),
  author: z.string(),
  name: z.string(),
  /** The entry's body, of its kind. */
  body: z.record(z.string(), z.unknown()),
});
export type FleetEvent = z.infer<typeof fleetEvent>;
