// Owns the error of this room: what can be wrong with a key, a seal, a signature or a key file.

export type CryptoErrorCode =
  | 'bad_argument'
  | 'bad_payload'
  | 'bad_public_key'
  | 'bad_signature'
  | 'cannot_open'
  | 'key_file_bad_size'
  | 'key_file_exposed'
  | 'key_file_missing'
  | 'key_file_unreadable'
  | 'not_ready'
  | 'too_large'
  | 'wrong_key';

/** `publicMessage` holds no key, no plaintext and no token. `cause` is for logs only. */
export class CryptoError extends Error {
  override readonly name = 'CryptoError';
  readonly code: CryptoErrorCode;
  readonly publicMessage: string;

  constructor(code: CryptoErrorCode, publicMessage: string, options: { cause?: unknown } = {}) {
    super(publicMessage, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.publicMessage = publicMessage;
  }
}
