// Owns the reference: a secret's address where a value would stand, custody://prod/stripe/api_key.
import { CustodyError } from './errors.ts';
import { isFieldName, isSecretPath, quote } from './names.ts';

const scheme = 'custody://';

export interface Reference {
  /** `prod/stripe` */
  readonly path: string;
  /** `api_key` */
  readonly field: string;
}

export function isReference(text: string): boolean {
  return text.startsWith(scheme);
}

/** Throws `bad_reference` when `text` is no reference. */
export function parseReference(text: string): Reference {
  if (!isReference(text)) {
    throw new CustodyError('bad_reference', `${quote(text)} is not a reference`, {
      next: 'a reference looks like custody://prod/stripe/api_key',
    });
  }
  const rest = text.slice(scheme.length);
  const cut = rest.lastIndexOf('/');
  const path = rest.slice(0, Math.max(cut, 0));
  const field = rest.slice(cut + 1);
  if (!isSecretPath(path) || !isFieldName(field)) {
    throw new CustodyError('bad_reference', `${quote(text)} names no secret path and field`, {
      next: 'a reference looks like custody://prod/stripe/api_key: a path, then the name of one field',
    });
  }
  return { path, field };
}

export function formatReference(reference: Reference): string {
  return `${scheme}${reference.path}/${reference.field}`;
}
