// Owns the Unix socket: who is at the other end, by the kernel's word, and the conversation of docs/spec/keeper.md.
import { readSync } from 'node:fs';
import { chmod, lstat, mkdir, rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { CustodyError, exitCodeOf } from '@custody/core/errors';
import { keeperRequestTimeoutMs, socketConnectionsMax } from '@custody/core/limits';
import {
  encodeFrame,
  fieldAll,
  fieldsMax,
  FrameReader,
  number,
  numberMaybe,
  parseProcRow,
  parseUnlisted,
  payloadBytesMax,
  text,
  textMaybe,
  valueBytesMax,
  type Frame,
  type Verb,
} from '@custody/keeper/frames';
import { peerOf } from '@custody/keeper/native';
import { readAsk } from './delivery.ts';
import type { Log } from './log.ts';
import { recorded, type Ended } from './record.ts';
import type { Release } from './release.ts';
import type { KeeperEnd, Peer } from './run.ts';
import type { Runs } from './runs.ts';

const socketPathBytesMax = 100;
const readBytesMax = 65_536;

export interface DoorOptions {
  readonly path: string;
  readonly runs: Runs;
  /** What `custody agent status` shows, as fields of one frame. */
  readonly status: () => readonly (readonly [string, string])[];
  readonly log: Log;
  /** How long a connection may be silent before it has asked. Default `keeperRequestTimeoutMs`. */
  readonly silenceMsMax?: number;
}

/** One listening socket. Runs outlive it: closing ends no tree. */
export class Door implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #options: DoorOptions;

  private constructor(server: Server, options: DoorOptions) {
    this.#server = server;
    this.#options = options;
  }

  static async open(options: DoorOptions): Promise<Door> {
    const { path } = options;
    if (Buffer.byteLength(path) > socketPathBytesMax) {
      throw new CustodyError(
        'bad_request',
        `the socket path ${path} is longer than ${socketPathBytesMax} bytes`,
        {
          next: 'choose a shorter one with --socket',
        },
      );
    }
    // A root agent serves every user: they must be able to reach the socket.
    await mkdir(dirname(path), { recursive: true, mode: process.getuid?.() === 0 ? 0o755 : 0o700 });
    await removeStale(path);
    const server = createServer({ allowHalfOpen: false });
    const door = new Door(server, options);
    server.maxConnections = socketConnectionsMax;
    server.on('connection', (socket) => door.#greet(socket));
    const listening = Promise.withResolvers<void>();
    server.once('error', listening.reject);
    server.listen(path, listening.resolve);
    await listening.promise;
    // Who may ask is for policy to say, by the uid that the kernel vouches for; a root agent serves every user.
    await chmod(path, process.getuid?.() === 0 ? 0o666 : 0o600);
    return door;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  #greet(socket: Socket): void {
    let peer: Peer;
    try {
      peer = peerOf(descriptorOf(socket));
    } catch (error) {
      this.#options.log.warn({ err: error }, 'a connection whose peer the kernel does not name was closed');
      socket.destroy();
      return;
    }
    this.#sockets.add(socket);
    const conversation = new Conversation(socket, peer, this.#options);
    socket.setTimeout(this.#options.silenceMsMax ?? keeperRequestTimeoutMs, () => conversation.idle());
    socket.on('data', (chunk: Buffer) => conversation.hear(chunk));
    socket.on('error', (error) => this.#options.log.debug({ err: error }, 'keeper connection'));
    socket.on('close', () => {
      this.#sockets.delete(socket);
      conversation.closed();
    });
  }
}

/** One connection: a fresh run, a run that comes back, or a question about the agent's state. */
class Conversation implements KeeperEnd {
  readonly #socket: Socket;
  readonly #peer: Peer;
  readonly #options: DoorOptions;
  readonly #reader = new FrameReader();
  #grantId: string | undefined;
  #asked = false;

  constructor(socket: Socket, peer: Peer, options: DoorOptions) {
    this.#socket = socket;
    this.#peer = peer;
    this.#options = options;
  }

  hear(chunk: Uint8Array): void {
    try {
      for (const frame of this.#reader.push(chunk)) this.#take(frame);
    } catch (error) {
      this.#options.log.warn({ err: error, pid: this.#peer.pid }, 'a keeper broke the protocol');
      this.#socket.destroy();
    }
  }

  /** Nobody may hold a connection without having asked. A run may be silent as long as it likes. */
  idle(): void {
    if (!this.#asked) this.#socket.destroy();
  }

  closed(): void {
    if (this.#grantId !== undefined) this.#options.runs.detached(this.#grantId, this);
  }

  end(cause: 'revoked' | 'ceiling' | 'agent', graceMs: number): void {
    this.#send('end', [
      ['cause', cause],
      ['grace_ms', String(graceMs)],
    ]);
  }

  fresh(untilBootMs: number): void {
    this.#send('fresh', [['until_boot_ms', String(untilBootMs)]]);
  }

  #take(frame: Frame): void {
    const { runs } = this.#options;
    if (!this.#asked) return this.#first(frame);
    const grantId = this.#grantId;
    if (grantId === undefined) throw new Error(`${frame.verb} before the run was granted`);
    switch (frame.verb) {
      case 'started':
        return runs.started(grantId, number(frame, 'pid'), text(frame, 'start_ticks'));
      case 'failed':
        this.#grantId = undefined;
        return runs.notStarted(grantId);
      case 'ended': {
        // Read first: a keeper whose last word is not understood is a keeper lost.
        const ended = readEnded(frame);
        this.#grantId = undefined;
        return runs.ended(grantId, ended);
      }
      default:
        throw new Error(`${frame.verb} has no place here`);
    }
  }

  #first(frame: Frame): void {
    this.#asked = true;
    if (frame.verb === 'request') {
      void this.#admit(frame);
    } else if (frame.verb === 'resume') {
      this.#resume(frame);
    } else if (frame.verb === 'status') {
      this.#send('status', this.#options.status());
      this.#socket.end();
    } else {
      throw new Error(`a conversation cannot begin with ${frame.verb}`);
    }
  }

  async #admit(frame: Frame): Promise<void> {
    const { runs } = this.#options;
    let release: Release | undefined;
    try {
      release = await runs.admit(readAsk(frame), this.#peer);
      if (this.#socket.destroyed) {
        release.wipe();
        return runs.notStarted(release.grantId);
      }
      const bytes = encodeGranted(release);
      release.wipe();
      this.#grantId = release.grantId;
      for (const line of release.notes) this.#send('note', [['line', line]]);
      this.#socket.write(bytes, () => bytes.fill(0));
      runs.attach(release.grantId, this);
    } catch (error) {
      if (release !== undefined) {
        release.wipe();
        this.#grantId = undefined;
        runs.notStarted(release.grantId);
      }
      this.#refuse(error);
    }
  }

  #resume(frame: Frame): void {
    const grantId = text(frame, 'grant');
    try {
      const fresh = numberMaybe(frame, 'fresh_until_boot_ms');
      this.#options.runs.resume(grantId, this.#peer, this, fresh);
      this.#grantId = grantId;
      this.#send('adopted', []);
      this.#options.runs.started(grantId, number(frame, 'pid'), text(frame, 'start_ticks'));
    } catch (error) {
      this.#options.log.warn({ err: error, grantId }, 'a run came back that is not open here: it must end');
      this.end(this.#options.runs.whyNotOpen(grantId), 0);
    }
  }

  #refuse(error: unknown): void {
    if (!(error instanceof CustodyError)) this.#options.log.error({ err: error }, 'a run failed');
    const known =
      error instanceof CustodyError
        ? error
        : new CustodyError('internal', 'the agent failed; its log says why');
    if (known.cause !== undefined) this.#options.log.info({ err: known, cause: known.cause }, 'refused');
    const usage = exitCodeOf(known.code) === 2;
    this.#send('refused', [
      ['exit', usage ? '2' : '125'],
      ['code', known.code],
      ['line', known.publicMessage],
      ...(known.next === undefined ? [] : [['line', known.next] as const]),
    ]);
    this.#socket.end();
  }

  #send(verb: Verb, fields: readonly (readonly [string, string])[]): void {
    if (this.#socket.destroyed) return;
    this.#socket.write(encodeFrame({ verb, fields }), (fault) => {
      if (fault) this.#hearLast();
    });
  }

  /** A keeper may have said its last word and gone: Node closes a socket that takes nothing, and drops what came by it. */
  #hearLast(): void {
    try {
      const fd = descriptorOf(this.#socket);
      // Not once it is closed: its number may be somebody else's by then.
      for (let left = payloadBytesMax; left > 0 && !this.#socket.destroyed;) {
        const chunk = Buffer.alloc(readBytesMax);
        const got = readSync(fd, chunk);
        if (got === 0) return;
        this.hear(chunk.subarray(0, got));
        left -= got;
      }
    } catch (error) {
      this.#options.log.debug({ err: error }, 'nothing more came by a keeper connection'); // EAGAIN, or closed
    }
  }
}

/** The frame with the values in it: the caller wipes it. What it was built from is wiped here. */
function encodeGranted(release: Release): Buffer {
  const { grantId, ceilingBootMs, freshUntilBootMs, graceMs, environment, delivered, onExit } = release;
  const assignments = environment.map(([name, value]) => Buffer.concat([Buffer.from(`${name}=`), value]));
  const encoded = delivered.map(([key, name, value]) => [key, inBase64(name, value)] as const);
  try {
    return encodeFrame({
      verb: 'granted',
      fields: [
        ['grant', grantId],
        ['ceiling_boot_ms', String(ceilingBootMs)],
        ['grace_ms', String(graceMs)],
        ...(freshUntilBootMs === Infinity
          ? []
          : [['fresh_until_boot_ms', String(freshUntilBootMs)] as const]),
        ['on_exit', onExit],
        ...(release.keep ?? []).map((pattern) => ['keep', pattern] as const),
        ...(release.drop ?? []).map((pattern) => ['drop', pattern] as const),
        ...assignments.map((assignment) => ['env', assignment] as const),
        ...encoded,
      ],
    });
  } catch (cause) {
    throw new CustodyError('run_unacceptable', 'the environment of this run is larger than a keeper takes', {
      next: `give it less: ${payloadBytesMax} bytes and ${fieldsMax} variables in all, ${valueBytesMax} bytes in one`,
      cause,
    });
  } finally {
    for (const assignment of assignments) assignment.fill(0);
    for (const [, bytes] of encoded) bytes.fill(0);
  }
}

const base64Digits = Buffer.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/');

/** `NAME=BASE64` in a buffer that can be wiped: a string of Node's could not be. */
export function inBase64(name: string, value: Uint8Array): Buffer {
  const out = Buffer.alloc(Buffer.byteLength(name) + 1 + Math.ceil(value.length / 3) * 4, '=');
  let at = out.write(`${name}=`);
  for (let from = 0; from < value.length; from += 3) {
    const [a, b = 0, c = 0] = value.subarray(from, from + 3);
    const bits = ((a ?? 0) << 16) | (b << 8) | c;
    const digits = Math.min(value.length - from, 3) + 1;
    for (let digit = 0; digit < digits; digit += 1)
      out[at + digit] = base64Digits[(bits >> (18 - 6 * digit)) & 63] ?? 0;
    at += 4;
  }
  return out;
}

const causes: readonly Ended['cause'][] = ['exit', 'ceiling', 'stale', 'revoked', 'agent'];

function readEnded(frame: Frame): Ended {
  const cause = text(frame, 'cause');
  const known = causes.find((each) => each === cause);
  if (known === undefined) throw new Error('ended with an unknown cause');
  return {
    cause: known,
    rootStatus: textMaybe(frame, 'root_status'),
    signalledBootMs: bootMsOf(numberMaybe(frame, 'signalled_boot_us')),
    emptyBootMs: number(frame, 'empty_boot_us') / 1_000,
    survivors: number(frame, 'survivors'),
    processes: number(frame, 'processes'),
    rows: fieldAll(frame, 'proc').map((bytes) => recorded(parseProcRow(bytes))),
    unlisted: Object.fromEntries(
      fieldAll(frame, 'unlisted')
        .map(parseUnlisted)
        .map(({ kind, count }) => [kind, count]),
    ),
  };
}

function bootMsOf(micros: number | undefined): number | undefined {
  return micros === undefined ? undefined : micros / 1_000;
}

/** Node keeps a socket's descriptor on its handle and offers no other way to it. */
function descriptorOf(socket: Socket): number {
  const handle: unknown = Reflect.get(socket, '_handle');
  const fd: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'fd') : undefined;
  if (typeof fd !== 'number' || fd < 0) throw new Error('the socket has no descriptor');
  return fd;
}

/** A socket file that nobody listens on is a dead agent's; one that answers belongs to a living agent. */
async function removeStale(path: string): Promise<void> {
  const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (found === undefined) return;
  if (!found.isSocket()) {
    throw new CustodyError('conflict', `${path} is there, and is no socket`, {
      next: 'choose another path with --socket',
    });
  }
  const outcome = await new Promise<'alive' | 'dead'>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve('alive');
    });
    probe.once('error', () => resolve('dead'));
  });
  if (outcome === 'alive') {
    throw new CustodyError('conflict', `another agent listens on ${path}`, { next: 'stop it first' });
  }
  await rm(path, { force: true });
}
