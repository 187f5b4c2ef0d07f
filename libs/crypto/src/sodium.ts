// Owns libsodium: loads it once, and refuses to hand it out before it is ready.
import sodium from 'libsodium-wrappers';
import { CryptoError } from './errors.ts';

let ready = false;

/** Await once at start, before any function that seals or opens. Later calls cost nothing. */
export async function sodiumReady(): Promise<void> {
  await sodium.ready;
  ready = true;
}

/** Throws `not_ready` before `sodiumReady` has resolved. */
export function loadedSodium(): typeof sodium {
  if (!ready)
    throw new CryptoError('not_ready', 'use libsodium: it is not loaded; await sodiumReady() at start');
  return sodium;
}
