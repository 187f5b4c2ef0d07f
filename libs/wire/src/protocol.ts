// Owns the protocol version and its history. Every change that an older peer could misread gets a row.

export const protocolVersion = 3;

/** @public For people, and for whoever writes the next row. */
export const protocolHistory: readonly {
  readonly version: number;
  readonly date: string;
  readonly what: string;
}[] = [
  {
    version: 1,
    date: '2026-11-22',
    what: 'enrolment, grants, revocation of a grant, ledger shipping, policy sets, possession',
  },
  {
    version: 2,
    date: '2026-11-22',
    what: 'beacons, proofs of the head of the revocation log, `fresh` to keepers; ends with cause `stale`. The control plane is upgraded first: it serves agents that ask without a nonce, and those hear no beacon',
  },
  {
    version: 3,
    date: '2026-11-22',
    what: 'revocation by run, host, subject, secret, prefix, policy revision and of everything; accounts of grants; bans. An agent of before cannot read the new targets: it stays behind at the first one until it is upgraded',
  },
];
