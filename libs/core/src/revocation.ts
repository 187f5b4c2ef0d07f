// Owns what a revocation names, which grants it hits, and what one host does with one entry of the revocation log.

/** What a revocation names: docs/spec/revocation.md. A later kind is added here, in `names` and in libs/store/src/hits.ts. */
export type RevocationTarget =
  | { readonly kind: 'grant'; readonly id: string }
  | { readonly kind: 'run'; readonly id: string }
  /** `ban`: the host's keys end too. The name is for people; the id decides. */
  | { readonly kind: 'host'; readonly id: string; readonly name: string; readonly ban?: true | undefined }
  | { readonly kind: 'subject'; readonly subject: string }
  /** Without a version: each of them. */
  | { readonly kind: 'secret'; readonly path: string; readonly version?: number | undefined }
  | { readonly kind: 'prefix'; readonly path: string }
  | { readonly kind: 'policy_revision'; readonly revision: number }
  | { readonly kind: 'all' };

/** What a revocation can tell of one grant. */
export interface GrantFacts {
  readonly grantId: string;
  readonly runId: string;
  readonly hostId: string;
  readonly subject: string;
  readonly credentials: readonly { readonly path: string; readonly version: number }[];
  readonly policyRevision: number;
}

/** A grant, and the grants of the runs that its own run stands in: it ends with each of them. */
export interface RevocableGrant extends GrantFacts {
  readonly within: readonly GrantFacts[];
}

/**
 * Decides what an entry means to a host whose cursor stands at `cursor`.
 * Entries are applied in order and once; a gap is never skipped.
 */
export function classify(cursor: number, epoch: number): 'apply' | 'known' | 'gap' {
  if (epoch <= cursor) return 'known';
  return epoch === cursor + 1 ? 'apply' : 'gap';
}

/** Whether a revocation ends a grant that was decided before it. The control plane asks the same of its database. */
export function hits(target: RevocationTarget, grant: RevocableGrant): boolean {
  return names(target, grant) || grant.within.some((around) => names(target, around));
}

function names(target: RevocationTarget, grant: GrantFacts): boolean {
  switch (target.kind) {
    case 'grant':
      return grant.grantId === target.id;
    case 'run':
      return grant.runId === target.id;
    case 'host':
      return grant.hostId === target.id;
    case 'subject':
      return grant.subject === target.subject;
    case 'secret':
      return grant.credentials.some(
        ({ path, version }) =>
          path === target.path && (target.version === undefined || version === target.version),
      );
    case 'prefix':
      return grant.credentials.some(({ path }) => path === target.path || path.startsWith(`${target.path}/`));
    case 'policy_revision':
      return grant.policyRevision === target.revision;
    case 'all':
      return true;
  }
}

/** Whether it refuses new grants until it is lifted, as against ending what there is and no more. */
export function stands(target: RevocationTarget): boolean {
  return target.kind === 'host' || target.kind === 'subject' || target.kind === 'secret';
}

/** What a target is looked up by, within its kind. A path holds no `@`. */
export function keyOf(target: RevocationTarget): string {
  switch (target.kind) {
    case 'grant':
    case 'run':
    case 'host':
      return target.id;
    case 'subject':
      return target.subject;
    case 'secret':
      return target.version === undefined ? target.path : `${target.path}@${target.version}`;
    case 'prefix':
      return target.path;
    case 'policy_revision':
      return String(target.revision);
    case 'all':
      return '';
  }
}

/** For people: `secret prod/stripe version 3`. */
export function describeTarget(target: RevocationTarget): string {
  switch (target.kind) {
    case 'grant':
    case 'run':
      return `${target.kind} ${target.id}`;
    case 'host':
      return `host ${target.name}${target.ban === true ? ' (banned)' : ''}`;
    case 'subject':
      return `subject ${target.subject}`;
    case 'secret':
      return `secret ${target.path}${target.version === undefined ? '' : ` version ${target.version}`}`;
    case 'prefix':
      return `prefix ${target.path}`;
    case 'policy_revision':
      return `policy revision ${target.revision}`;
    case 'all':
      return 'everything';
  }
}
