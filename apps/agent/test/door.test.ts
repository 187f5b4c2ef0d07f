// Owns the proof of the Unix socket: peers by the kernel's word, the keeper's protocol and nothing else, one agent a socket.
import {
  encodeFrame,
  fieldAll,
  FrameReader,
  text,
  textMaybe,
  type Frame,
  type FrameToSend,
} from '@custody/keeper/frames';
import { once } from 'node:events';
import { existsSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Door } from '../src/door.ts';
import { canary, revocation, scene, type Scene } from './fakes.ts';
import { captureLog, folder, grantId, settle, until } from './support.ts';

/** What is at the other end of a test's socket: this very process. */
const own = { pid: process.pid, uid: process.getuid?.() ?? 0 };

interface Opened {
  readonly s: Scene;
  readonly path: string;
  readonly log: () => string;
  readonly door: Door;
}

async function openDoor(more: { path?: string; silenceMsMax?: number } = {}): Promise<Opened> {
  const s = await scene();
  s.living.add(process.pid);
  const path = more.path ?? join(folder(), 'agent.sock');
  const { log, text: logged } = captureLog();
  const door = await Door.open({
    path,
    runs: s.runs,
    status: () => [
      ['host', 'host-a'],
      ['run', '{}'],
    ],
    log,
    ...more,
  });
  onTestFinished(() => door[Symbol.asyncDispose]());
  onTestFinished(() => s.runs[Symbol.asyncDispose]());
  return { s, path, log: logged, door };
}

class Client {
  readonly frames: Frame[] = [];
  closed = false;
  readonly #socket: ReturnType<typeof connect>;

  constructor(path: string) {
    const reader = new FrameReader();
    this.#socket = connect(path);
    this.#socket.on('data', (chunk: Buffer) => void this.frames.push(...reader.push(chunk)));
    this.#socket.on('close', () => (this.closed = true));
    this.#socket.on('error', () => {});
    onTestFinished(() => void this.#socket.destroy());
  }

  send(...frames: FrameToSend[]): this {
    return this.write(Buffer.concat(frames.map((frame) => encodeFrame(frame))));
  }

  write(bytes: Uint8Array): this {
    this.#socket.write(bytes);
    return this;
  }

  end(): void {
    this.#socket.destroy();
  }

  async next(verb: string): Promise<Frame> {
    await until(() => this.frames.length > 0 || this.closed);
    const frame = this.frames.shift();
    expect(frame?.verb).toBe(verb);
    if (frame === undefined) throw new Error('the connection was closed');
    return frame;
  }
}

const request = (...fields: [string, string][]): FrameToSend => ({
  verb: 'request',
  fields: [
    ['version', 1],
    ['cwd', '/srv'],
    ['containment', 'subreaper'],
    ...(fields.length > 0 ? fields : [['env', 'KEY=custody://prod/stripe/api_key'] as const]),
    ['arg', 'node'],
  ],
});
const started: FrameToSend = {
  verb: 'started',
  fields: [
    ['pid', 5000],
    ['start_ticks', '77'],
  ],
};
const ended: FrameToSend = {
  verb: 'ended',
  fields: [
    ['cause', 'exit'],
    ['root_status', 'exit:0'],
    ['empty_boot_us', 1_000_500_000],
    ['survivors', 1],
    ['processes', 2],
    ['proc', '5000 4999 77 1000400000 - exit:0 sh'],
    ['proc', '5001 1 99 1000499999 survivor killed:9 a daemon'],
    ['unlisted', 'exit 944'],
    ['unlisted', 'signal 1'],
  ],
};

const settled = (s: Scene): Promise<void> => until(() => s.spool.of('ended').length === 1);

describe('a run', () => {
  it('is asked for, granted, started and ended, with uid and pid as the kernel says them', async () => {
    const { s, path } = await openDoor();
    s.link.notes = ['ttl clamped'];
    const client = new Client(path).send(request());
    expect(text(await client.next('note'), 'line')).toBe('ttl clamped');
    const granted = await client.next('granted');
    expect(text(granted, 'grant')).toBe(grantId(1));
    expect(fieldAll(granted, 'env').map(String)).toEqual([`KEY=${canary}`]);
    client.send(started, ended);
    await until(() => s.spool.of('ended').length === 1);
    expect(s.spool.of('released')).toMatchObject([own]);
    expect(s.spool.of('started')).toMatchObject([{ pid: 5000, startTicks: '77' }]);
    expect(s.spool.of('ended')).toMatchObject([
      {
        cause: 'exit',
        rootStatus: 'exit:0',
        emptyBootMs: 1_000_500,
        survivors: 1,
        rows: [
          { pid: 5000, ppid: 4999, startTicks: '77', how: 'exit:0', name: 'sh', endedBootMs: 1_000_400 },
          { pid: 5001, how: 'killed:9', name: 'a daemon', endedBootMs: 1_000_499, survivor: true },
        ],
        unlisted: { exit: 944, signal: 1 },
      },
    ]);
    client.end();
    await settle();
    expect(s.swept).toEqual([]);
  });

  it('of a strict grant is told until when it is fresh, and of each beacon', async () => {
    const { s, path } = await openDoor();
    s.link.claims = { freshness: { kind: 'strict', ms: 30_000 } };
    s.link.proof = async () => s.clock.bootMs();
    const client = new Client(path).send(request());
    const freshUntil = s.clock.bootMs() + 30_000;
    expect(text(await client.next('granted'), 'fresh_until_boot_ms')).toBe(String(freshUntil));
    s.runs.renew(s.clock.bootMs() + 5_000);
    expect(text(await client.next('fresh'), 'until_boot_ms')).toBe(String(freshUntil + 5_000));
    client.send(started, { ...ended, fields: [['cause', 'stale'], ...ended.fields.slice(1)] });
    await settled(s);
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'stale', freshUntilBootMs: freshUntil + 5_000 }]);
  });

  it('whose keeper is gone when it is told something has still said how it ended', async () => {
    const { s, path } = await openDoor();
    s.link.claims = { freshness: { kind: 'strict', ms: 30_000 } };
    s.link.proof = async () => s.clock.bootMs();
    const client = new Client(path).send(request());
    await client.next('granted');
    client.send(started);
    await until(() => s.spool.of('started').length === 1);
    // In one turn: the keeper's last word is there, unread, and the beacon's finds nobody.
    client.send(ended).end();
    s.runs.renew(s.clock.bootMs() + 5_000);
    s.living.delete(process.pid);
    await settled(s);
    expect(s.spool.of('ended')[0]).toMatchObject({ cause: 'exit', proof: 'keeper', processes: 2 });
  });

  it('of best effort hears of no freshness', async () => {
    const { s, path } = await openDoor();
    const client = new Client(path).send(request());
    expect(textMaybe(await client.next('granted'), 'fresh_until_boot_ms')).toBeUndefined();
    s.runs.renew(s.clock.bootMs() + 5_000);
    await settle();
    expect(client.frames).toEqual([]);
  });

  it('that is revoked hears it at once, with no grace', async () => {
    const { s, path } = await openDoor();
    const client = new Client(path).send(request());
    await client.next('granted');
    s.runs.revoke(revocation(grantId(1)), s.clock.bootMs(), s.clock.wallClock());
    const end = await client.next('end');
    expect([text(end, 'cause'), text(end, 'grace_ms')]).toEqual(['revoked', '0']);
  });

  it('that is refused is told why and what to do next, and the connection ends', async () => {
    const { s, path, log } = await openDoor();
    const client = new Client(path).send(request(['env', 'KEY=plain-value']));
    const refused = await client.next('refused');
    expect([text(refused, 'exit'), text(refused, 'code')]).toEqual(['2', 'bad_reference']);
    expect(fieldAll(refused, 'line').map(String)[1]).toContain('custody://');
    await until(() => client.closed);
    expect(s.spool.of('released')).toEqual([]);
    expect(log()).not.toContain('failed');
  });

  it('whose keeper is gone before the answer gets nothing, and is closed as never started', async () => {
    const { s, path } = await openDoor();
    const asked = Promise.withResolvers<void>();
    const answer = Promise.withResolvers<void>();
    s.link.ready = () => {
      asked.resolve();
      return answer.promise;
    };
    const client = new Client(path).send(request());
    await asked.promise;
    client.end();
    await settle();
    answer.resolve();
    await until(() => s.spool.of('ended').length === 1);
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'not_started' }]);
  });

  it('whose environment does not fit into a frame is refused, and is not left open', async () => {
    const { s, path } = await openDoor();
    const names = Array.from({ length: 20 }, (_, index) => `K${index}`);
    for (const name of names) s.link.values.set(name, Buffer.alloc(65_000, 'x'));
    const client = new Client(path).send(
      request(...names.map((name): [string, string] => ['env', `${name}=custody://a/b`])),
    );
    const refused = await client.next('refused');
    expect(text(refused, 'code')).toBe('run_unacceptable');
    await until(() => s.spool.of('ended').length === 1);
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'not_started' }]);
    expect(s.runs.open).toBe(0);
  });

  it('that comes back is adopted; one that is not open here must end', async () => {
    const { s, path } = await openDoor();
    const first = new Client(path).send(request());
    await first.next('granted');
    first.end();
    const resume = (id: string): FrameToSend => ({
      verb: 'resume',
      fields: [
        ['version', 1],
        ['grant', id],
        ['pid', 5000],
        ['start_ticks', '77'],
        ['ceiling_boot_ms', 1],
      ],
    });
    const back = new Client(path).send(resume(grantId(1)));
    await back.next('adopted');
    const unknown = new Client(path).send(resume(grantId(9)));
    expect(text(await unknown.next('end'), 'cause')).toBe('agent');
    back.send(ended);
    await until(() => s.spool.of('ended').length === 1);
  });
});

describe('whoever breaks the protocol', () => {
  it.each<[string, Uint8Array]>([
    ['a length of zero', Uint8Array.of(0, 0, 0, 0)],
    ['a length beyond the bound', Uint8Array.of(0x7f, 0xff, 0xff, 0xff)],
    ['an unknown verb', Buffer.concat([Uint8Array.of(0, 0, 0, 6), Buffer.from('hello\0')])],
    ['no grammar', Buffer.concat([Uint8Array.of(0, 0, 0, 12), Buffer.from('request\0nope')])],
    ['HTTP', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')],
    ['started before a request', encodeFrame(started)],
    ['a frame of the agent', encodeFrame({ verb: 'granted', fields: [] })],
    ['a second request', Buffer.concat([encodeFrame(request()), encodeFrame(request())])],
    ['ended before it was granted', Buffer.concat([encodeFrame(request()), encodeFrame(ended)])],
    ['resume without a grant', encodeFrame({ verb: 'resume', fields: [] })],
  ])('by %s is shown the door, and the next one is served', async (_, bytes) => {
    const { path } = await openDoor();
    const client = new Client(path).write(bytes);
    await until(() => client.closed);
    expect(client.frames.map(({ verb }) => verb)).not.toContain('granted');
    const next = new Client(path).send({ verb: 'status', fields: [] });
    await next.next('status');
  });

  it('with an end that cannot be read loses the connection, and the agent counts the keeper as lost', async () => {
    const { s, path } = await openDoor();
    const client = new Client(path).send(request());
    await client.next('granted');
    s.living.clear();
    client.send(started, { verb: 'ended', fields: [['cause', 'because']] });
    await until(() => s.spool.of('ended').length === 1);
    expect(s.spool.of('ended')).toMatchObject([{ cause: 'lost', proof: 'sweep' }]);
  });

  it('is never quoted in the log: a frame may hold values', async () => {
    const { path, log } = await openDoor();
    const client = new Client(path).write(
      Buffer.concat([
        Uint8Array.of(0, 0, 0, 40),
        Buffer.from(`request\0${canary}\0\0\0\0\0\0\0\0\0\0\0\0\0\0`),
      ]),
    );
    await until(() => client.closed);
    expect(log()).toContain('broke the protocol');
    expect(log()).not.toContain(canary);
  });
});

describe('a connection', () => {
  it('that asks nothing is closed; one that has asked may be silent', async () => {
    const { path } = await openDoor({ silenceMsMax: 40 });
    const running = new Client(path).send(request());
    await running.next('granted');
    const idle = new Client(path);
    await until(() => idle.closed);
    expect(running.closed).toBe(false);
  });

  it('may send its frame byte by byte', async () => {
    const { path } = await openDoor();
    const client = new Client(path);
    for (const byte of encodeFrame(request())) client.write(Uint8Array.of(byte));
    await client.next('granted');
  });

  it('asks for the status of the agent, and gets one frame', async () => {
    const { path } = await openDoor();
    const client = new Client(path).send({ verb: 'status', fields: [] });
    const status = await client.next('status');
    expect([textMaybe(status, 'host'), textMaybe(status, 'run')]).toEqual(['host-a', '{}']);
    await until(() => client.closed);
  });
});

describe('the socket', () => {
  it('is refused to a second agent, and the first one goes on', async () => {
    const { path } = await openDoor();
    await expect(openDoor({ path })).rejects.toMatchObject({
      code: 'conflict',
      publicMessage: `another agent listens on ${path}`,
    });
    await new Client(path).send({ verb: 'status', fields: [] }).next('status');
  });

  it('of a dead agent is replaced', async () => {
    const dir = folder();
    const path = join(dir, 'agent.sock');
    const dead = createServer().listen(join(dir, 'other.sock'));
    await once(dead, 'listening');
    renameSync(join(dir, 'other.sock'), path);
    dead.close();
    await once(dead, 'close');
    expect(existsSync(path)).toBe(true);
    await openDoor({ path });
    await new Client(path).send({ verb: 'status', fields: [] }).next('status');
  });

  it('never replaces a file that is no socket', async () => {
    const path = join(folder(), 'notes.txt');
    writeFileSync(path, 'mine');
    await expect(openDoor({ path })).rejects.toMatchObject({ code: 'conflict' });
    expect(existsSync(path)).toBe(true);
  });

  it('has a path that the kernel takes, or one clear line', async () => {
    const path = join(folder(), 'x'.repeat(100), 'agent.sock');
    await expect(openDoor({ path })).rejects.toMatchObject({
      code: 'bad_request',
      publicMessage: expect.stringContaining('longer than 100 bytes'),
      next: 'choose a shorter one with --socket',
    });
  });

  it('is open to those that the agent serves, and is gone with the agent', async () => {
    const { path, door } = await openDoor();
    expect(statSync(path).mode & 0o777).toBe(own.uid === 0 ? 0o666 : 0o600);
    const client = new Client(path);
    await settle();
    await door[Symbol.asyncDispose]();
    await until(() => client.closed);
    expect(existsSync(path)).toBe(false);
  });
});
