// Owns files that hold keys: written whole or not at all, readable by their owner alone.
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { link, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { CryptoError } from './errors.ts';
import { seedBytes } from './keys.ts';

/**
 * After it returns, the file holds `bytes` with `mode` and survives a crash; if it throws, the old file still
 * stands. A crash can leave a hidden `.name.….tmp` beside it. Throws what the file system throws.
 */
export async function writeFileAtomic(path: string, bytes: Uint8Array, mode: number): Promise<void> {
  await withTemporary(path, bytes, mode, (temporary) => rename(temporary, path));
}

/**
 * The file's bytes. Throws `key_file_missing`; `key_file_exposed` when group or others have any right to it, or
 * its owner is neither this user nor root; `key_file_bad_size` unless it has `sizeBytes`; `key_file_unreadable`.
 */
export async function readKeyFile(path: string, sizeBytes: number = seedBytes): Promise<Uint8Array> {
  // O_NONBLOCK: a FIFO of that name must not hang the start.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch((cause: unknown) => {
    if (errnoOf(cause) === 'ENOENT') {
      throw new CryptoError('key_file_missing', `read key file ${path}: there is none`, { cause });
    }
    throw new CryptoError('key_file_unreadable', `read key file ${path}: ${errnoOf(cause)}`, { cause });
  });
  try {
    const facts = await file.stat();
    if (!facts.isFile())
      throw new CryptoError('key_file_unreadable', `read key file ${path}: it is not a plain file`);
    if ((facts.mode & 0o077) !== 0) {
      const mode = (facts.mode & 0o777).toString(8).padStart(4, '0');
      throw new CryptoError(
        'key_file_exposed',
        `read key file ${path}: its mode is ${mode}, others can reach it; chmod it 0600 and replace the key if others may have read it`,
      );
    }
    requireOwnOrRoot(path, facts.uid);
    if (facts.size !== sizeBytes) {
      throw new CryptoError(
        'key_file_bad_size',
        `read key file ${path}: it has ${facts.size} bytes, not ${sizeBytes}`,
      );
    }
    const bytes = new Uint8Array(sizeBytes);
    const { bytesRead } = await file.read(bytes, 0, sizeBytes, 0);
    if (bytesRead === sizeBytes) return bytes;
    throw new CryptoError('key_file_bad_size', `read key file ${path}: it shrank while it was read`);
  } finally {
    await file.close();
  }
}

/**
 * The 32-byte seed in the file; where there is no file, `generate` makes one (0600, its folder 0700) and it is
 * durable before this returns. Two that start at once get the same seed. Throws as `readKeyFile`, and
 * `key_file_exposed` when group or others may write to the folder.
 */
export async function loadOrCreateSeed(path: string, generate: () => Uint8Array): Promise<Uint8Array> {
  try {
    await requirePrivateFolder(dirname(path));
    return await readKeyFile(path);
  } catch (error) {
    if (!(error instanceof CryptoError) || error.code !== 'key_file_missing') throw error;
  }
  const folder = dirname(path);
  const created = await mkdir(folder, { recursive: true, mode: 0o700 });
  if (created !== undefined) await syncFolder(dirname(created));
  await requirePrivateFolder(folder);
  const seed = generate();
  try {
    if (seed.byteLength !== seedBytes) {
      throw new CryptoError('bad_argument', `create key file ${path}: its seed has ${seed.byteLength} bytes`);
    }
    // link, not rename: it fails where another process has put its seed meanwhile.
    await withTemporary(path, seed, 0o600, async (temporary) => {
      await link(temporary, path).catch((cause: unknown) => {
        if (errnoOf(cause) !== 'EEXIST') throw cause;
      });
      await rm(temporary);
    });
  } finally {
    seed.fill(0);
  }
  return await readKeyFile(path);
}

async function withTemporary(
  path: string,
  bytes: Uint8Array,
  mode: number,
  place: (temporary: string) => Promise<void>,
): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${randomBytes(8).toString('hex')}.tmp`);
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(bytes);
      await file.chmod(mode); // The mode given to open is narrowed by the umask.
      await file.sync();
    } finally {
      await file.close();
    }
    await place(temporary);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncFolder(folder);
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function requirePrivateFolder(folder: string): Promise<void> {
  const facts = await stat(folder).catch((cause: unknown) => {
    if (errnoOf(cause) === 'ENOENT') {
      throw new CryptoError('key_file_missing', `open key folder ${folder}: there is none`, { cause });
    }
    throw new CryptoError('key_file_unreadable', `open key folder ${folder}: ${errnoOf(cause)}`, { cause });
  });
  if ((facts.mode & 0o022) !== 0) {
    throw new CryptoError(
      'key_file_exposed',
      `open key folder ${folder}: group or others may write to it and replace keys; chmod it 0700`,
    );
  }
  requireOwnOrRoot(folder, facts.uid);
}

function requireOwnOrRoot(path: string, uid: number): void {
  const own = process.geteuid?.() ?? uid;
  if (uid === own || uid === 0) return;
  throw new CryptoError(
    'key_file_exposed',
    `read key file ${path}: it belongs to uid ${uid}, not to ${own} or root`,
  );
}

function errnoOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
}
