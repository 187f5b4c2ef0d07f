// Owns the one error of this lib.

export type KeeperErrorCode =
  | 'frame_length'
  | 'frame_grammar'
  | 'frame_verb'
  | 'frame_unknown_verb'
  | 'frame_key'
  | 'frame_value'
  | 'frame_fields'
  | 'field_missing'
  | 'field_text'
  | 'field_number'
  | 'proc_row'
  | 'not_built'
  | 'not_a_socket'
  | 'no_peer'
  | 'sweep_failed'
  | 'scan_failed';

/** The only error this lib throws. The message names no value of a field: a value may be a credential. */
export class KeeperError extends Error {
  override readonly name = 'KeeperError';
  readonly code: KeeperErrorCode;

  constructor(code: KeeperErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
