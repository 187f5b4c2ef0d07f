// Owns the grammar of the names that people give: secret paths, fields, hosts, environment variables.
import { CustodyError } from './errors.ts';
import { fieldNameBytesMax, hostNameBytesMax, secretPathBytesMax, secretPathDepthMax } from './limits.ts';

const segment = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;
const field = /^[A-Za-z_][A-Za-z0-9_.-]*$/;
const host = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/;
const environmentName = /^[A-Za-z_][A-Za-z0-9_]*$/;

/** `prod/stripe`: 1 to 16 segments of letters, digits, `.`, `_`, `-`. */
export function isSecretPath(text: string): boolean {
  if (text.length === 0 || text.length > secretPathBytesMax) return false;
  const segments = text.split('/');
  return segments.length <= secretPathDepthMax && segments.every((part) => segment.test(part));
}

export function isFieldName(text: string): boolean {
  return text.length <= fieldNameBytesMax && field.test(text);
}

/** A DNS label: lower-case letters, digits and inner hyphens. */
export function isHostName(text: string): boolean {
  return text.length <= hostNameBytesMax && host.test(text);
}

export function isEnvironmentName(text: string): boolean {
  return text.length <= 256 && environmentName.test(text);
}

export function requireSecretPath(text: string): string {
  if (isSecretPath(text)) return text;
  throw new CustodyError('bad_request', `${quote(text)} is not a secret path`, {
    next: 'a path looks like prod/stripe: letters, digits, dot, underscore and hyphen, parts separated by a slash',
  });
}

/** The folders a path lies in, outermost first: `a/b/c` → `a`, `a/b`. */
export function foldersOf(path: string): string[] {
  const segments = path.split('/');
  return segments.slice(0, -1).map((_, index) => segments.slice(0, index + 1).join('/'));
}

/** Quotes text from outside for an error message: bounded, with control characters escaped. */
export function quote(text: string): string {
  const escaped = JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
  // JSON leaves DEL and the C1 controls as they are; a terminal obeys U+009B like ESC [.
  return escaped.replaceAll(/\p{Cc}/gu, (one) => `\\u00${one.charCodeAt(0).toString(16)}`);
}
