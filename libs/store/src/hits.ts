// Owns which grants a revocation hits, asked of the database: the same meaning as `hits` in libs/core/src/revocation.ts.
import type { RevocationTarget } from '@custody/core/revocation';

/** How long after its ceiling a grant still counts as one that may be alive: `$2` of the conditions below. */
export interface LiveAt {
  readonly now: Date;
  readonly slackMs: number;
}

/** May be alive: the whole condition of the partial indexes over grants. */
export const live = (grant: string, now: string, slackMs: string): string =>
  `${grant}.ended_at IS NULL AND ${grant}.ceiling_at > ${now}::timestamptz - make_interval(secs => ${slackMs}::int / 1000.0)`;

/** Whether the target names grant `g`. Its values stand from `$first` on. */
function names(target: RevocationTarget, first: number): { sql: string; values: unknown[] } {
  const $ = `$${first}`;
  switch (target.kind) {
    case 'grant':
      return { sql: `g.id = ${$}`, values: [target.id] };
    case 'run':
      return { sql: `g.run_id = ${$}`, values: [target.id] };
    case 'host':
      return { sql: `g.host_id = ${$}`, values: [target.id] };
    case 'subject':
      return { sql: `g.subject = ${$}`, values: [target.subject] };
    case 'secret': {
      const held = target.version === undefined ? {} : { version: target.version };
      return {
        sql: `g.credentials @> ${$}::jsonb`,
        values: [JSON.stringify([{ path: target.path, ...held }])],
      };
    }
    case 'prefix':
      return {
        sql: `EXISTS (SELECT FROM unnest(g.paths) AS held(path) WHERE path = ${$} OR starts_with(path, ${$} || '/'))`,
        values: [target.path],
      };
    case 'policy_revision':
      return { sql: `g.policy_revision = ${$}::int`, values: [target.revision] };
    case 'all':
      return { sql: 'true', values: [] };
  }
}

/** A WITH RECURSIVE member `hit (id)`: every grant that may be alive and is hit. Its values begin at `$1`. */
export function hitMember(target: RevocationTarget, at: LiveAt): { sql: string; values: unknown[] } {
  const named = names(target, 3);
  const sql = `
  around (id, at_id, parent_grant) AS (
    SELECT g.id, g.id, g.parent_grant FROM grants g WHERE ${live('g', '$1', '$2')} AND g.parent_grant IS NOT NULL
    UNION ALL
    SELECT a.id, p.id, p.parent_grant FROM around a JOIN grants p ON p.id = a.parent_grant),
  hit (id) AS (
    SELECT g.id FROM grants g WHERE ${live('g', '$1', '$2')} AND ${named.sql}
    UNION
    SELECT a.id FROM around a JOIN grants g ON g.id = a.at_id WHERE ${named.sql})`;
  return { sql, values: [at.now, at.slackMs, ...named.values] };
}

/**
 * The revocation of this grant, or of one around it, that a run inside it must not outlive: any kind of target, and for
 * ever. `$1` is the grant.
 */
export const revokedAround = `
  WITH RECURSIVE around (id) AS (
    SELECT $1::text
    UNION ALL
    SELECT g.parent_grant FROM around a JOIN grants g ON g.id = a.id WHERE g.parent_grant IS NOT NULL)
  SELECT r.epoch, r.reason FROM around a
    JOIN grants g ON g.id = a.id
    JOIN revocations r ON r.epoch > g.epoch
   WHERE CASE r.target_kind
           WHEN 'grant' THEN r.target = g.id
           WHEN 'run' THEN r.target = g.run_id
           WHEN 'host' THEN r.target = g.host_id
           WHEN 'subject' THEN r.target = g.subject
           WHEN 'secret' THEN g.credentials @> jsonb_build_array(r.claim - 'kind')
           WHEN 'prefix' THEN EXISTS (SELECT FROM unnest(g.paths) AS held(path)
                                       WHERE path = r.target OR starts_with(path, r.target || '/'))
           WHEN 'policy_revision' THEN r.target = g.policy_revision::text
           WHEN 'all' THEN true
           ELSE true
         END
   ORDER BY r.epoch LIMIT 1`;
