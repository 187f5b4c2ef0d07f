// Owns the store's one error, and the table from Postgres and Prisma codes to its codes.

export type StoreErrorCode =
  /** No answer: the server is down, ended the session, or the connection pool is exhausted. */
  | 'unreachable'
  /** The server refused user, password or database. */
  | 'access_denied'
  /** A row with that key exists already. */
  | 'conflict'
  /** A row that must exist does not. */
  | 'not_found'
  /** A foreign key, NOT NULL or CHECK constraint refused the row. */
  | 'constraint'
  /** A statement, a lock or the whole transaction took longer than its bound. */
  | 'timeout'
  /** Concurrent transactions collided. `transaction` retries it; met only outside of it. */
  | 'serialization'
  /** Concurrent transactions collided in every one of the allowed attempts. */
  | 'too_many_retries'
  /** A migration was changed after it had been applied. */
  | 'migration_edited'
  /** A migration could not be applied; it left nothing behind. */
  | 'migration_failed'
  /** The database has migrations that this program does not know. */
  | 'database_newer'
  | 'internal';

/**
 * What went wrong in the database. `publicMessage` names operation and subject and never a value of a row;
 * `cause` is the driver's error, for logs only.
 */
export class StoreError extends Error {
  override readonly name = 'StoreError';
  readonly code: StoreErrorCode;
  readonly publicMessage: string;
  /** The name of the violated constraint or the columns of it, where Postgres told. */
  readonly constraint: string | undefined;

  constructor(
    code: StoreErrorCode,
    publicMessage: string,
    options: { cause?: unknown; constraint?: string | undefined } = {},
  ) {
    super(publicMessage, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.publicMessage = publicMessage;
    this.constraint = options.constraint;
  }
}

const messages: Record<StoreErrorCode, string> = {
  unreachable: 'the database does not answer; it is asked again on the next request',
  access_denied: 'the database refused the connection; check user, password and database name',
  conflict: 'it exists already',
  not_found: 'it does not exist',
  constraint: 'a constraint of the database refused it',
  timeout: 'the database took too long; try again',
  serialization: 'it collided with a concurrent change; try again',
  too_many_retries: 'it collided with concurrent changes in every attempt; try again',
  migration_edited: 'a migration was changed after it had been applied',
  migration_failed: 'a migration failed',
  database_newer: 'the database is newer than this program; upgrade the program',
  internal: 'the database failed unexpectedly',
};

/** SQLSTATE (PostgreSQL manual, appendix A), then Prisma's error codes; the whole code first, then the class. */
const codes: Readonly<Record<string, StoreErrorCode>> = {
  '23505': 'conflict',
  '23P01': 'conflict',
  '42P04': 'conflict',
  '23': 'constraint',
  '40001': 'serialization',
  '40P01': 'serialization',
  '57014': 'timeout',
  '55P03': 'timeout',
  '25P03': 'timeout',
  '25P04': 'timeout',
  '57': 'unreachable',
  '08': 'unreachable',
  '53300': 'unreachable',
  '28': 'access_denied',
  '3D000': 'access_denied',
  '42501': 'access_denied',
  P1000: 'access_denied',
  P1001: 'unreachable',
  P1002: 'unreachable',
  P1003: 'access_denied',
  P1008: 'timeout',
  P1010: 'access_denied',
  P1017: 'unreachable',
  P2002: 'conflict',
  P2003: 'constraint',
  P2004: 'constraint',
  P2011: 'constraint',
  P2014: 'constraint',
  P2015: 'not_found',
  P2018: 'not_found',
  P2024: 'timeout',
  P2025: 'not_found',
  P2028: 'timeout',
  P2034: 'serialization',
  P2037: 'unreachable',
  ECONNREFUSED: 'unreachable',
  ECONNRESET: 'unreachable',
  EPIPE: 'unreachable',
  ETIMEDOUT: 'unreachable',
  ENOTFOUND: 'unreachable',
  EAI_AGAIN: 'unreachable',
  EHOSTUNREACH: 'unreachable',
  ENETUNREACH: 'unreachable',
};

/** What Prisma's adapter calls the things it has recognised (`MappedError` of driver-adapter-utils). */
const kinds: Readonly<Record<string, StoreErrorCode>> = {
  UniqueConstraintViolation: 'conflict',
  NullConstraintViolation: 'constraint',
  ForeignKeyConstraintViolation: 'constraint',
  RestrictViolation: 'constraint',
  TransactionWriteConflict: 'serialization',
  DatabaseNotReachable: 'unreachable',
  ConnectionClosed: 'unreachable',
  TooManyConnections: 'unreachable',
  SocketTimeout: 'unreachable',
  TlsConnectionError: 'unreachable',
  DatabaseDoesNotExist: 'access_denied',
  DatabaseAccessDenied: 'access_denied',
  AuthenticationFailed: 'access_denied',
  TransactionAlreadyClosed: 'timeout',
};

/** The pool and the protocol say these without a code (pg 8). */
const phrases: ReadonlyArray<readonly [string, StoreErrorCode]> = [
  ['Connection terminated', 'unreachable'],
  ['timeout exceeded when trying to connect', 'unreachable'],
  ['connection timeout', 'unreachable'],
  ['Client has encountered a connection error', 'unreachable'],
  ['Query read timeout', 'timeout'],
];

const causesMax = 8;

/**
 * The store's code for an error of Prisma, its adapter or pg; undefined for an error that no database raised,
 * which is the caller's own and must pass untouched.
 */
export function storeCodeOf(error: unknown): StoreErrorCode | undefined {
  let fallback: StoreErrorCode | undefined;
  for (const link of chainOf(error)) {
    const exact = codeOfLink(link);
    // Prisma's P2010 (raw query failed) and the like say less than what they wrap.
    if (exact !== undefined && exact !== 'internal') return exact;
    if (exact === 'internal' || isPrisma(link)) fallback = 'internal';
  }
  return fallback;
}

/** Any error as the caller should see it: a database's as StoreError, all others as they are. */
export function toStoreError(operation: string, error: unknown): unknown {
  if (error instanceof StoreError) return error;
  const code = storeCodeOf(error);
  if (code === undefined) return error;
  const constraint = constraintOf(error);
  return new StoreError(code, `${operation}: ${messages[code]}`, {
    cause: withoutArguments(error),
    constraint,
  });
}

/**
 * Prisma's message about a call it refuses quotes the whole call, values and all, in every error format. Its last
 * paragraph says what was wrong, by name.
 */
export function lastParagraph(message: string): string {
  return (
    message
      .trim()
      .split(/\n\s*\n/)
      .at(-1) ?? ''
  );
}

function withoutArguments(error: unknown): unknown {
  if (!(error instanceof Error) || error.name !== 'PrismaClientValidationError') return error;
  const safe = new Error(lastParagraph(error.message));
  safe.name = error.name;
  const frames = (error.stack ?? '').split('\n').filter((line) => /^ {4}at /.test(line));
  safe.stack = [`${safe.name}: ${safe.message}`, ...frames].join('\n');
  return safe;
}

type Fields = Readonly<Record<string, unknown>>;

function chainOf(error: unknown): Fields[] {
  const chain: Fields[] = [];
  const queue: unknown[] = [error];
  while (queue.length > 0 && chain.length < causesMax) {
    const link = queue.shift();
    if (typeof link !== 'object' || link === null || chain.includes(link as Fields)) continue;
    const fields = link as Fields;
    chain.push(fields);
    queue.push(fields['cause'], (fields['meta'] as Fields | undefined)?.['driverAdapterError']);
    if (Array.isArray(fields['errors'])) queue.push(...(fields['errors'] as unknown[]));
  }
  return chain;
}

function codeOfLink(link: Fields): StoreErrorCode | undefined {
  for (const key of ['originalCode', 'code']) {
    const code = link[key];
    if (typeof code !== 'string') continue;
    const found = codes[code] ?? (/^[0-9A-Z]{5}$/.test(code) ? codes[code.slice(0, 2)] : undefined);
    if (found !== undefined) return found;
    if (key === 'originalCode' || typeof link['severity'] === 'string') return 'internal';
  }
  const kind = link['kind'];
  if (typeof kind === 'string' && kinds[kind] !== undefined) return kinds[kind];
  const message = link['message'];
  if (typeof message !== 'string') return undefined;
  return phrases.find(([phrase]) => message.includes(phrase))?.[1];
}

function isPrisma(link: Fields): boolean {
  return typeof link['name'] === 'string' && /^(PrismaClient|DriverAdapterError)/.test(link['name']);
}

function constraintOf(error: unknown): string | undefined {
  for (const link of chainOf(error)) {
    const constraint = link['constraint'];
    if (typeof constraint === 'string') return constraint;
    if (typeof constraint !== 'object' || constraint === null) continue;
    const { index, fields } = constraint as { index?: unknown; fields?: unknown };
    if (typeof index === 'string') return index;
    if (Array.isArray(fields)) return fields.join(', ');
  }
  return undefined;
}
