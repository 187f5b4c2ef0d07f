// Owns one durable pull consumer over a real server: pulling, handing out, and going on after reconnects.
import { reconnectWaitMs } from '@custody/core/limits';
import {
  createInbox,
  nanos,
  type Msg,
  type NatsConnection,
  type Subscription,
} from '@nats-io/transport-node';
import { fetchExpiresMs, fetchLagMs, fetchMessagesMax, handlerNakMs } from './bounds.ts';
import { isMarked, openHeaders } from './envelope.ts';
import { ensureConsumer, readHeaders, type ConsumeOptions } from './jetstream.ts';

/** A pull that ended because nothing came in its time. */
const statusTimeout = 408;

/**
 * Speaks JetStream's pull protocol itself. One pull is outstanding at a time; what the server sends while the
 * consumer stops is given back at once, where the client library's own consumers leave it to `ackWaitMs`.
 */
export class Consumer {
  readonly #nc: NatsConnection;
  readonly #options: ConsumeOptions;
  readonly #log: (line: string) => void;
  readonly #inbox: string;
  readonly #running = new Set<Promise<void>>();
  #subscription: Subscription | undefined;
  #stopping = false;
  #linked = true;
  /** Which pull is outstanding, how many messages of it are still to come, and when it is given up. */
  #pull = 0;
  #left = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(
    nc: NatsConnection,
    options: ConsumeOptions,
    log: (line: string) => void,
    inboxPrefix: string | undefined,
  ) {
    this.#nc = nc;
    this.#options = options;
    this.#log = log;
    this.#inbox = createInbox(inboxPrefix);
  }

  /** Resolves when the server has the consumer; from then on it runs by itself. */
  async start(): Promise<void> {
    await ensureConsumer(this.#nc, this.#options);
    this.#subscription = this.#nc.subscribe(`${this.#inbox}.*`, {
      callback: (error, message) => {
        if (error === null) this.#heard(message);
        else this.#log(`consume ${this.#options.stream}: ${error.message}`);
      },
    });
    this.#ask();
  }

  disconnected(): void {
    this.#linked = false;
    clearTimeout(this.#timer);
  }

  connected(): void {
    this.#linked = true;
    this.#ask();
  }

  /** Resolves when the last running handler has returned and the server sends nothing more. */
  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#timer);
    const subscription = this.#subscription;
    if (subscription !== undefined && !subscription.isClosed() && !this.#nc.isClosed()) {
      if (this.#linked) await subscription.drain().catch(() => undefined);
      else subscription.unsubscribe();
    }
    await Promise.all(this.#running);
  }

  #ask(): void {
    if (this.#stopping || !this.#linked) return;
    const { stream, durable, maxAckPending } = this.#options;
    this.#pull += 1;
    this.#left = Math.min(maxAckPending, fetchMessagesMax);
    const wanted = { batch: this.#left, expires: nanos(fetchExpiresMs) };
    this.#send(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${durable}`, JSON.stringify(wanted), {
      reply: `${this.#inbox}.${this.#pull}`,
    });
    this.#later(fetchExpiresMs + fetchLagMs, () => this.#ask());
  }

  #heard(message: Msg): void {
    // A stored message keeps its own subject; what comes under the inbox is the server's word on a pull.
    if (message.subject.startsWith(`${this.#inbox}.`)) {
      this.#ended(message);
      return;
    }
    this.#left -= 1;
    this.#handOut(message);
    if (this.#left === 0) this.#ask();
  }

  #ended(message: Msg): void {
    if (message.subject !== `${this.#inbox}.${this.#pull}` || this.#stopping) return;
    if (message.headers?.code === statusTimeout) {
      this.#ask();
      return;
    }
    this.#log(`consume ${this.#options.stream}: ${message.headers?.status ?? 'the pull ended'}`);
    this.#later(reconnectWaitMs, () => {
      // The server was going, JetStream is not up yet, or the consumer is gone.
      this.#later(fetchExpiresMs + fetchLagMs, () => this.#ask());
      ensureConsumer(this.#nc, this.#options).then(
        () => this.#ask(),
        () => this.#ask(),
      );
    });
  }

  #handOut(message: Msg): void {
    const { stream } = this.#options;
    if (!isMarked(readHeaders(message.headers))) {
      this.#log(`consume ${stream}: dropped a message of ${message.subject} that no program sent`);
      this.#settle(message, '+ACK');
    } else if (this.#stopping) {
      this.#settle(message, '-NAK');
    } else {
      const running = this.#handle(message).finally(() => this.#running.delete(running));
      this.#running.add(running);
    }
  }

  async #handle(message: Msg): Promise<void> {
    const { subject, data } = message;
    let settled = false;
    const settle = (word: string): void => {
      if (!settled) this.#settle(message, word);
      settled = true;
    };
    const nak = (delayMs: number): void => settle(`-NAK ${JSON.stringify({ delay: nanos(delayMs) })}`);
    try {
      const headers = openHeaders(readHeaders(message.headers));
      const deliveries = deliveriesOf(message.reply ?? '');
      await this.#options.handler({ subject, data, headers, deliveries, ack: () => settle('+ACK'), nak });
    } catch (error) {
      const reason = error instanceof Error ? error.message : 'unknown';
      this.#log(`consume ${this.#options.stream}: handler: ${reason}`);
      nak(handlerNakMs);
    }
  }

  #settle(message: Msg, word: string): void {
    if (message.reply?.startsWith('$JS.ACK.') === true) this.#send(message.reply, word);
  }

  // On a lost or closed connection nothing leaves: the message comes again, and so does the pull.
  #send(subject: string, text: string, options: { readonly reply?: string } = {}): void {
    try {
      this.#nc.publish(subject, text, options);
    } catch (error) {
      this.#log(`consume ${this.#options.stream}: ${error instanceof Error ? error.message : 'not sent'}`);
    }
  }

  #later(ms: number, action: () => void): void {
    clearTimeout(this.#timer);
    if (!this.#stopping && this.#linked) this.#timer = setTimeout(action, ms);
  }
}

/**
 * The delivery count within an acknowledgement subject: `$JS.ACK.stream.consumer.count.…` (9 tokens), or
 * `$JS.ACK.domain.account.stream.consumer.count.…` from newer servers.
 */
function deliveriesOf(reply: string): number {
  const tokens = reply.split('.');
  return Number(tokens[tokens.length === 9 ? 4 : 6]);
}
