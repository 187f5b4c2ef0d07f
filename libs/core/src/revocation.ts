// Owns what one host does with one entry of the revocation log: apply, ignore, or ask for what is missing.

/** What a revocation names. Later kinds are added here and in `hits`. */
export interface RevocationTarget {
  readonly kind: 'grant';
  readonly id: string;
}

/** What a revocation may hit: a grant as the host or the control plane knows it. */
export interface RevocableGrant {
  readonly grantId: string;
  /** The grants around it, for a run inside a run: it ends with each of them. */
  readonly within?: readonly string[];
}

/**
 * Decides what an entry means to a host whose cursor stands at `cursor`.
 * Entries are applied in order and once; a gap is never skipped.
 */
export function classify(cursor: number, epoch: number): 'apply' | 'known' | 'gap' {
  if (epoch <= cursor) return 'known';
  return epoch === cursor + 1 ? 'apply' : 'gap';
}

export function hits(target: RevocationTarget, grant: RevocableGrant): boolean {
  return target.id === grant.grantId || (grant.within ?? []).includes(target.id);
}
