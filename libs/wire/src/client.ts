// Owns the typed call of an endpoint over HTTP: used by the terminal and by the agent's enrolment.
import { CustodyError, isErrorCode } from '@custody/core/errors';
import { callTimeoutMs, ledgerEntryBytesMax } from '@custody/core/limits';
import { fleetEvent, type FleetEvent } from './events.ts';
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

/** One event's bounds: a ledger entry as JSON, and what JSON adds to it. */
const eventCharactersMax = ledgerEntryBytesMax * 8;

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
  throw refusalOf(method, url, status, data);
}

function refusalOf(method: string, url: URL, status: number, data: unknown): CustodyError {
  const told = problem.safeParse(data);
  if (!told.success) return noControlPlane(`${method} ${url.pathname}: status ${status} from ${url.host}`);
  const code = isErrorCode(told.data.code) ? told.data.code : 'internal';
  return new CustodyError(code, told.data.detail, {
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
  return reached(url, async () => {
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
  });
}

async function reached<Result>(url: URL, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (cause) {
    throw new CustodyError('control_plane_unreachable', `cannot reach the control plane at ${url.origin}`, {
      next: 'is it up? try custody status, or custody up',
      cause,
    });
  }
}

/** Events after an id; ends when the server ends the stream, or `signal` aborts. Throws as `call` does. */
export async function* follow(
  options: Omit<ClientOptions, 'timeoutMs'>,
  asked: QueryOf<'events.follow'>,
  signal?: AbortSignal,
): AsyncGenerator<FleetEvent> {
  const url = new URL(endpoints['events.follow'].path, options.url);
  for (const [key, value] of Object.entries(asked)) {
    if (value !== undefined) url.searchParams.set(key, value);
  }
  const response = await reached(url, () =>
    fetch(url, {
      headers: {
        accept: 'text/event-stream',
        ...(options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }),
      },
      ...(signal === undefined ? {} : { signal }),
    }),
  );
  if (!response.ok || response.body === null) {
    throw refusalOf('GET', url, response.status, jsonOrUndefined(await response.text()));
  }
  for await (const { event, data } of serverSent(response.body, url, signal)) {
    // The server's word that it will not wait for us: whoever follows asks again after the last id.
    if (event === 'slow') return;
    yield believed(fleetEvent, jsonOrUndefined(data), 'an event of GET /v1/events');
  }
}

/** The blocks of an event stream (WHATWG HTML, 9.2.6), as far as ours uses it: comments are left out. */
async function* serverSent(
  body: ReadableStream<Uint8Array>,
  url: URL,
  signal: AbortSignal | undefined,
): AsyncGenerator<{ event: string; data: string }> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reached(url, () => reader.read());
      if (done) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).split('\n\n');
      rest = blocks.pop() ?? '';
      if (rest.length > eventCharactersMax) throw noControlPlane('an event of GET /v1/events has no end');
      for (const block of blocks) {
        const fields = new Map(block.split('\n').map((line) => splitField(line)));
        const data = fields.get('data');
        if (data !== undefined) yield { event: fields.get('event') ?? '', data };
      }
    }
  } catch (error) {
    if (signal?.aborted !== true) throw error;
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function splitField(line: string): [string, string] {
  const cut = line.indexOf(': ');
  return cut < 1 ? ['', line] : [line.slice(0, cut), line.slice(cut + 2)];
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
