// Owns obligations: what a policy's annotations demand of a grant, and which one holds when several policies permit.
import { durationMs, formatDuration } from './duration.ts';
import { ceilingMsDefault, freshnessMsMin, ttlMsMax } from './limits.ts';

export type Freshness = { readonly kind: 'strict'; readonly ms: number } | { readonly kind: 'best_effort' };

/** What holds a tree; docs/containment.md says what each promises. */
export const containments = ['cgroup', 'subreaper', 'kqueue'] as const;
export type Containment = (typeof containments)[number];

/** How a value reaches a run: its environment, a file in memory, a fifo that can be read once, an open descriptor. */
export const deliveries = ['env', 'file', 'fifo', 'fd'] as const;
export type Delivery = (typeof deliveries)[number];

/** What becomes of the rest of a tree when its root has exited. */
export const onExits = ['kill', 'wait'] as const;
export type OnExit = (typeof onExits)[number];

export interface Obligations {
  readonly ceilingMs: number;
  readonly freshness: Freshness;
  /** Every mechanism that some permitting policy requires, sorted. */
  readonly containment: readonly Containment[];
  /** Those that every permitting policy allows. */
  readonly deliver: readonly Delivery[];
  readonly onExit: OnExit | undefined;
}

export const freshnessDefault: Freshness = { kind: 'strict', ms: 300_000 };

/** The annotations this version acts on. Any other is refused when a policy is applied, so that none is silently ignored. */
export const knownAnnotations: readonly string[] = [
  'id',
  'description',
  'ceiling',
  'freshness',
  'containment',
  'deliver',
  'on_exit',
];

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
  if (name === 'freshness') {
    const freshness = parseFreshness(value);
    if (freshness === undefined) return `@freshness("${value}") is neither "strict 60s" nor "best_effort"`;
    if (freshness.kind === 'strict' && freshness.ms < freshnessMsMin) {
      return `@freshness("${value}") is less than a host can be sure of, ${formatDuration(freshnessMsMin)}`;
    }
  }
  if (name === 'containment' && !isContainment(value)) {
    return `@containment("${value}") is none of ${containments.map((each) => `"${each}"`).join(', ')}`;
  }
  if (name === 'deliver' && parseDeliver(value) === undefined) {
    return `@deliver("${value}") is not a list of ${deliveries.join(', ')}, such as "file fd"`;
  }
  if (name === 'on_exit' && !isOnExit(value)) return `@on_exit("${value}") is neither "kill" nor "wait"`;
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
  const containment = unionOf(annotations.map((each) => [each['containment'] ?? ''].filter(isContainment)));
  const allowed = annotations.map((each) => parseDeliver(each['deliver'] ?? '') ?? deliveries);
  const deliver = deliveries.filter((each) => allowed.every((set) => set.includes(each)));
  const onExit = stricterOnExit(annotations.map((each) => each['on_exit']).filter(isOnExit));
  return annotations.length === 0
    ? { ceilingMs: 0, freshness: freshnessDefault, containment, deliver, onExit }
    : { ceilingMs, freshness, containment, deliver, onExit };
}

/** The mechanisms of all the sets, each once, sorted. */
export function unionOf(sets: readonly (readonly Containment[])[]): Containment[] {
  return [...new Set(sets.flat())].toSorted();
}

/** What is required and not offered. The mechanisms stack: where there is a cgroup, the subreaper still holds the tree. */
export function missingContainment(required: readonly Containment[], offered: Containment): Containment[] {
  const held: readonly Containment[] = offered === 'cgroup' ? ['cgroup', 'subreaper'] : [offered];
  return required.filter((each) => !held.includes(each));
}

function isContainment(word: string): word is Containment {
  return (containments as readonly string[]).includes(word);
}

/** `kill` where one of them says so. */
export function stricterOnExit(all: readonly (OnExit | undefined)[]): OnExit | undefined {
  return all.includes('kill') ? 'kill' : all.find((each) => each !== undefined);
}

/** What a run does when its root has exited, and a line where that is not what was asked for. */
export function decideOnExit(
  policy: OnExit | undefined,
  asked: OnExit | undefined,
): { onExit: OnExit; note: string | undefined } {
  const refused = policy === 'kill' && asked === 'wait';
  return {
    onExit: refused ? 'kill' : (asked ?? policy ?? 'kill'),
    note: refused ? 'on-exit wait is more than the policy allows: on-exit is kill' : undefined,
  };
}

function parseDeliver(text: string): readonly Delivery[] | undefined {
  const words = text.split(/[ ,]+/).filter((word) => word !== '');
  const known = deliveries.filter((each) => words.includes(each));
  return words.length > 0 && words.every((word) => (deliveries as readonly string[]).includes(word))
    ? known
    : undefined;
}

function isOnExit(word: string | undefined): word is OnExit {
  return word === 'kill' || word === 'wait';
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
