// Holds what the tests of the control plane share: its parts over a real database, enrolled hosts, and a bus that can fail.
import type { Bus } from '@custody/bus/bus';
import { createTrust, generateUserKey, type Trust } from '@custody/bus/trust';
import {
  generateSealingKeySeed,
  sealingKeyFromSeed,
  signingKeyFromSeed,
  type SealingKey,
  type SigningKey,
} from '@custody/crypto/keys';
import { sodiumReady } from '@custody/crypto/sodium';
import { hashToken, newToken } from '@custody/crypto/tokens';
import { appendEntry, type Head } from '@custody/ledger/chain';
import { parseLine, type LedgerEntry } from '@custody/ledger/entry';
import type { JsonObject } from '@custody/ledger/canonical';
import type { Database } from '@custody/store/database';
import { hostById, type HostRow } from '@custody/store/hosts';
import { enrolmentStatement } from '@custody/wire/enrolment';
import type { BodyOf } from '@custody/wire/http';
import type { HostBody, HostKind } from '@custody/wire/ledger';
import type { GrantRequest } from '@custody/wire/messages';
import { randomBytes } from 'node:crypto';
import { pino } from 'pino';
import { Authority } from '../src/authority.ts';
import { Events } from '../src/events.ts';
import { Grants } from '../src/grants.ts';
import { Health } from '../src/health.ts';
import { Hosts } from '../src/hosts.ts';
import { Ledgers } from '../src/ledgers.ts';
import type { Log } from '../src/log.ts';
import { News } from '../src/news.ts';
import type { Parts } from '../src/parts.ts';
import { Policies } from '../src/policies.ts';
import { Revocations } from '../src/revocations.ts';
import { Secrets } from '../src/secrets.ts';

export const kek = new Uint8Array(32).fill(3);
export const signingSeed = new Uint8Array(32).fill(9);
export const canary = 'sk_live_canary_0123456789';
export const issuePolicy = `@id("anyone-may-hold-prod")
@ceiling("15m")
permit (principal, action == Action::"hold", resource in Folder::"prod");
`;

export function captureLog(): { log: Log; text: () => string } {
  const lines: string[] = [];
  const log = pino({ level: 'debug', base: null }, { write: (line: string) => void lines.push(line) });
  return { log, text: () => lines.join('') };
}

export interface Scene extends Parts {
  readonly db: Database;
  readonly authority: Authority;
  readonly trust: Trust;
  readonly news: News;
  readonly log: () => string;
  readonly nudges: () => number;
  /** What time it is; a test may set it. */
  time: Date;
  bus: Bus | undefined;
}

let trust: Promise<Trust> | undefined;

export async function sceneOf(db: Database): Promise<Scene> {
  await sodiumReady();
  trust ??= createTrust();
  const { log, text } = captureLog();
  const authority = new Authority(signingSeed, () => 1_000);
  const news = new News();
  let nudges = 0;
  const now = (): Date => made.time;
  const newId = (prefix: string): string => `${prefix}_${randomBytes(12).toString('hex')}`;
  const nudgeOutbox = (): void => void (nudges += 1);
  const secrets = new Secrets({ db, authority, kek, now });
  const policies = new Policies({ db, authority, now, nudgeOutbox });
  const hosts = new Hosts({
    db,
    authority,
    trust: await trust,
    busServers: ['nats://127.0.0.1:4222'],
    now,
    newId,
  });
  const grants = new Grants({ db, authority, policies, secrets, now, newId });
  const revocations = new Revocations({ db, authority, hosts, news, now, nudgeOutbox });
  const ledgers = new Ledgers({ db, authority, news, now, log });
  const health = new Health({ db, bus: () => made.bus, grants, policies, revocations, version: '0.1.0' });
  const events = new Events({ db, news, log });
  const parts: Parts = { secrets, policies, hosts, grants, revocations, ledgers, events, health };
  const made: Scene = {
    ...parts,
    ...{ db, authority, trust: await trust, news, log: text, nudges: () => nudges },
    time: new Date('2026-11-22T09:30:00.000Z'),
    bus: undefined,
  };
  return made;
}

/** A host with its private halves, and the chain that it grows. */
export class TestHost {
  readonly row: HostRow;
  readonly signing: SigningKey;
  readonly sealing: SealingKey;
  #head: Head | undefined;

  constructor(row: HostRow, signing: SigningKey, sealing: SealingKey) {
    this.row = row;
    this.signing = signing;
    this.sealing = sealing;
  }

  /** The next line of its chain, with its line feed. */
  write<Kind extends HostKind>(
    kind: Kind,
    body: HostBody<Kind>,
    { at, bootMs } = { at: new Date('2026-11-22T09:30:01.000Z'), bootMs: 5 },
  ): string {
    const fields = {
      host: this.row.id,
      at: at.toISOString(),
      boot_ms: bootMs,
      kind,
      body: body as unknown as JsonObject,
    };
    const { line, head } = appendEntry(this.#head, fields, this.signing);
    this.#head = head;
    return Buffer.from(line).toString();
  }

  note(openRuns: number): string {
    return this.write('agent_started', { version: '0.1.0', openRuns });
  }

  /** Forgets the last entries: what it writes next is another history. */
  rewindTo(line: string): void {
    const { entry, hash } = parseLine(line);
    this.#head = { epoch: entry.epoch, seq: entry.seq, hash };
  }
}

export function enrolmentBody(
  token: string,
  name: string | undefined,
): { body: BodyOf<'enroll'>; signing: SigningKey; sealing: SealingKey } {
  const signing = signingKeyFromSeed(randomBytes(32));
  const sealing = sealingKeyFromSeed(generateSealingKeySeed());
  const said = {
    token,
    signingKey: signing.publicKey,
    sealingKey: sealing.publicKey,
    busUserKey: generateUserKey().publicKey,
  };
  const proof = Buffer.from(signing.sign(enrolmentStatement(said))).toString('base64url');
  const body: BodyOf<'enroll'> = {
    ...said,
    proof,
    containment: 'subreaper',
    agentVersion: '0.1.0',
    ...(name === undefined ? {} : { name }),
  };
  return { body, signing, sealing };
}

export async function enrol(s: Scene, name: string, labels: Record<string, string> = {}): Promise<TestHost> {
  const { token } = await s.hosts.createToken('operator', { name, labels });
  const { body, signing, sealing } = enrolmentBody(token, undefined);
  const { hostId } = await s.hosts.enroll(body);
  const row = await hostById(s.db, hostId);
  if (row === undefined) throw new Error('the host was not recorded');
  return new TestHost(row, signing, sealing);
}

export async function tokenFor(
  db: Database,
  role: string,
  more: { expiresAt?: Date; revokedAt?: Date } = {},
): Promise<string> {
  const token = newToken('cst');
  const id = `a_${randomBytes(12).toString('hex')}`;
  await db.prisma.apiToken.create({
    data: {
      id,
      hash: Uint8Array.from(hashToken(token)),
      subject: `a-${role}`,
      role,
      createdAt: new Date(0),
      ...more,
    },
  });
  return token;
}

let requests = 0;

export function grantRequest(more: Partial<GrantRequest> = {}): GrantRequest {
  requests += 1;
  const id = String(requests).padStart(8, '0');
  return {
    version: 1,
    requestId: `q_${id}`,
    runId: `r_${id}`,
    uid: 1000,
    gid: 1000,
    pid: 4242,
    command: ['node', 'agent.js'],
    cwd: '/srv',
    credentials: [{ name: 'KEY', path: 'prod/stripe', field: 'api_key' }],
    containment: 'subreaper',
    ...more,
  };
}

/** The control plane's own chain, in its order. */
export async function ownEntries(s: Scene): Promise<LedgerEntry[]> {
  const entries: LedgerEntry[] = [];
  for (;;) {
    const afterSeq = entries.at(-1)?.seq ?? 0;
    const lines = await s.ledgers.chain(s.authority.author, 1, afterSeq);
    if (lines.length === 0) return entries;
    entries.push(...lines.map(({ line }) => parseLine(line).entry));
  }
}

/** Resolves when `condition` holds. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const startedMs = performance.now();
  while (!(await condition())) {
    if (performance.now() - startedMs > 5_000) throw new Error(`never came about: ${condition.toString()}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

export function hexOf(text: string): string {
  return Buffer.from(text).toString('hex');
}
