// Owns what this host does when it hears that it is banned: end, wipe, say so, and refuse from then on.
import { open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CustodyError } from '@custody/core/errors';
import { banEmptyMs } from '@custody/core/limits';
import { writeFileAtomic } from '@custody/crypto/keyfiles';
import { revocationClaims, type RevocationClaims } from '@custody/wire/messages';
import { encodeJson, parseJson } from '@custody/wire/schema';
import type { Link } from './link.ts';
import type { Log } from './log.ts';
import type { Runs } from './runs.ts';
import type { Spool } from './spool.ts';

export interface BanOptions {
  readonly dataDir: string;
  readonly hostId: string;
  readonly name: string;
  readonly runs: () => Pick<Runs, 'open' | 'whenNoneOpen'>;
  readonly link: () => Pick<Link, 'forgetPolicy'>;
  readonly spool: () => Pick<Spool, 'append'>;
  readonly log: Log;
}

const markFile = 'banned.json';
/** The identity goes first: without it nothing here takes the place of a missing key. */
const keyFiles = ['identity.json', 'keys/sealing.seed', 'keys/signing.seed', 'keys/bus.nkey'] as const;

/**
 * The mark is on disk before the revocation cursor passes the ban, so that no restart forgets it. The keys go once the trees are
 * empty: until then an agent that starts again must be able to write what became of them.
 */
export class Ban implements AsyncDisposable {
  readonly #options: BanOptions;
  readonly #stopping = new AbortController();
  #claims: RevocationClaims | undefined;
  #marked: Promise<void> = Promise.resolve();
  #carriedOut: Promise<void> | undefined;

  constructor(options: BanOptions) {
    this.#options = options;
  }

  /** What a run is told; undefined while this host is not banned. */
  get refusal(): CustodyError | undefined {
    return this.#claims === undefined ? undefined : bannedHost(this.#options.name, this.#claims);
  }

  /** Resolves when a ban that was heard is on disk. */
  get marked(): Promise<void> {
    return this.#marked;
  }

  /** From the link, after the runs were told. A ban of another host is none of its business. */
  heard(claims: RevocationClaims): void {
    const { target } = claims;
    if (target.kind !== 'host' || target.id !== this.#options.hostId || target.ban !== true) return;
    if (this.#claims !== undefined) return;
    this.#claims = claims;
    this.#options.log.error({ epoch: claims.epoch, reason: claims.reason }, 'this host was banned');
    this.#marked = writeFileAtomic(join(this.#options.dataDir, markFile), encodeJson(claims), 0o600);
    this.#carriedOut = this.#marked
      .then(() => this.#carryOut(claims))
      .catch((error: unknown) => this.#options.log.error({ err: error }, 'the ban could not be carried out'));
  }

  /** A ban that an earlier agent could not carry out to its end: the bus may not let this one hear of it again. */
  async resume(revoke: (claims: RevocationClaims) => void): Promise<void> {
    const claims = await readMark(this.#options.dataDir);
    if (claims === undefined) return;
    revoke(claims);
    this.heard(claims);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort();
    await this.#carriedOut;
  }

  async #carryOut({ epoch }: RevocationClaims): Promise<void> {
    const { dataDir, runs: runsOf, link, spool, log } = this.#options;
    const runs = runsOf();
    const { signal } = this.#stopping;
    const waited = delay(banEmptyMs, undefined, { signal }).catch(() => undefined);
    await Promise.race([runs.whenNoneOpen(), waited]);
    if (signal.aborted) return; // the next start finds the mark
    link().forgetPolicy();
    const openRuns = runs.open;
    // With trees that cannot be emptied the keys stay on disk, for the word about them.
    const wiped = openRuns === 0 ? await wipe(dataDir) : [];
    await spool().append('banned', { epoch, openRuns, wiped });
    log.error({ epoch, openRuns, wiped }, 'the ban was carried out; this host has to be enrolled again');
    if (openRuns === 0) return;
    await Promise.race([runs.whenNoneOpen(), aborted(signal)]);
    if (!signal.aborted) await wipe(dataDir);
  }
}

/** Throws where this folder's host was banned and has carried it out; finishes where it was interrupted in between. */
export async function requireNotBanned(dataDir: string): Promise<void> {
  const claims = await readMark(dataDir);
  if (claims === undefined || (await exists(join(dataDir, 'identity.json')))) return;
  await wipe(dataDir);
  const { target } = claims;
  throw bannedHost(target.kind === 'host' ? target.name : 'this host', claims);
}

/** The ban that this host has heard of, whether or not it was carried out. */
export async function readMark(dataDir: string): Promise<RevocationClaims | undefined> {
  try {
    const path = join(dataDir, markFile);
    return parseJson(revocationClaims, await readFile(path), path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

function bannedHost(name: string, { epoch, reason }: RevocationClaims): CustodyError {
  return new CustodyError('revoked', `${name} was banned (revocation ${epoch}: ${reason})`, {
    next: 'nothing runs here any more; ask an operator, who can have this machine enrolled again into an empty folder',
  });
}

/** Overwrites, then removes. Returns what was there. What a disk keeps of old blocks is beyond a program. */
async function wipe(dataDir: string): Promise<string[]> {
  const wiped: string[] = [];
  for (const name of keyFiles) {
    const path = join(dataDir, name);
    try {
      const file = await open(path, 'r+');
      try {
        const { size } = await file.stat();
        await file.write(Buffer.alloc(size), 0, size, 0);
        await file.sync();
      } finally {
        await file.close();
      }
      await rm(path);
      wiped.push(name);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  return wiped;
}

async function exists(path: string): Promise<boolean> {
  return readFile(path).then(
    () => true,
    () => false,
  );
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
