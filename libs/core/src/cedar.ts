// Owns the evaluation of Cedar policies: text in, located errors or decisions out. Used alike by control plane and agent.
import * as cedar from '@cedar-policy/cedar-wasm/nodejs';
import { CustodyError } from './errors.ts';
import { decisionsKeptMax, policiesMax, policyTextBytesMax } from './limits.ts';
import { foldersOf } from './names.ts';
import { annotationProblem, combineObligations, type Delivery, type Obligations } from './policy.ts';

/** What policies may speak of. A policy that names anything else is refused when it is applied. */
export const policySchema = `
entity Folder in [Folder];
entity Secret in [Folder];
entity Host tags String;
entity LocalUser in [Host] { uid: Long, host: Host };
action hold appliesTo {
  principal: [LocalUser],
  resource: [Secret],
  context: { program: String, reason?: String }
};
`;

export interface Policy {
  /** Its `@id`, else `line-N`. */
  readonly id: string;
  readonly effect: 'permit' | 'forbid';
  readonly annotations: Readonly<Record<string, string>>;
  readonly text: string;
  /** Where it begins, from 1. */
  readonly line: number;
}

export interface PolicyProblem {
  /** From 1. */
  readonly line: number;
  /** From 1, in characters. */
  readonly column: number;
  readonly message: string;
}

/** `policy_invalid`, with every problem and where it stands. */
export class PolicyInvalidError extends CustodyError {
  readonly problems: readonly PolicyProblem[];

  constructor(problems: readonly PolicyProblem[]) {
    const [first] = problems;
    super(
      'policy_invalid',
      first === undefined
        ? 'the policy is not valid'
        : `the policy is not valid: line ${first.line}, column ${first.column}: ${first.message}`,
      { next: 'nothing was applied; mend it and try custody policy validate FILE' },
    );
    this.problems = problems;
  }
}

/** Parses and checks a whole policy set. Throws {@link PolicyInvalidError}. */
export function parsePolicies(text: string): Policy[] {
  const bytes = new TextEncoder().encode(text);
  if (bytes.byteLength > policyTextBytesMax) {
    throw new CustodyError(
      'too_large',
      `the policy has ${bytes.byteLength} bytes, more than ${policyTextBytesMax}`,
    );
  }
  const syntax = cedar.checkParsePolicySet({ staticPolicies: text });
  if (syntax.type === 'failure')
    throw new PolicyInvalidError(syntax.errors.map((error) => located(bytes, error)));
  const parts = cedar.policySetTextToParts(text);
  if (parts.type === 'failure')
    throw new PolicyInvalidError(parts.errors.map((error) => located(bytes, error)));
  if (parts.policy_templates.length > 0) {
    throw new PolicyInvalidError([
      { line: 1, column: 1, message: 'a template (?principal, ?resource) has no place in a policy set' },
    ]);
  }
  const policies = inOrder(text, parts.policies).map(([start, source]) => readPolicy(text, start, source));
  const problems = [...policies.flatMap(checkAnnotations), ...checkIds(policies), ...checkTypes(bytes, text)];
  if (policies.length > policiesMax) {
    problems.push({ line: 1, column: 1, message: `${policies.length} policies, more than ${policiesMax}` });
  }
  if (problems.length > 0) throw new PolicyInvalidError(problems);
  return policies;
}

export interface HoldRequest {
  readonly host: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly uid: number;
  /** The secret's path. */
  readonly path: string;
  /** The command's first word. */
  readonly program: string;
  readonly reason: string | undefined;
}

export type HoldDecision =
  | { readonly allow: true; readonly policyIds: readonly string[]; readonly obligations: Obligations }
  | {
      readonly allow: false;
      /** The forbids that decided; empty where nothing permits. */
      readonly policyIds: readonly string[];
      /** Policies that could not be evaluated; they count as not permitting. */
      readonly errors: readonly string[];
    };

/** The name of a local user as policies write it. */
export function localUser(host: string, uid: number): string {
  return `${host}/${uid}`;
}

/** The refusal that names the missing permission: the same words from an agent's copy and from the control plane. */
export function deniedByPolicy(
  subject: string,
  path: string,
  revision: number,
  forbids: readonly string[],
): CustodyError {
  const who = `LocalUser::"${subject}"`;
  const why =
    forbids.length > 0
      ? `policy ${forbids.join(', ')} (revision ${revision}) forbids ${who} to hold Secret::"${path}"`
      : `no policy (revision ${revision}) permits ${who} to hold Secret::"${path}"`;
  return new CustodyError('denied_by_policy', why, {
    next: `missing permission: Action::"hold" on Secret::"${path}"; see custody policy explain --subject ${subject} --secret ${path}`,
  });
}

/** The refusal of a delivery that some permitting policy does not allow. */
export function deniedDelivery(
  wanted: {
    readonly name: string;
    readonly path: string;
    readonly field: string;
    readonly deliver: Delivery;
  },
  revision: number,
  policyIds: readonly string[],
  allowed: readonly Delivery[],
): CustodyError {
  const { name, path, field, deliver } = wanted;
  const [first] = allowed;
  const ways = allowed.length === 0 ? 'no way at all' : allowed.join(' or ');
  return new CustodyError(
    'denied_by_policy',
    `policy ${policyIds.join(', ')} (revision ${revision}) lets ${path} be delivered by ${ways}, not by ${deliver}`,
    {
      next:
        first === undefined
          ? 'its policies contradict each other: ask an operator'
          : `use --${first} ${name}=custody://${path}/${field}`,
    },
  );
}

/** One policy set, parsed once. `slot` names its place in Cedar's cache: two engines of one slot are right, and slow. */
export class PolicyEngine {
  /** Whose policies stand in each slot of Cedar's cache. */
  static readonly #owners = new Map<string, PolicyEngine>();

  readonly policies: readonly Policy[];
  readonly #slot: string;
  readonly #byId: ReadonlyMap<string, Policy>;
  /** By the request as JSON; the oldest goes first. A set never changes, so neither does its answer. */
  readonly #decided = new Map<string, HoldDecision>();

  constructor(slot: string, policies: readonly Policy[]) {
    this.policies = policies;
    this.#slot = slot;
    this.#byId = new Map(policies.map((policy) => [policy.id, policy]));
    this.#load();
  }

  #load(): void {
    const answer = cedar.preparsePolicySet(this.#slot, {
      staticPolicies: Object.fromEntries(this.policies.map((policy) => [policy.id, policy.text])),
    });
    if (answer.type === 'failure') {
      throw new CustodyError('internal', 'load policies: the set does not parse again', {
        cause: answer.errors,
      });
    }
    PolicyEngine.#owners.set(this.#slot, this);
  }

  decide(request: HoldRequest): HoldDecision {
    const key = JSON.stringify([
      request.host,
      Object.entries(request.labels),
      ...[request.uid, request.path, request.program, request.reason ?? null],
    ]);
    const known = this.#decided.get(key);
    if (known !== undefined) return known;
    const decision = this.#decide(request);
    const [oldest] = this.#decided.keys();
    if (this.#decided.size >= decisionsKeptMax && oldest !== undefined) this.#decided.delete(oldest);
    this.#decided.set(key, decision);
    return decision;
  }

  #decide(request: HoldRequest): HoldDecision {
    // Who asked before a newer set took the slot is still answered by the set they asked.
    if (PolicyEngine.#owners.get(this.#slot) !== this) this.#load();
    const principal = { type: 'LocalUser', id: localUser(request.host, request.uid) };
    const resource = { type: 'Secret', id: request.path };
    const answer = cedar.statefulIsAuthorized({
      principal,
      action: { type: 'Action', id: 'hold' },
      resource,
      context: {
        program: request.program,
        ...(request.reason === undefined ? {} : { reason: request.reason }),
      },
      preparsedPolicySetId: this.#slot,
      entities: entitiesFor(request, principal, resource),
    });
    if (answer.type === 'failure') {
      throw new CustodyError('internal', `decide on ${request.path}: the request was not understood`, {
        cause: answer.errors,
      });
    }
    const policyIds = answer.response.diagnostics.reason.toSorted();
    if (answer.response.decision === 'deny') {
      const errors = answer.response.diagnostics.errors.map(
        (each) => `${each.policyId}: ${each.error.message}`,
      );
      return { allow: false, policyIds, errors };
    }
    const annotations = policyIds.map((id) => this.#byId.get(id)?.annotations ?? {});
    return { allow: true, policyIds, obligations: combineObligations(annotations) };
  }
}

function entitiesFor(
  request: HoldRequest,
  principal: cedar.TypeAndId,
  resource: cedar.TypeAndId,
): cedar.EntityJson[] {
  const host = { type: 'Host', id: request.host };
  const folders = foldersOf(request.path).map((id) => ({ type: 'Folder', id }));
  return [
    { uid: host, attrs: {}, parents: [], tags: { ...request.labels } },
    { uid: principal, attrs: { uid: request.uid, host: { __entity: host } }, parents: [host] },
    ...folders.map((uid, index) => ({
      uid,
      attrs: {},
      parents: folders.slice(Math.max(index - 1, 0), index),
    })),
    { uid: resource, attrs: {}, parents: folders.slice(-1) },
  ];
}

/**
 * Cedar gives the parts sorted by ids that it made up in the text's order: policy0, policy1, policy10, … Each part
 * begins where only space and comments stand after the one before: a search would find copies inside of either.
 */
function inOrder(text: string, sources: readonly string[]): [number, string][] {
  const ordinals = sources.map((_, index) => index).toSorted((a, b) => (String(a) < String(b) ? -1 : 1));
  const inText = sources.map((source, index) => [ordinals[index] ?? 0, source] as const);
  let end = 0;
  return inText
    .toSorted(([a], [b]) => a - b)
    .map(([, source]): [number, string] => {
      between.lastIndex = end;
      const start = end + (between.exec(text)?.[0].length ?? 0);
      if (!text.startsWith(source, start))
        throw new CustodyError('internal', 'read policy: the parts are not those of the text');
      end = start + source.length;
      return [start, source];
    });
}

/** What Cedar skips between two policies. */
const between = /(?:\s|\/\/[^\n\r]*)*/y;

function readPolicy(text: string, start: number, source: string): Policy {
  const answer = cedar.policyToJson(source);
  if (answer.type === 'failure') throw new CustodyError('internal', 'read policy: it does not parse alone');
  const line = lineOf(text.slice(0, start));
  // An annotation without a value is null, whatever its type says.
  const given: Readonly<Record<string, string | null>> = answer.json.annotations ?? {};
  const annotations = Object.fromEntries(Object.entries(given).map(([name, value]) => [name, value ?? '']));
  return {
    id: annotations['id'] ?? `line-${line}`,
    effect: answer.json.effect,
    annotations,
    text: source,
    line,
  };
}

function checkAnnotations(policy: Policy): PolicyProblem[] {
  return Object.entries(policy.annotations).flatMap(([name, value]) => {
    const message = annotationProblem(name, value);
    return message === undefined ? [] : [{ line: policy.line, column: 1, message }];
  });
}

function checkIds(policies: readonly Policy[]): PolicyProblem[] {
  const seen = new Map<string, number>();
  return policies.flatMap((policy) => {
    const before = seen.get(policy.id);
    seen.set(policy.id, policy.line);
    if (before === undefined) return [];
    return [
      { line: policy.line, column: 1, message: `@id("${policy.id}") stands already on line ${before}` },
    ];
  });
}

function checkTypes(bytes: Uint8Array, text: string): PolicyProblem[] {
  const answer = cedar.validate({ schema: policySchema, policies: { staticPolicies: text } });
  if (answer.type === 'failure') return answer.errors.map((error) => located(bytes, error));
  return answer.validationErrors.map(({ error }) => located(bytes, error));
}

function located(bytes: Uint8Array, error: cedar.DetailedError): PolicyProblem {
  const start = Math.min(error.sourceLocations?.[0]?.start ?? 0, bytes.byteLength);
  const before = new TextDecoder().decode(bytes.subarray(0, start));
  const help = error.help === null || error.help === '' ? '' : ` (${error.help})`;
  const message = error.message
    .replace(/^failed to parse policies from string: /, '')
    .replace(/^for policy .policy\d+., /, '');
  return { line: lineOf(before), column: before.length - before.lastIndexOf('\n'), message: message + help };
}

function lineOf(before: string): number {
  return before.split('\n').length;
}
