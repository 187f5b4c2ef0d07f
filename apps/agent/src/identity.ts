// Owns who this host is: its key files, and what enrolment told it. The private keys never leave this folder.
import { chmod, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { generateUserKey, type UserKey } from '@custody/bus/trust';
import { CustodyError } from '@custody/core/errors';
import { loadOrCreateSeed, writeFileAtomic } from '@custody/crypto/keyfiles';
import {
  generateSealingKeySeed,
  generateSigningKeySeed,
  sealingKeyFromSeed,
  signingKeyFromSeed,
  type SealingKey,
  type SigningKey,
} from '@custody/crypto/keys';
import { sodiumReady } from '@custody/crypto/sodium';
import { call } from '@custody/wire/client';
import { enrolmentStatement } from '@custody/wire/enrolment';
import { parseJson } from '@custody/wire/schema';
import { requireNotBanned } from './ban.ts';

const enrolled = z.strictObject({
  url: z.string(),
  hostId: z.string(),
  name: z.string(),
  busJwt: z.string(),
  busServers: z.array(z.string()),
  controlPlaneKey: z.string(),
});

export interface Identity extends z.infer<typeof enrolled> {
  readonly signingKey: SigningKey;
  readonly sealingKey: SealingKey;
  /** The nkey seed that answers nats-server's challenge. */
  readonly busSeed: string;
}

export interface EnrollOptions {
  readonly dataDir: string;
  readonly url: string;
  readonly token: string;
  readonly name: string | undefined;
  readonly containment: 'cgroup' | 'subreaper' | 'kqueue';
  readonly version: string;
}

const identityFile = 'identity.json';

/**
 * Makes the keys, asks the control plane, keeps its answer. Throws `conflict` where a host lives in the
 * folder already: its ledger is another chain.
 */
export async function enroll(options: EnrollOptions): Promise<{ hostId: string; name: string }> {
  const { dataDir, url, token } = options;
  await mkdir(dataDir, { recursive: true, mode: 0o700 });
  await chmod(dataDir, 0o700);
  await requireNoHost(dataDir);
  const keys = await loadKeys(dataDir);
  const said = {
    token,
    signingKey: keys.signingKey.publicKey,
    sealingKey: keys.sealingKey.publicKey,
    busUserKey: keys.busUserKey,
  };
  const proof = Buffer.from(keys.signingKey.sign(enrolmentStatement(said))).toString('base64url');
  const { containment, version: agentVersion, name } = options;
  const answer = await call({ url }, 'enroll', {
    body: { ...said, proof, containment, agentVersion, ...(name === undefined ? {} : { name }) },
  });
  const record = { url, ...answer };
  await writeFileAtomic(
    join(dataDir, identityFile),
    new TextEncoder().encode(JSON.stringify(record, null, 2)),
    0o600,
  );
  return { hostId: answer.hostId, name: answer.name };
}

async function requireNoHost(dataDir: string): Promise<void> {
  await requireNotBanned(dataDir);
  const found = await loadIdentity(dataDir).catch((error: unknown) => {
    if (error instanceof CustodyError && error.code === 'not_found') return undefined;
    throw error;
  });
  if (found === undefined) return;
  throw new CustodyError('conflict', `${dataDir} is the folder of ${found.name}, enrolled already`, {
    next: 'enrol into another folder with --data; this one holds the ledger and the keys of that host',
  });
}

/** Throws `not_found` when this host has not been enrolled. */
export async function loadIdentity(dataDir: string): Promise<Identity> {
  const path = join(dataDir, identityFile);
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw new CustodyError('not_found', `this host is not enrolled: there is no ${path}`, {
      next: 'custody agent enroll --url URL --token TOKEN',
      cause,
    });
  }
  const record = parseJson(enrolled, bytes, path);
  const { signingKey, sealingKey, busSeed } = await loadKeys(dataDir);
  return { ...record, signingKey, sealingKey, busSeed };
}

async function loadKeys(dataDir: string) {
  await sodiumReady();
  const signing = await loadOrCreateSeed(join(dataDir, 'keys', 'signing.seed'), generateSigningKeySeed);
  const sealing = await loadOrCreateSeed(join(dataDir, 'keys', 'sealing.seed'), generateSealingKeySeed);
  const bus = await loadBusKey(join(dataDir, 'keys', 'bus.nkey'));
  return {
    signingKey: signingKeyFromSeed(signing),
    sealingKey: sealingKeyFromSeed(sealing),
    busSeed: bus.seed,
    busUserKey: bus.publicKey,
  };
}

/** The file holds the nkey seed and the public key, a line each. */
async function loadBusKey(path: string): Promise<UserKey> {
  try {
    const [seed = '', publicKey = ''] = (await readFile(path, 'ascii')).split('\n');
    return { seed, publicKey };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    const made = generateUserKey();
    await writeFileAtomic(path, Buffer.from(`${made.seed}\n${made.publicKey}\n`), 0o600);
    return made;
  }
}
