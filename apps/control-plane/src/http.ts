// Owns the edge of HTTP: bytes to checked values, errors to problem documents, and who is asking.
import { Catch, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import { PolicyInvalidError } from '@custody/core/cedar';
import { CustodyError, statusOf, type ErrorCode } from '@custody/core/errors';
import { httpBodyBytesMax } from '@custody/core/limits';
import type { Database } from '@custody/store/database';
import { traced } from '@custody/telemetry/telemetry';
import { endpoints, type Action, type Problem, type ReplyOf } from '@custody/wire/http';
import { jsonOf, parse } from '@custody/wire/schema';
import { authenticate, authorize, type Caller } from './authorize.ts';
import { unavailableWhenStoreIsDown } from './desk.ts';
import type { Log } from './log.ts';

const callers = new WeakMap<FastifyRequest, Caller>();
const open = new Set(['/healthz', '/readyz', '/openapi.json', '/v1/enroll']);

type Part<Name extends Action, Key extends 'params' | 'query' | 'body'> =
  (typeof endpoints)[Name] extends Record<Key, infer S>
    ? S extends z.ZodType
      ? z.output<S>
      : never
    : undefined;

export interface Asked<Name extends Action> {
  readonly params: Part<Name, 'params'>;
  readonly query: Part<Name, 'query'>;
  readonly body: Part<Name, 'body'>;
}

/** Parse: the request against the endpoint's schemas. Throws `bad_request`. */
export function asked<Name extends Action>(name: Name, request: FastifyRequest): Asked<Name> {
  const shape: { reply: z.ZodType; params?: z.ZodType; query?: z.ZodType; body?: z.ZodType } =
    endpoints[name];
  const part = (schema: z.ZodType | undefined, value: unknown, what: string): unknown =>
    schema === undefined ? undefined : parse(schema, value ?? {}, what);
  return {
    params: part(shape.params, request.params, `${name}: path`),
    query: part(shape.query, request.query, `${name}: query`),
    body: part(shape.body, request.body, `${name}: body`),
  } as Asked<Name>;
}

/** Authorize: who is asking, if they may. */
export function allowed(name: Action, request: FastifyRequest): Caller {
  const caller = callers.get(request);
  if (caller === undefined) throw new CustodyError('unauthenticated', 'a bearer token is needed');
  return authorize(caller, name);
}

/** Render: exactly the shape that the endpoint promises. */
export function rendered<Name extends Action>(_name: Name, reply: ReplyOf<Name>): ReplyOf<Name> {
  return reply;
}

/** Bounded bodies, strict UTF-8, and a caller before any body is read. */
export function prepare(fastify: FastifyInstance, db: Database, now: () => Date): void {
  fastify.removeAllContentTypeParsers();
  fastify.addContentTypeParser(
    'application/json',
    { parseAs: 'buffer', bodyLimit: httpBodyBytesMax },
    (_request, body: Buffer, done) => {
      try {
        done(null, body.byteLength === 0 ? {} : jsonOf(body, 'body'));
      } catch (error) {
        done(error as Error);
      } finally {
        // It may have held a secret's value.
        body.fill(0);
      }
    },
  );
  fastify.addHook('onRequest', async (request) => {
    const path = request.url.split('?', 1)[0] ?? '';
    if (open.has(path)) return;
    callers.set(request, await authenticate(db, request.headers.authorization, now()));
  });
}

/** Runs one call in a span that continues the caller's trace. */
export function handled<Result>(
  name: Action,
  request: FastifyRequest,
  work: () => Promise<Result>,
): Promise<Result> {
  const { traceparent } = request.headers;
  const parent = typeof traceparent === 'string' ? { traceparent } : undefined;
  return traced(`http.${name}`, { parent }, work);
}

/** Every error leaves as a problem document (RFC 9457). What is not meant for the caller stays in the log. */
@Catch()
export class ProblemFilter implements ExceptionFilter {
  readonly #log: Log;

  constructor(log: Log) {
    this.#log = log;
  }

  catch(thrown: unknown, host: ArgumentsHost): void {
    const reply = host.switchToHttp().getResponse<FastifyReply>();
    const request = host.switchToHttp().getRequest<FastifyRequest>();
    const error = knownError(thrown);
    if (error.code === 'internal' || error.code === 'unavailable') {
      this.#log.error(
        { err: thrown, method: request.method, path: request.url.split('?', 1)[0] },
        'request failed',
      );
    }
    const document = problemOf(error);
    void reply.status(document.status).type('application/problem+json').send(document);
  }
}

/** What Fastify refuses before there is a route: an address that is broken, or longer than any of ours. */
export function refuseAddress(error: unknown, _request: unknown, reply: FastifyReply): void {
  const document = problemOf(knownError(error));
  void reply.status(document.status).type('application/problem+json').send(document);
}

export function problemOf(error: CustodyError): Problem {
  return {
    type: `https://custody.invalid/problems/${error.code}`,
    title: error.code.replaceAll('_', ' '),
    status: statusOf(error.code),
    detail: error.publicMessage,
    code: error.code,
    ...(error.next === undefined ? {} : { next: error.next }),
    ...(error instanceof PolicyInvalidError ? { problems: [...error.problems] } : {}),
  };
}

/** Fastify's and Nest's own refusals, by status; anything else is ours to hide. */
function knownError(thrown: unknown): CustodyError {
  const error = unavailableWhenStoreIsDown(thrown);
  if (error instanceof CustodyError) return error;
  const status = statusFrom(error);
  const codes: Record<number, readonly [ErrorCode, string]> = {
    400: ['bad_request', 'the request is not understood'],
    404: ['not_found', 'there is no such endpoint; see /openapi.json'],
    413: ['too_large', `the body is larger than ${httpBodyBytesMax} bytes`],
    414: ['too_large', 'the address is too long'],
    415: ['bad_request', 'the body must be application/json'],
  };
  const [code, message] = codes[status] ?? ['internal', 'the control plane failed; its log says why'];
  return new CustodyError(code, message, { cause: error });
}

function isHttpException(error: object): error is { getStatus(): unknown } {
  return 'getStatus' in error && typeof error.getStatus === 'function';
}

function statusFrom(error: unknown): number {
  if (typeof error !== 'object' || error === null) return 500;
  if (isHttpException(error)) return Number(error.getStatus());
  return 'statusCode' in error && typeof error.statusCode === 'number' ? error.statusCode : 500;
}
