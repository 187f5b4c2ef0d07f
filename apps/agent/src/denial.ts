// Owns the denials that a host decides alone: by its copy of the policy, or since something came while a grant was under way.
import { isCanary, isReserved, reservedDenial } from '@custody/core/canary';
import { deniedByPolicy, deniedDelivery, localUser } from '@custody/core/cedar';
import { CustodyError } from '@custody/core/errors';
import type { RevocationClaims } from '@custody/wire/messages';
import type { Ask } from './delivery.ts';
import type { Link } from './link.ts';

type Copy = Pick<Link, 'policy' | 'refreshPolicy'>;

/**
 * A clear denial needs no network; a permission does: the control plane decides. The copy may be older
 * than what an operator applied a moment ago, so with a network it is made sure of before it denies.
 */
export async function denyByCopy(
  host: string,
  ask: Ask,
  peer: { readonly uid: number; readonly isCanary: boolean },
  link: Copy,
): Promise<void> {
  if (isCanary(ask.wanted) && peer.isCanary) return;
  const reserved = ask.wanted.find(({ path }) => isReserved(path));
  if (reserved !== undefined) throw reservedDenial(reserved.path);
  if (denialOf(host, ask, peer, link) === undefined) return;
  await link.refreshPolicy();
  const denial = denialOf(host, ask, peer, link);
  if (denial !== undefined) throw denial;
}

function denialOf(
  host: string,
  ask: Ask,
  peer: { readonly uid: number },
  link: Copy,
): CustodyError | undefined {
  const copy = link.policy;
  if (copy === undefined) return undefined;
  for (const wanted of ask.wanted) {
    const { path, deliver = 'env' } = wanted;
    const request = {
      host,
      labels: copy.labels,
      uid: peer.uid,
      path,
      program: ask.command[0] ?? '',
      reason: ask.reason,
    };
    const decision = copy.engine.decide(request);
    if (!decision.allow)
      return deniedByPolicy(localUser(host, peer.uid), path, copy.revision, decision.policyIds);
    const allowed = decision.obligations.deliver;
    if (!allowed.includes(deliver))
      return deniedDelivery({ ...wanted, deliver }, copy.revision, decision.policyIds, allowed);
  }
  return undefined;
}

export function revokedMeanwhile(claims: RevocationClaims | undefined): CustodyError {
  const why = claims === undefined ? '' : `: ${claims.reason}`;
  return new CustodyError('denied_by_policy', `the grant was revoked before it was released${why}`, {
    next: 'nothing was released; ask who revoked it',
  });
}

export function cutOffMeanwhile(): CustodyError {
  return new CustodyError(
    'control_plane_unreachable',
    'this host was cut off while the grant was under way',
    {
      next: 'nothing was released; run the command again',
    },
  );
}
