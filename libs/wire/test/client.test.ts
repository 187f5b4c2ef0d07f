// Owns the proof of the HTTP client: every way a server can answer, or not, becomes a value or one CustodyError.
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { call, follow, type ClientOptions } from '../src/client.ts';

interface Seen {
  readonly method: string | undefined;
  readonly url: string | undefined;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

let respond: (response: ServerResponse, seen: Seen) => void = () => {};
let seen: Seen | undefined;
let options: ClientOptions;
const server = createServer((request, response) => {
  void buffer(request).then((bytes) => {
    const { method, url, headers } = request;
    seen = { method, url, headers, body: bytes.toString() };
    respond(response, seen);
  });
});

beforeAll(async () => {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  options = { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, token: 'cst_token' };
});
afterAll(async () => {
  server.closeAllConnections();
  server.close();
  await once(server, 'close');
});

const summary = {
  path: 'prod/stripe',
  version: 1,
  fields: ['api_key'],
  createdAt: '2026-11-22T00:00:00.000Z',
  createdBy: 'operator',
};
const json =
  (status: number, value: unknown, type = 'application/json') =>
  (response: ServerResponse) => {
    response.writeHead(status, { 'content-type': type }).end(JSON.stringify(value));
  };
const get = (more: Partial<ClientOptions> = {}): Promise<unknown> =>
  call({ ...options, ...more }, 'secret.get', { params: { path: 'prod/stripe' } });

describe('what is sent', () => {
  it('a path parameter stands percent-encoded in one segment', async () => {
    respond = json(200, summary);
    expect(await get()).toEqual(summary);
    expect(seen).toMatchObject({ method: 'GET', url: '/v1/secrets/prod%2Fstripe', body: '' });
  });

  it('no parameter can reach another endpoint', async () => {
    respond = json(200, {
      revision: 1,
      sha256: '',
      policies: [],
      createdAt: summary.createdAt,
      createdBy: '',
      text: '',
    });
    for (const revision of ['../../v1/hosts', '?x=1', '#x', 'a/b', '%2e%2e']) {
      await call(options, 'policy.show', { params: { revision } });
      expect(seen?.url).toBe(`/v1/policies/${encodeURIComponent(revision)}`);
    }
  });

  it('the token in its header and nowhere else; none where there is none', async () => {
    respond = json(200, summary);
    await get();
    expect(seen?.headers.authorization).toBe('Bearer cst_token');
    expect(seen?.url).not.toContain('cst_token');
    await call({ url: options.url }, 'secret.get', { params: { path: 'a' } });
    expect(seen?.headers).not.toHaveProperty('authorization');
  });

  it('a query without what was left out, and a body as JSON', async () => {
    respond = json(200, { lines: [] });
    await call(options, 'ledger.lines', { query: { author: 'h_1', after: undefined, last: 'true' } });
    expect(seen?.url).toBe('/v1/ledger/lines?author=h_1&last=true');
    respond = json(200, { ...summary, values: {} });
    await call(options, 'secret.reveal', { params: { path: 'a' }, body: { version: 2 } });
    expect(seen).toMatchObject({ method: 'POST', body: '{"version":2}' });
    expect(seen?.headers['content-type']).toBe('application/json');
  });
});

describe('a refusal', () => {
  it('keeps the code, the words and what to do next', async () => {
    const document = {
      type: 'x',
      title: 'x',
      status: 404,
      detail: 'there is no secret a',
      code: 'secret_unknown',
      next: 'look',
    };
    respond = json(404, document, 'application/problem+json');
    await expect(get()).rejects.toMatchObject({
      code: 'secret_unknown',
      publicMessage: 'there is no secret a',
      next: 'look',
      cause: document,
    });
  });

  it('with a code of another version is internal, not a crash', async () => {
    respond = json(409, { type: 'x', title: 'x', status: 409, detail: 'new', code: 'constructor' });
    await expect(get()).rejects.toMatchObject({ code: 'internal', publicMessage: 'new' });
  });

  it.each<[string, number, string, string]>([
    ['a page', 502, 'text/html', '<html>Bad gateway</html>'],
    ['nothing', 500, 'text/plain', ''],
    ['other JSON', 404, 'application/json', '{"message":"no"}'],
    ['JSON that ends too early', 500, 'application/json', '{"code":'],
  ])('that is no problem document is told as such: %s', async (_, status, type, text) => {
    respond = (response) => void response.writeHead(status, { 'content-type': type }).end(text);
    await expect(get()).rejects.toMatchObject({
      code: 'unavailable',
      publicMessage: expect.stringContaining(`status ${status}`),
      next: 'is CUSTODY_API the address of a control plane?',
    });
  });
});

describe('an answer of 200', () => {
  it.each<[string, string]>([
    ['a page', '<html>welcome</html>'],
    ['nothing', ''],
    ['another shape', '{"path":"prod/stripe"}'],
    ['broken JSON', '{"path":'],
  ])('that is none of a control plane is not believed: %s', async (_, text) => {
    respond = (response) => void response.writeHead(200, { 'content-type': 'text/html' }).end(text);
    await expect(get()).rejects.toMatchObject({
      name: 'CustodyError',
      code: 'unavailable',
      next: 'is CUSTODY_API the address of a control plane?',
    });
  });
});

describe('a server that cannot be reached', () => {
  const unreachable = { name: 'CustodyError', code: 'control_plane_unreachable' };

  it('nobody listens', async () => {
    const other = createServer();
    other.listen(0, '127.0.0.1');
    await once(other, 'listening');
    const { port } = other.address() as AddressInfo;
    other.close();
    await once(other, 'close');
    await expect(get({ url: `http://127.0.0.1:${port}` })).rejects.toMatchObject({
      ...unreachable,
      publicMessage: `cannot reach the control plane at http://127.0.0.1:${port}`,
    });
  });

  it('it hangs up', async () => {
    respond = (response) => void response.destroy();
    await expect(get()).rejects.toMatchObject(unreachable);
  });

  it('it does not answer in time', async () => {
    respond = () => {};
    await expect(get({ timeoutMs: 30 })).rejects.toMatchObject(unreachable);
  });

  it('it stops in the middle of its answer', async () => {
    respond = (response) => void response.writeHead(200, { 'content-length': '100' }).write('{"path":');
    await expect(get({ timeoutMs: 60 })).rejects.toMatchObject(unreachable);
  });

  it('it hangs up in the middle of its answer', async () => {
    respond = (response) => {
      response.writeHead(200, { 'content-length': '100' }).write('{"path":', () => response.destroy());
    };
    await expect(get()).rejects.toMatchObject(unreachable);
  });

  it('and the error never holds the token', async () => {
    respond = (response) => void response.destroy();
    const error = await get().catch((thrown: unknown) => thrown);
    expect(JSON.stringify([String(error), (error as Error).stack])).not.toContain('cst_token');
  });
});

describe('a stream of events', () => {
  const event = (id: number) => ({
    ...{ id, at: '2026-11-22T00:00:00.000Z', kind: 'revoked', author: 'a', name: 'ä', body: { n: id } },
  });
  const block = (id: number): string => `id: ${id}\nevent: revoked\ndata: ${JSON.stringify(event(id))}\n\n`;
  const ids = async (asked: Parameters<typeof follow>[1] = {}, signal?: AbortSignal): Promise<number[]> => {
    const got: number[] = [];
    for await (const { id } of follow(options, asked, signal)) got.push(id);
    return got;
  };

  it('is read whatever pieces it comes in, even where a piece ends within a letter', async () => {
    respond = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      const bytes = Buffer.from(`: the line is alive\n\n${block(1)}${block(2)}`);
      void (async () => {
        for (const byte of bytes) {
          response.write(Buffer.from([byte]));
          await new Promise((resolve) => setImmediate(resolve));
        }
        response.end();
      })();
    };
    expect(await ids({ since: '0', follow: 'true' })).toEqual([1, 2]);
    expect(seen).toMatchObject({
      url: '/v1/events?since=0&follow=true',
      headers: { authorization: 'Bearer cst_token', accept: 'text/event-stream' },
    });
  });

  it('ends where the server will not wait, and where the reader has had enough', async () => {
    respond = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.end(`${block(1)}event: slow\ndata: {"since":1}\n\n${block(2)}`);
    };
    expect(await ids()).toEqual([1]);
    respond = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(block(1));
    };
    const abort = new AbortController();
    for await (const { id } of follow(options, {}, abort.signal)) {
      expect(id).toBe(1);
      abort.abort();
    }
  });

  it('that breaks in the middle says that nobody was reached', async () => {
    respond = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(block(1), () => response.destroy());
    };
    await expect(ids()).rejects.toMatchObject({ code: 'control_plane_unreachable' });
  });

  it('that is refused, or is none of ours, is an error as of any call', async () => {
    const told = { type: 't', title: 't', status: 403, detail: 'not for you', code: 'forbidden' };
    respond = json(403, told, 'application/problem+json');
    await expect(ids()).rejects.toMatchObject({ code: 'forbidden', publicMessage: 'not for you' });
    respond = (response) => response.writeHead(200).end('data: {"id": "x"}\n\n');
    await expect(ids()).rejects.toMatchObject({ code: 'unavailable' });
    respond = (response) => response.writeHead(200).end(`data: ${'x'.repeat(1_000_000)}`);
    await expect(ids()).rejects.toMatchObject({ code: 'unavailable' });
  });
});
