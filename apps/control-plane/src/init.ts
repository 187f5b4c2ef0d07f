// Owns the making of an installation's roots: trust of the bus, keys, the first operator's token, nats-server's configuration.
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { createTrust, serverConfig, type Trust } from '@custody/bus/trust';
import { busMessageBytesMax } from '@custody/core/limits';
import { loadOrCreateSeed, writeFileAtomic } from '@custody/crypto/keyfiles';
import { generateSigningKeySeed } from '@custody/crypto/keys';
import { newToken } from '@custody/crypto/tokens';
import { fileNames, type InitConfig } from './config.ts';

/** Makes what is missing and touches nothing that exists, but for nats-server's configuration, which follows the flags. */
export async function init(config: InitConfig): Promise<void> {
  const { dir } = config;
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const trustPath = join(dir, fileNames.trust);
  if (!(await exists(trustPath))) await write(trustPath, JSON.stringify(await createTrust()));
  await loadOrCreateSeed(join(dir, fileNames.signing), generateSigningKeySeed);
  await loadOrCreateSeed(join(dir, fileNames.kek), () => randomBytes(32));
  const tokenPath = join(dir, fileNames.operatorToken);
  if (!(await exists(tokenPath))) await write(tokenPath, `${newToken('cst')}\n`);
  const trust = JSON.parse(await readFile(trustPath, 'utf8')) as Trust;
  await write(
    join(dir, fileNames.nats),
    serverConfig(trust, {
      host: config.natsHost,
      port: config.natsPort,
      storeDir: config.natsStoreDir,
      resolverDir: config.natsResolverDir,
      maxPayloadBytes: busMessageBytesMax,
      serverName: 'custody',
    }),
  );
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

function write(path: string, text: string): Promise<void> {
  return writeFileAtomic(path, new TextEncoder().encode(text), 0o600);
}
