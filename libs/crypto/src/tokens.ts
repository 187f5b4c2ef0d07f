// Owns bearer tokens: how they are drawn, recognised, hashed for storage and compared. Spec: docs/spec/sealing.md.
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';

/** `cst`: a session's token. `cjt`: a join token. */
export type TokenPrefix = 'cst' | 'cjt';

const tokenLength = 47;
const shape = /^(cst|cjt)_[A-Za-z0-9_-]{43}$/;

/** `cst_` and 43 characters of base64url: 256 random bits. Show it once; store `hashToken`. */
export function newToken(prefix: TokenPrefix): string {
  return `${prefix}_${randomBytes(32).toString('base64url')}`;
}

/** Whether `text` has the shape of such a token. Says nothing about its being known. */
export function isToken(prefix: TokenPrefix, text: string): boolean {
  return text.length === tokenLength && text.startsWith(prefix) && shape.test(text);
}

/** SHA-256 of the token's bytes: 32 bytes. */
export function hashToken(token: string): Uint8Array {
  return createHash('sha256').update(token, 'utf8').digest();
}

/** Compares in time that depends on the lengths alone. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.byteLength === b.byteLength && timingSafeEqual(a, b);
}
