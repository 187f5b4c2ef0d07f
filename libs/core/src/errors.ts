// Owns the error that may be shown to a person, and the one table from its code to HTTP status and exit code.

/** What each code means to an HTTP client and to a shell. Exhaustive: a code without a row does not compile. */
const table = {
  bad_request: { status: 400, exit: 2 },
  bad_utf8: { status: 400, exit: 2 },
  bad_reference: { status: 400, exit: 2 },
  policy_invalid: { status: 422, exit: 1 },
  unauthenticated: { status: 401, exit: 1 },
  forbidden: { status: 403, exit: 1 },
  not_found: { status: 404, exit: 1 },
  conflict: { status: 409, exit: 1 },
  too_large: { status: 413, exit: 1 },
  join_token_unknown: { status: 401, exit: 1 },
  join_token_expired: { status: 401, exit: 1 },
  join_token_used: { status: 401, exit: 1 },
  denied_by_policy: { status: 403, exit: 125 },
  revoked: { status: 403, exit: 125 },
  secret_unknown: { status: 404, exit: 125 },
  field_unknown: { status: 404, exit: 125 },
  run_unacceptable: { status: 422, exit: 125 },
  control_plane_unreachable: { status: 503, exit: 125 },
  agent_unavailable: { status: 503, exit: 125 },
  host_behind: { status: 503, exit: 125 },
  ledger_rejected: { status: 409, exit: 1 },
  unavailable: { status: 503, exit: 1 },
  internal: { status: 500, exit: 1 },
} as const satisfies Record<string, { status: number; exit: number }>;

export type ErrorCode = keyof typeof table;

export const errorCodes = Object.keys(table) as ErrorCode[];

export function statusOf(code: ErrorCode): number {
  return table[code].status;
}

export function exitCodeOf(code: ErrorCode): number {
  return table[code].exit;
}

export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(table, text);
}

/**
 * An error whose `publicMessage` is fit for the person who asked: lower case, no full stop, names the
 * operation and its subject, and never a secret value. `next` says what to do. `cause` is for logs only.
 */
export class CustodyError extends Error {
  override readonly name = 'CustodyError';
  readonly code: ErrorCode;
  readonly publicMessage: string;
  readonly next: string | undefined;

  constructor(code: ErrorCode, publicMessage: string, options: { next?: string; cause?: unknown } = {}) {
    super(publicMessage, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.publicMessage = publicMessage;
    this.next = options.next;
  }
}
