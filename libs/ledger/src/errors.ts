// Owns the error of this room: what can be wrong with an entry, a line, a file of lines or a receipt.

export type LedgerErrorCode =
  | 'bad_argument'
  | 'bad_entry'
  | 'bad_receipt'
  | 'entry_too_large'
  | 'line_too_long'
  | 'malformed_line'
  | 'torn_line';

/** Where in a file of lines something is wrong. */
export interface LinePosition {
  /** From 1. */
  readonly lineNumber: number;
  /** Of the line's first byte, from 0. Cutting the file here leaves the sound lines before it. */
  readonly offsetBytes: number;
}

/** `position` is set for `line_too_long` and `torn_line`. `cause` is for logs only. */
export class LedgerError extends Error {
  override readonly name = 'LedgerError';
  readonly code: LedgerErrorCode;
  readonly publicMessage: string;
  readonly position: LinePosition | undefined;

  constructor(
    code: LedgerErrorCode,
    publicMessage: string,
    options: { position?: LinePosition; cause?: unknown } = {},
  ) {
    super(publicMessage, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.publicMessage = publicMessage;
    this.position = options.position;
  }
}
