// Owns the typed call of an endpoint over HTTP: used by the terminal and by the agent's enrolment.
import { CustodyError, isErrorCode } from '@custody/core/errors';
import { callTimeoutMs } from '@custody/core/limits';
import {
  endpoints,
  problem,
  type Action,
  type BodyOf,
  type ParamsOf,
  type QueryOf,
  type ReplyOf,
} from './http.ts';
import { parse } from './schema.ts';
import type { z } from 'zod';

export interface ClientOptions {
  /** `http://127.0.0.1:4100` */
  readonly url: string;
  readonly token?: string | undefined;
  readonly timeoutMs?: number;
}

type Sent<Name extends Action> = (undefined extends ParamsOf<Name> ? unknown : { params: ParamsOf<Name> }) &
  (undefined extends QueryOf<Name> ? unknown : { query?: QueryOf<Name> }) &
  (undefined extends BodyOf<Name> ? unknown : { body: BodyOf<Name> });

/** What `Sent` says, where the name of the endpoint does not matter any more. */
type Loose = Partial<
  Record<'params' | 'query', Readonly<Record<string, string | number | boolean | undefined>>>
> & {
  readonly body?: unknown;
};

/** Calls one endpoint. Throws a CustodyError with the server's code, or `control_plane_unreachable`. */
export async function call<Name extends Action>(
  options: ClientOptions,
  name: Name,
  sent: Sent<Name>,
): Promise<ReplyOf<Name>> {
  const { method, path, reply } = endpoints[name];
  const { params, query, body } = sent as Loose;
  const url = new URL(
    path.replaceAll(/\{(\w+)\}/g, (_, key: string) => encodeURIComponent(String(params?.[key]))),
    options.url,
  );
  for (const [key, value] of Object.entries(query ?? {})) {
    if (value !== undefined) url.searchParams.set(key, String(value));
  }
  const { ok, status, data } = await send(url, method, options, body);
  if (ok) return believed(reply, data, `the answer of ${method} ${path}`) as ReplyOf<Name>;
  const told = problem.safeParse(data);
  if (!told.success) throw noControlPlane(`${method} ${url.pathname}: status ${status} from ${url.host}`);
  const code = isErrorCode(told.data.code) ? told.data.code : 'internal';
  throw new CustodyError(code, told.data.detail, {
    ...(told.data.next === undefined ? {} : { next: told.data.next }),
    cause: told.data,
  });
}

interface Answer {
  readonly ok: boolean;
  readonly status: number;
  /** Undefined where it is no JSON. */
  readonly data: unknown;
}

/** The whole answer: a server that stops in the middle of one was not reached. */
async function send(url: URL, method: string, options: ClientOptions, body: unknown): Promise<Answer> {
  try {
    const response = await fetch(url, {
      method,
      headers: {
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(options.timeoutMs ?? callTimeoutMs),
    });
    const { ok, status } = response;
    return { ok, status, data: jsonOrUndefined(await response.text()) };
  } catch (cause) {
    throw new CustodyError('control_plane_unreachable', `cannot reach the control plane at ${url.origin}`, {
      next: 'is it up? try custody status, or custody up',
      cause,
    });
  }
}

function believed<Schema extends z.ZodType>(reply: Schema, data: unknown, what: string): z.output<Schema> {
  try {
    return parse(reply, data, what);
  } catch (error) {
    throw error instanceof CustodyError ? noControlPlane(error.publicMessage) : error;
  }
}

function noControlPlane(what: string): CustodyError {
  return new CustodyError('unavailable', what, { next: 'is CUSTODY_API the address of a control plane?' });
}

function jsonOrUndefined(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
