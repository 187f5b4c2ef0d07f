// Owns obligations: what a policy's annotations demand of a grant, and which one holds when several policies permit.
import { durationMs } from './duration.ts';
import { ceilingMsDefault, ttlMsMax } from './limits.ts';

export type Freshness = { readonly kind: 'strict'; readonly ms: number } | { readonly kind: 'best_effort' };

export interface Obligations {
  readonly ceilingMs: number;
  readonly freshness: Freshness;
}

export const freshnessDefault: Freshness = { kind: 'strict', ms: 300_000 };

/** The annotations this version acts on. Any other is refused when a policy is applied, so that none is silently ignored. */
export const knownAnnotations: readonly string[] = ['id', 'description', 'ceiling', 'freshness'];

/** Why an annotation's value cannot be read, or undefined when it can. */
export function annotationProblem(name: string, value: string): string | undefined {
  if (!knownAnnotations.includes(name)) {
    return `@${name} is not an annotation of this version; known: ${knownAnnotations.map((known) => `@${known}`).join(', ')}`;
  }
  if (name === 'ceiling') {
    const ms = durationMs(value);
    if (ms === undefined || ms < 1) return `@ceiling("${value}") is not a duration such as 15m`;
    if (ms > ttlMsMax) return `@ceiling("${value}") is longer than any grant may last, 7d`;
  }
  if (name === 'freshness' && parseFreshness(value) === undefined) {
    return `@freshness("${value}") is neither "strict 60s" nor "best_effort"`;
  }
  if (name === 'id' && !/^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$/.test(value))
    return `@id("${value}") is not a name`;
  return undefined;
}

/** The most restrictive of each obligation over the policies that permit. */
export function combineObligations(annotations: readonly Readonly<Record<string, string>>[]): Obligations {
  let ceilingMs = ttlMsMax;
  let freshness: Freshness = { kind: 'best_effort' };
  for (const each of annotations) {
    ceilingMs = Math.min(ceilingMs, durationMs(each['ceiling'] ?? '') ?? ceilingMsDefault);
    freshness = stricter(freshness, parseFreshness(each['freshness'] ?? '') ?? freshnessDefault);
  }
  return annotations.length === 0 ? { ceilingMs: 0, freshness: freshnessDefault } : { ceilingMs, freshness };
}

function parseFreshness(text: string): Freshness | undefined {
  if (text === 'best_effort') return { kind: 'best_effort' };
  const [kind, duration, ...rest] = text.split(' ');
  const ms = durationMs(duration ?? '');
  return kind === 'strict' && ms !== undefined && ms > 0 && rest.length === 0 ? { kind, ms } : undefined;
}

function stricter(a: Freshness, b: Freshness): Freshness {
  if (a.kind === 'best_effort') return b;
  if (b.kind === 'best_effort') return a;
  return a.ms <= b.ms ? a : b;
}
