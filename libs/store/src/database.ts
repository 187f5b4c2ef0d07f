// Owns the connection to Postgres: one pool under Prisma and under plain SQL, bounded waits, bounded retries.
import { PrismaPg } from '@prisma/adapter-pg';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { lastParagraph, StoreError, storeCodeOf, toStoreError } from './errors.ts';
import { PrismaClient, type Prisma } from './generated/client.ts';

const connectTimeoutMs = 5_000;
const statementTimeoutMs = 15_000;
const transactionTimeoutMs = 30_000;
const idleConnectionMs = 30_000;
const retryDelayMsMax = 100;

/** A transaction's handle: the client without the calls that make no sense inside one. */
export type Transaction = Prisma.TransactionClient;

export type Isolation = 'ReadCommitted' | 'RepeatableRead' | 'Serializable';

/** A warning or an error of the driver. `message` may name tables and constraints, never a row's values. */
export type StoreLog = (level: 'warn' | 'error', message: string) => void;

export interface Database extends AsyncDisposable {
  readonly prisma: PrismaClient;
  /** For the hot paths that need SQL of their own; the same connections as `prisma` uses. */
  readonly pool: pg.Pool;
}

export interface DatabaseOptions {
  readonly connectionString: string;
  readonly poolMax: number;
  readonly log?: StoreLog;
}

/**
 * Opens the pool and asks the server one question.
 *
 * @throws {StoreError} `unreachable` or `access_denied`.
 */
export async function openDatabase(options: DatabaseOptions): Promise<Database> {
  const log = options.log ?? (() => undefined);
  const pool = new pg.Pool({
    connectionString: options.connectionString,
    max: options.poolMax,
    application_name: 'custody',
    connectionTimeoutMillis: connectTimeoutMs,
    idleTimeoutMillis: idleConnectionMs,
    keepAlive: true,
    statement_timeout: statementTimeoutMs,
    lock_timeout: statementTimeoutMs,
    idle_in_transaction_session_timeout: transactionTimeoutMs,
    // A server that has gone without a word must not hold a caller for ever.
    query_timeout: statementTimeoutMs + connectTimeoutMs,
  });
  // An idle connection's end is news, not an exception: the pool opens another one.
  pool.on('error', (error) => log('warn', `idle database connection: ${error.message}`));
  try {
    await pool.query('SELECT 1');
  } catch (error) {
    await pool.end();
    throw toStoreError('open the database', error);
  }
  const prisma = new PrismaClient({
    adapter: new PrismaPg(pool),
    // Without colours and source lines, for logs.
    errorFormat: 'minimal',
    log: [
      { emit: 'event', level: 'warn' },
      { emit: 'event', level: 'error' },
    ],
    transactionOptions: { maxWait: connectTimeoutMs, timeout: transactionTimeoutMs },
  });
  prisma.$on('warn', (event) => log('warn', lastParagraph(event.message)));
  prisma.$on('error', (event) => log('error', lastParagraph(event.message)));
  return {
    prisma,
    pool,
    [Symbol.asyncDispose]: async () => {
      await prisma.$disconnect();
      await pool.end();
    },
  };
}

export interface TransactionOptions {
  /** Names the operation in an error: `write grant`. */
  readonly operation?: string;
  readonly isolation?: Isolation;
  /** For `sqlTransaction`: a statement without values that travels with BEGIN, such as the taking of a lock. */
  readonly opening?: string;
  /** How often `fn` may be called, at least 1. Default 5. */
  readonly attemptsMax?: number;
}

const attemptsMaxDefault = 5;

/**
 * Runs `fn` in one transaction and commits. It is run again, up to `attemptsMax` times in all, when Postgres
 * rolled it back for a serialization failure or a deadlock (40001, 40P01, P2034) and for nothing else: so `fn`
 * must have no effect outside of the transaction. An error that `fn` throws rolls back and passes unchanged.
 *
 * @throws {StoreError} After `unreachable` during the commit the outcome is unknown.
 */
export function transaction<T>(
  db: Database,
  fn: (tx: Transaction) => Promise<T>,
  options: TransactionOptions = {},
): Promise<T> {
  const settings = options.isolation === undefined ? {} : { isolationLevel: options.isolation };
  return retried(() => db.prisma.$transaction(fn, settings), options);
}

/** As `transaction`, with a plain pg connection: for COPY, unnest and SQL that Prisma does not speak. */
export function sqlTransaction<T>(
  db: Database,
  fn: (client: pg.PoolClient) => Promise<T>,
  options: TransactionOptions = {},
): Promise<T> {
  return retried(() => onOneConnection(db.pool, fn, options), options);
}

const begin: Record<Isolation, string> = {
  ReadCommitted: 'BEGIN ISOLATION LEVEL READ COMMITTED',
  RepeatableRead: 'BEGIN ISOLATION LEVEL REPEATABLE READ',
  Serializable: 'BEGIN ISOLATION LEVEL SERIALIZABLE',
};

async function onOneConnection<T>(
  pool: pg.Pool,
  fn: (client: pg.PoolClient) => Promise<T>,
  { isolation, opening }: TransactionOptions,
): Promise<T> {
  const client = await pool.connect();
  let broken: Error | undefined;
  // Between two statements nobody listens otherwise, and an ended session would end the program.
  const onError = (error: Error): void => {
    broken = error;
  };
  client.on('error', onError);
  try {
    const start = isolation === undefined ? 'BEGIN' : begin[isolation];
    await client.query(opening === undefined ? start : `${start}; ${opening}`);
    const result = await fn(client);
    await client.query('COMMIT');
    return result;
  } catch (error) {
    // A connection whose rollback fails is in an unknown state: it is thrown away.
    await client.query('ROLLBACK').catch((cause: Error) => (broken = cause));
    throw error;
  } finally {
    client.off('error', onError);
    client.release(broken);
  }
}

async function retried<T>(run: () => Promise<T>, options: TransactionOptions): Promise<T> {
  const attemptsMax = options.attemptsMax ?? attemptsMaxDefault;
  const operation = options.operation ?? 'run transaction';
  for (let attempt = 1; ; attempt++) {
    try {
      return await run();
    } catch (error) {
      if (error instanceof StoreError || storeCodeOf(error) !== 'serialization')
        throw toStoreError(operation, error);
      if (attempt >= attemptsMax) {
        throw new StoreError(
          'too_many_retries',
          `${operation}: it collided with concurrent changes ${attempt} times; try again`,
          {
            cause: error,
          },
        );
      }
    }
    // The winner has committed by now, mostly; the pause only keeps a crowd from spinning.
    await delay(Math.min(retryDelayMsMax, 2 ** attempt));
  }
}
