// Owns the one type in which a secret value may travel: it prints as [secret] and can be wiped.
import { inspect } from 'node:util';

const REDACTED = '[secret]';

/**
 * A secret value held in a buffer of its own.
 *
 * String conversion, JSON and `util.inspect` all give `[secret]`. `reveal` is the only way to the
 * bytes, so that every use can be found by searching for it. `wipe` overwrites them; a wiped secret
 * refuses to be revealed.
 */
export class Secret {
  readonly #bytes: Uint8Array;
  #wiped = false;

  /** Takes ownership of `bytes`: the caller must not keep another reference. */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  static fromUtf8(text: string): Secret {
    return new Secret(new TextEncoder().encode(text));
  }

  get byteLength(): number {
    return this.#bytes.byteLength;
  }

  /** The live bytes, not a copy. Throws when the secret was wiped. */
  reveal(): Uint8Array {
    if (this.#wiped) throw new Error('reveal secret: it was wiped; ask for it again');
    return this.#bytes;
  }

  /** The bytes as text. JavaScript strings cannot be wiped: use it only where an API takes nothing else. */
  revealUtf8(): string {
    return new TextDecoder('utf-8', { fatal: true }).decode(this.reveal());
  }

  wipe(): void {
    this.#bytes.fill(0);
    this.#wiped = true;
  }

  [Symbol.dispose](): void {
    this.wipe();
  }

  toString(): string {
    return REDACTED;
  }

  toJSON(): string {
    return REDACTED;
  }

  [inspect.custom](): string {
    return REDACTED;
  }
}
