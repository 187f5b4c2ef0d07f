// Owns the file that says up to where the revocation log has been applied on this host, and which log that is.
import { readFile } from 'node:fs/promises';
import { CustodyError } from '@custody/core/errors';
import { writeFileAtomic } from '@custody/crypto/keyfiles';

export interface Cursor {
  readonly epoch: number;
  /** Undefined where an agent left the file that knew of one log only. */
  readonly log: string | undefined;
  /** The epoch at which that log was begun anew: later entries name it. Undefined where it never was. */
  readonly since: number | undefined;
}

const line = /^(\d{1,15})(?: ([a-z]{1,8}_[A-Za-z0-9]{8,40}) (first|\d{1,15}))?\n$/;

/** Undefined where this host has never reached the control plane. */
export async function readCursor(path: string): Promise<Cursor | undefined> {
  try {
    const text = await readFile(path, 'utf8');
    const [, epoch, log, since = 'first'] = line.exec(text) ?? [];
    if (epoch === undefined) throw new CustodyError('internal', `${path} holds no revocation epoch`);
    return { epoch: Number(epoch), log, since: since === 'first' ? undefined : Number(since) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

export async function writeCursor(path: string, { epoch, log, since }: Cursor): Promise<void> {
  const named = log === undefined ? '' : ` ${log} ${since ?? 'first'}`;
  await writeFileAtomic(path, new TextEncoder().encode(`${epoch}${named}\n`), 0o600);
}
