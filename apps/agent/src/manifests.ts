// Owns the memory of manifests: what each asked for when it last had its way, so that more of it is said aloud.
import { readFile } from 'node:fs/promises';
import { manifestsRememberedMax, ttlMsMax } from '@custody/core/limits';
import { deliveries } from '@custody/core/policy';
import { durationMs } from '@custody/core/duration';
import { writeFileAtomic } from '@custody/crypto/keyfiles';
import type { Manifest, Section } from '@custody/wire/manifest';
import { z } from 'zod';
import type { Log } from './log.ts';

interface Seen {
  readonly asks: readonly string[];
  readonly ttlMs: number;
}

const file = z.array(z.tuple([z.string(), z.strictObject({ asks: z.array(z.string()), ttlMs: z.number() })]));
const linesShown = 8;

export interface Asking {
  readonly path: string;
  readonly content: Manifest;
}

/** Kept per user and path. What cannot be read or written is forgotten: it only costs a line on somebody's stderr. */
export class Manifests {
  readonly #path: string;
  readonly #log: Log;
  readonly #seen: Map<string, Seen>;
  #writing: Promise<void> = Promise.resolve();

  private constructor(path: string, log: Log, seen: Map<string, Seen>) {
    this.#path = path;
    this.#log = log;
    this.#seen = seen;
  }

  static async open(path: string, log: Log): Promise<Manifests> {
    try {
      return new Manifests(path, log, new Map(file.parse(JSON.parse(await readFile(path, 'utf8')))));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        log.warn({ err: error }, 'what manifests asked for is forgotten');
      return new Manifests(path, log, new Map());
    }
  }

  /** A run of that manifest has its way: the lines to say about it. */
  granted(uid: number, asking: Asking | undefined): string[] {
    if (asking === undefined) return [];
    const lines = this.growth(uid, asking);
    this.remember(uid, asking);
    return lines;
  }

  /** What it asks for beyond what it did when it last had its way, as lines for a person; none the first time. */
  growth(uid: number, asking: Asking): string[] {
    const before = this.#seen.get(keyOf(uid, asking));
    if (before === undefined) return [];
    const now = seenIn(asking.content);
    const more = now.asks.filter((each) => !before.asks.includes(each));
    if (now.ttlMs > before.ttlMs) more.push('a longer ttl');
    if (more.length === 0) return [];
    const hidden = more.length - linesShown;
    return [
      `${asking.path} asks for more than last time: ${more.slice(0, linesShown).join(', ')}${hidden > 0 ? ` and ${hidden} more` : ''}`,
    ];
  }

  /** It had its way: this is what the next one is compared with. */
  remember(uid: number, asking: Asking): void {
    const key = keyOf(uid, asking);
    const now = seenIn(asking.content);
    const same = JSON.stringify(this.#seen.get(key)) === JSON.stringify(now);
    this.#seen.delete(key); // the newest stands last
    this.#seen.set(key, now);
    if (same) return;
    for (const oldest of this.#seen.keys()) {
      if (this.#seen.size <= manifestsRememberedMax) break;
      this.#seen.delete(oldest);
    }
    const bytes = Buffer.from(JSON.stringify([...this.#seen]));
    this.#writing = this.#writing
      .then(() => writeFileAtomic(this.#path, bytes, 0o600))
      .catch((error: unknown) =>
        this.#log.warn({ err: error }, 'what a manifest asks for is not remembered'),
      );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing;
  }
}

function keyOf(uid: number, { path }: Asking): string {
  return `${uid}:${path}`;
}

function seenIn(manifest: Manifest): Seen {
  const sections: [string, Section][] = [['', manifest], ...Object.entries(manifest.commands ?? {})];
  const asks = sections.flatMap(([command, section]) => {
    const where = command === '' ? '' : ` for ${command}`;
    const held = deliveries.flatMap((deliver) =>
      Object.values(section[deliver] ?? {}).map((reference) => `${reference} by ${deliver}${where}`),
    );
    return [
      ...held,
      ...(section.keep ?? []).map((name) => `${name} of your environment${where}`),
      ...(section.onExit === 'wait' ? [`on-exit wait${where}`] : []),
    ];
  });
  if (manifest.clean !== true && manifest.keep === undefined) asks.push('your whole environment');
  if (manifest.scrub !== true && manifest.scrubAlso === undefined)
    asks.push('credentials in your environment');
  // Without one, a run lasts as long as the policy allows.
  const ttls = sections.map(([command, { ttl }]) => durationMs(ttl ?? '') ?? (command === '' ? ttlMsMax : 0));
  return { asks: [...new Set(asks)].toSorted(), ttlMs: Math.max(...ttls) };
}
