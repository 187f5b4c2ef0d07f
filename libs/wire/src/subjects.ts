// Owns every NATS subject: docs/spec/bus.md says who may publish and subscribe where.

const root = 'custody.v1';

/** The JetStream stream that carries ledgers from hosts to the control plane. Transport only. */
export const ledgerStream = 'CUSTODY_LEDGER';

export type UpWhat = 'grant' | 'revocations' | 'policy' | 'ledger';
export type DownWhat = 'ledger' | 'account';
export type FleetWhat = 'revocation' | 'beacon' | 'policy';

/** Host → control plane. */
export function hostUp(host: string, what: UpWhat): string {
  return `${root}.host.${host}.up.${what}`;
}

/** Control plane → one host. */
export function hostDown(host: string, what: DownWhat): string {
  return `${root}.host.${host}.down.${what}`;
}

/** What the control plane subscribes to: one kind of message from any host. */
export function anyHostUp(what: UpWhat): string {
  return `${root}.host.*.up.${what}`;
}

/** Control plane → every host. */
export function fleet(what: FleetWhat): string {
  return `${root}.fleet.${what}`;
}

/** The host id within a host's subject. The server enforces it, so it may be trusted. */
export function hostOf(subject: string): string | undefined {
  const match = /^custody\.v1\.host\.([A-Za-z0-9_-]+)\.(?:up|down)\.[a-z]+$/.exec(subject);
  return match?.[1];
}

/** Where a host's replies come in; no other host may subscribe there. */
export function inboxPrefix(host: string): string {
  return `_INBOX_${host}`;
}

/** Everything a host may publish to. */
export function hostMayPublish(host: string): string[] {
  return [`${root}.host.${host}.up.>`];
}

/** Everything a host may subscribe to. */
export function hostMaySubscribe(host: string): string[] {
  return [`${root}.host.${host}.down.>`, `${root}.fleet.>`, `${inboxPrefix(host)}.>`];
}
