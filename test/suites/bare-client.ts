// Owns a NATS client without manners: it says whatever it is told to, and keeps every word of the server.
import { createPrivateKey, sign } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { until } from '@custody/testkit/constellation';

export interface Heard {
  readonly subject: string;
  readonly text: string;
}

/** One connection, in the protocol's own words: https://docs.nats.io/reference/reference-protocols/nats-protocol. */
export class BareClient implements Disposable {
  readonly #socket: Socket;
  #buffer = Buffer.alloc(0);
  #pongs = 0;
  #pings = 0;
  #info: { nonce?: string } | undefined;
  readonly errors: string[] = [];
  readonly heard: Heard[] = [];

  private constructor(port: number) {
    this.#socket = connect(port, '127.0.0.1');
    this.#socket.on('data', (chunk: Buffer) => this.#read(chunk));
    this.#socket.on('error', () => undefined);
  }

  /** Connects as whoever holds these credentials. */
  static async open(port: number, { jwt, seed }: { jwt: string; seed: string }): Promise<BareClient> {
    const client = new BareClient(port);
    const info = await until(() => client.#info, 'the greeting of nats-server');
    const sig = sign(null, Buffer.from(info.nonce ?? ''), privateKeyOf(seed)).toString('base64url');
    const who = {
      jwt,
      sig,
      verbose: false,
      pedantic: false,
      protocol: 1,
      headers: true,
      no_responders: true,
    };
    client.#say(`CONNECT ${JSON.stringify({ ...who, lang: 'test', version: '1' })}`);
    await client.flush();
    return client;
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  /** Resolves when the server has read everything said before, and said what it had to say. */
  async flush(): Promise<void> {
    this.#pings += 1;
    const mine = this.#pings;
    this.#say('PING');
    await until(
      () => this.#pongs >= mine || this.errors.some((each) => /Authoriz|Authent/.test(each)),
      'a PONG',
    );
  }

  /** Publishes, with the mark that programs of ours carry, and answers with what the server said against it. */
  async publish(subject: string, text: string, reply = ''): Promise<string[]> {
    const headers = 'NATS/1.0\r\nCustody-Bus: 1\r\n\r\n';
    const size = headers.length + Buffer.byteLength(text);
    return this.#against(() =>
      this.#say(`HPUB ${subject} ${reply} ${headers.length} ${size}\r\n${headers}${text}`),
    );
  }

  async subscribe(subject: string): Promise<string[]> {
    return this.#against(() => this.#say(`SUB ${subject} ${this.#pings + 1}`));
  }

  async #against(work: () => void): Promise<string[]> {
    const before = this.errors.length;
    work();
    await this.flush();
    return this.errors.slice(before);
  }

  #say(words: string): void {
    this.#socket.write(`${words}\r\n`);
  }

  #read(chunk: Buffer): void {
    this.#buffer = Buffer.concat([this.#buffer, chunk]);
    for (let end = this.#buffer.indexOf('\r\n'); end >= 0; end = this.#buffer.indexOf('\r\n')) {
      const line = this.#buffer.subarray(0, end).toString('utf8');
      const words = line.split(' ');
      const message = words[0] === 'MSG' || words[0] === 'HMSG';
      const size = message ? Number(words.at(-1)) : -2;
      if (this.#buffer.length < end + 2 + size + 2) return;
      if (message) {
        const text = this.#buffer.subarray(end + 2, end + 2 + size).toString('utf8');
        this.heard.push({ subject: words[1] ?? '', text });
      }
      this.#buffer = this.#buffer.subarray(end + 2 + size + 2);
      if (line === 'PONG') this.#pongs += 1;
      else if (line === 'PING') this.#say('PONG');
      else if (line.startsWith('-ERR')) this.errors.push(line);
      else if (line.startsWith('INFO ')) this.#info ??= JSON.parse(line.slice(5)) as { nonce?: string };
    }
  }
}

/** An nkey seed is base32 of two bytes of kind, 32 of key and two of checksum. */
function privateKeyOf(seed: string): ReturnType<typeof createPrivateKey> {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';
  const bits = Array.from(seed, (letter) => alphabet.indexOf(letter).toString(2).padStart(5, '0')).join('');
  const bytes = Buffer.from((bits.match(/.{8}/g) ?? []).map((byte) => Number.parseInt(byte, 2)));
  const prefix = Buffer.from('302e020100300506032b657004220420', 'hex');
  const key = Buffer.concat([prefix, bytes.subarray(2, 34)]);
  return createPrivateKey({ key, format: 'der', type: 'pkcs8' });
}
