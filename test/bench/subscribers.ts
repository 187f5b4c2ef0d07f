// Owns the load process of the fan-out: thousands of connections, each subscribed as a host is. Its parent asks over IPC.
import { fleet, hostMaySubscribe, inboxPrefix } from '@custody/wire/subjects';
import { privateKeyOf, sharedMs, WireClient } from './wire.ts';

export interface Plan {
  readonly port: number;
  readonly connections: number;
  readonly users: readonly { readonly host: string; readonly jwt: string; readonly seed: string }[];
}

/** By the clock that all processes share. A round is over when every connection has heard. */
export interface Round {
  readonly heard: number;
  readonly firstMs: number;
  readonly medianMs: number;
  readonly lastMs: number;
  readonly bytes: number;
}

export type Told =
  | { readonly what: 'up'; readonly connections: number }
  | { readonly what: 'ready' }
  | ({ readonly what: 'round' } & Round);

const openingAtOnce = 64;
const quietMsMax = 10_000;

const clients: WireClient[] = [];
let times = new Float64Array(0);
let heard = 0;
let bytes = 0;
let late: NodeJS.Timeout | undefined;

const tell = (told: Told): void => void process.send?.(told);

function hear(subject: string, size: number): void {
  if (subject !== revocations || heard >= times.length) return;
  times[heard] = sharedMs();
  heard += 1;
  bytes = size;
  if (heard === times.length) endRound();
}

const revocations = fleet('revocation');

function endRound(): void {
  clearTimeout(late);
  const sorted = times.slice(0, heard).toSorted();
  const at = (index: number): number => sorted[index] ?? Number.NaN;
  tell({ what: 'round', heard, firstMs: at(0), medianMs: at(heard >> 1), lastMs: at(heard - 1), bytes });
}

function beginRound(): void {
  times = new Float64Array(clients.length);
  heard = 0;
  late = setTimeout(endRound, quietMsMax);
  tell({ what: 'ready' });
}

/** What an agent subscribes to: the broadcasts it follows, what is for it alone, and its inbox. */
async function open({ port, connections, users }: Plan): Promise<void> {
  const known = users.map(({ host, jwt, seed }) => ({ host, jwt, key: privateKeyOf(seed) }));
  let next = 0;
  const opener = async (): Promise<void> => {
    while (next < connections) {
      const number = (next += 1);
      const user = known[number % known.length];
      if (user === undefined) throw new Error('no users');
      const [down = ''] = hostMaySubscribe(user.host);
      const subjects = [revocations, fleet('policy'), down, `${inboxPrefix(user.host)}.${number}.>`];
      clients.push(
        await WireClient.open(port, user, subjects, (message) => hear(message.subject, message.bytes.length)),
      );
    }
  };
  await Promise.all(Array.from({ length: openingAtOnce }, opener));
  tell({ what: 'up', connections: clients.length });
}

process.on('message', (asked: Plan | 'round') => {
  if (asked === 'round') beginRound();
  else
    open(asked).catch((error: unknown) => {
      console.error(error);
      process.exit(1);
    });
});
// Whoever asks has gone.
process.on('disconnect', () => process.exit(0));
