// Owns the bench's own ends of the bus, in the protocol's words alone, so that the load weighs as little as it can.
import { createPrivateKey, sign, type KeyObject } from 'node:crypto';
import { connect, type Socket } from 'node:net';

const lineEnd = Buffer.from('\r\n');
const waitMsMax = 30_000;

export interface Credentials {
  readonly jwt: string;
  readonly key: KeyObject;
}

export interface Message {
  readonly subject: string;
  /** Headers and all. */
  readonly bytes: Buffer;
}

/** One connection: https://docs.nats.io/reference/reference-protocols/nats-protocol. */
export class WireClient implements Disposable {
  readonly #socket: Socket;
  readonly #onMessage: (message: Message) => void;
  #kept: Buffer = Buffer.alloc(0);
  #onWord: (word: string) => void = () => {};

  private constructor(socket: Socket, onMessage: (message: Message) => void) {
    this.#socket = socket;
    this.#onMessage = onMessage;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('error', (error) => this.#onWord(`-ERR ${error.message}`));
    socket.on('close', () => this.#onWord('-ERR the connection was closed'));
  }

  /** Resolves when the server has taken these credentials and every subscription. */
  static async open(
    port: number,
    { jwt, key }: Credentials,
    subjects: readonly string[],
    onMessage: (message: Message) => void = () => {},
  ): Promise<WireClient> {
    const client = new WireClient(connect(port, '127.0.0.1'), onMessage);
    const info = await client.#word('INFO ');
    const { nonce = '' } = JSON.parse(info.slice(5)) as { nonce?: string };
    const sig = sign(null, Buffer.from(nonce), key).toString('base64url');
    const options = {
      jwt,
      sig,
      verbose: false,
      pedantic: false,
      protocol: 1,
      headers: true,
      no_responders: true,
    };
    client.say(`CONNECT ${JSON.stringify({ ...options, lang: 'bench', version: '1' })}`);
    subjects.forEach((subject, index) => client.say(`SUB ${subject} ${index + 1}`));
    await client.flush();
    return client;
  }

  say(words: string): void {
    this.#socket.write(`${words}\r\n`);
  }

  publish(subject: string, headers: string, data: string): void {
    const size = headers.length + Buffer.byteLength(data);
    this.say(`HPUB ${subject} ${headers.length} ${size}\r\n${headers}${data}`);
  }

  async flush(): Promise<void> {
    const pong = this.#word('PONG');
    this.say('PING');
    await pong;
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  #word(wanted: string): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const late = setTimeout(() => reject(new Error(`nats-server did not say ${wanted.trim()}`)), waitMsMax);
    this.#onWord = (word) => {
      if (word.startsWith('-ERR')) reject(new Error(`nats-server said ${word}`));
      else if (word.startsWith(wanted)) resolve(word);
    };
    return promise.finally(() => clearTimeout(late));
  }

  #read(chunk: Buffer): void {
    let rest = this.#kept.length === 0 ? chunk : Buffer.concat([this.#kept, chunk]);
    for (;;) {
      const end = rest.indexOf(lineEnd);
      if (end < 0) break;
      const line = rest.toString('latin1', 0, end);
      const isMessage = line.startsWith('MSG ') || line.startsWith('HMSG ');
      const next = end + 2 + (isMessage ? Number(line.slice(line.lastIndexOf(' ') + 1)) + 2 : 0);
      if (rest.length < next) break;
      if (isMessage)
        this.#onMessage({ subject: line.split(' ', 2)[1] ?? '', bytes: rest.subarray(end + 2, next - 2) });
      else if (line === 'PING') this.say('PONG');
      else this.#onWord(line);
      rest = rest.subarray(next);
    }
    this.#kept = rest;
  }
}

/** An nkey seed is base32 of two bytes of kind, 32 of key and two of checksum. */
export function privateKeyOf(seed: string): KeyObject {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';
  const bits = Array.from(seed, (letter) => alphabet.indexOf(letter).toString(2).padStart(5, '0')).join('');
  const bytes = Buffer.from((bits.match(/.{8}/g) ?? []).map((byte) => Number.parseInt(byte, 2)));
  const prefix = Buffer.from('302e020100300506032b657004220420', 'hex');
  return createPrivateKey({
    key: Buffer.concat([prefix, bytes.subarray(2, 34)]),
    format: 'der',
    type: 'pkcs8',
  });
}

/** Milliseconds of the clock that all processes of one machine share. */
export function sharedMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
