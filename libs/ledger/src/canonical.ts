// Owns the one spelling of a body: RFC 8785 with whole numbers only. Spec: docs/spec/ledger.md, Entry.
import { LedgerError } from './errors.ts';

export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [name: string]: JsonValue;
}

/** Objects and arrays within each other, the outermost included. */
export const bodyDepthMax = 32;

/**
 * The canonical text of a body. Throws `bad_entry`, naming the place, for what has no one spelling: fractions, numbers
 * past 2^53-1, undefined, unpaired surrogates, and objects that are not plain (a `Secret` or a `Date` among them).
 */
export function canonicalObject(body: JsonObject): string {
  if (!isPlainObject(body)) throw bad('body', 'is not a plain object');
  return canonical(body, 1, 'body');
}

export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

function canonical(value: unknown, depth: number, at: string): string {
  switch (typeof value) {
    case 'string':
      return canonicalString(value, at);
    case 'number':
      if (Number.isSafeInteger(value)) return JSON.stringify(value);
      throw bad(at, 'is not a whole number within 2^53-1');
    case 'boolean':
      return value ? 'true' : 'false';
    case 'object':
      return value === null ? 'null' : canonicalContainer(value, depth, at);
    default:
      throw bad(at, `is ${typeof value}`);
  }
}

function canonicalContainer(value: object, depth: number, at: string): string {
  if (depth > bodyDepthMax) throw bad(at, `lies deeper than ${bodyDepthMax} levels`);
  if (Array.isArray(value)) {
    // Array.from visits holes too: they are undefined, and refused.
    return `[${Array.from(value, (item: unknown, index) => canonical(item, depth + 1, `${at}[${index}]`)).join(',')}]`;
  }
  if (!isPlainObject(value)) throw bad(at, 'is not a plain object');
  const names = Object.keys(value).toSorted();
  const members = names.map((name) => {
    const inner = `${at}.${name.slice(0, 64)}`;
    return `${canonicalString(name, inner)}:${canonical(value[name], depth + 1, inner)}`;
  });
  return `{${members.join(',')}}`;
}

function canonicalString(text: string, at: string): string {
  if (text.isWellFormed()) return JSON.stringify(text);
  throw bad(at, 'holds an unpaired surrogate');
}

/** `at` is made of names only, bounded and escaped; values never reach the message. */
function bad(at: string, why: string): LedgerError {
  const place = JSON.stringify(at.slice(0, 200).toWellFormed());
  return new LedgerError('bad_entry', `encode ledger entry: ${place} ${why}`);
}
