// Owns the proof of the beacon: signed, of the database’s own time, never past a revocation under way; and of the log’s name.
import { revokedBound } from '@custody/core/freshness';
import { beaconIntervalMs } from '@custody/core/limits';
import { verifyJws } from '@custody/crypto/jws';
import { logHead, renewLog } from '@custody/store/revocation-log';
import { revoke } from '@custody/store/revocations';
import { withDatabase } from '@custody/testkit/database';
import {
  beaconBroadcast,
  beaconClaims,
  headClaims,
  revocationClaims,
  signedTypes,
  type BeaconClaims,
} from '@custody/wire/messages';
import { parseJson } from '@custody/wire/schema';
import { fleet } from '@custody/wire/subjects';
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { Beacon } from '../src/beacon.ts';
import {
  captureLog,
  enrol,
  grantRequest,
  issuePolicy,
  ownEntries,
  sceneOf,
  until,
  type Scene,
} from './support.ts';

const t = withDatabase();
let s: Scene;

beforeEach(async () => {
  s = await sceneOf(t.database);
});

/** As much of a bus as a beacon uses. */
class Air {
  connected = true;
  readonly heard: Uint8Array[] = [];

  publish(subject: string, data: Uint8Array): void {
    expect(subject).toBe(fleet('beacon'));
    this.heard.push(data);
  }
}

function lit(air: Air): { beacon: Beacon; log: () => string } {
  const { log, text } = captureLog();
  const beacon = new Beacon({ db: t.database, authority: s.authority, bus: () => air, log });
  onTestFinished(() => beacon[Symbol.asyncDispose]());
  return { beacon, log: text };
}

async function read(data: Uint8Array | undefined): Promise<BeaconClaims> {
  const { beacon } = parseJson(beaconBroadcast, data ?? new Uint8Array(), 'test');
  return beaconClaims.parse(await verifyJws(s.authority.publicKey, signedTypes.beacon, beacon));
}

let hosts = 0;
async function granted(): Promise<string> {
  await s.policies.apply('operator', issuePolicy);
  await s.secrets.put('operator', 'prod/stripe', 'utf8', { api_key: 'v' });
  const host = await enrol(s, `fresh-${(hosts += 1)}`);
  const { grant } = await s.grants.decide(host.row, grantRequest());
  const claims = (await verifyJws(s.authority.publicKey, signedTypes.grant, grant)) as { grantId: string };
  return claims.grantId;
}

describe('a beacon', () => {
  it('says where the log stands, by the database’s clock, and says it again on a timer', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
    onTestFinished(() => void vi.useRealTimers());
    const air = new Air();
    const { beacon } = lit(air);
    const before = await logHead(t.database);
    beacon.nudge();
    await until(() => air.heard.length === 1);
    const first = await read(air.heard[0]);
    expect(first).toMatchObject({ log: before.id, epoch: before.epoch });
    expect(Date.parse(first.at)).toBeGreaterThanOrEqual(before.at.getTime());
    vi.advanceTimersByTime(beaconIntervalMs);
    await until(() => air.heard.length === 2);
    expect(Date.parse((await read(air.heard[1])).at)).toBeGreaterThanOrEqual(Date.parse(first.at));
  });

  it('is not sent while the bus is away', async () => {
    const air = new Air();
    air.connected = false;
    const { beacon } = lit(air);
    beacon.nudge();
    await beacon[Symbol.asyncDispose]();
    expect(air.heard).toEqual([]);
  });

  it('waits for a revocation that is under way, and then holds it: its time is older than that revocation’s end', async () => {
    const grantId = await granted();
    const air = new Air();
    const { beacon } = lit(air);
    const held = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    let epochMade = 0;
    const revoking = revoke(
      t.database,
      s.authority.author,
      { target: { kind: 'grant', id: grantId }, reason: 'leaked', createdBy: 'operator', slackMs: 0 },
      {
        now: () => s.time,
        sign: async (epoch) => {
          epochMade = epoch;
          held.resolve();
          await go.promise;
          return 'a.b.c';
        },
        entryFor: (epoch, at) =>
          s.authority.entry('revoked', at, {
            ...{ by: 'operator', epoch, reason: 'leaked' },
            target: { kind: 'grant', id: grantId },
          }),
        broadcastOf: () => ({ subject: 'x', payload: new Uint8Array() }),
      },
    );
    await held.promise;
    beacon.nudge();
    // It stands in line for the lock: the database says so.
    await until(async () => {
      const { rows } = await t.database.pool.query<{ waiting: string }>(
        `SELECT count(*) AS waiting FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
      );
      return Number(rows[0]?.waiting) === 1;
    });
    const { rows } = await t.database.pool.query<{ now: Date }>('SELECT clock_timestamp() AS now');
    expect(air.heard).toEqual([]);
    go.resolve();
    await revoking;
    await until(() => air.heard.length === 1);
    const { epoch, at } = await read(air.heard[0]);
    expect(epoch).toBe(epochMade);
    expect(Date.parse(at)).toBeLessThanOrEqual(rows[0]?.now.getTime() ?? 0);
    await t.database.prisma.revocationHit.deleteMany({ where: { epoch: BigInt(epochMade) } });
    await t.database.prisma.revocation.delete({ where: { epoch: BigInt(epochMade) } });
  });

  it('of two control planes is of one log and one clock', async () => {
    const [one, two] = [new Air(), new Air()];
    lit(one).beacon.nudge();
    await until(() => one.heard.length === 1);
    lit(two).beacon.nudge();
    await until(() => two.heard.length === 1);
    const [a, b] = [await read(one.heard[0]), await read(two.heard[0])];
    expect({ ...b, at: '' }).toEqual({ ...a, at: '' });
    expect(Date.parse(b.at)).toBeGreaterThanOrEqual(Date.parse(a.at));
  });
});

describe('a proof', () => {
  it('answers with the nonce it was asked with; one that was not asked for is not there', async () => {
    const { proof, head } = await s.revocations.after(0, 'n_00000001');
    const claims = headClaims.parse(await verifyJws(s.authority.publicKey, signedTypes.head, proof ?? ''));
    expect(claims).toMatchObject({ nonce: 'n_00000001', epoch: head });
    expect(await s.revocations.after(0)).not.toHaveProperty('proof');
  });
});

describe('a revocation', () => {
  it('of a strict grant is bounded by its freshness from when it was made', async () => {
    const grantId = await granted();
    const { receipts, createdAt } = await s.revocations.revoke(
      'operator',
      { kind: 'grant', id: grantId },
      'x',
    );
    const grant = await s.grants.story(grantId);
    expect(grant.freshness).toEqual({ kind: 'strict', ms: 300_000 });
    expect(receipts[0]?.boundAt).toBe(revokedBound(grant, new Date(createdAt)).toISOString());
    expect(Date.parse(receipts[0]?.boundAt ?? '')).toBeLessThan(grant.grantedAt.getTime() + grant.ceilingMs);
  });
});

describe('the log', () => {
  afterEach(async () => {
    const value = { id: 'log_00000001' };
    await t.database.prisma.meta.update({ where: { key: 'revocation_log' }, data: { value } });
  });

  it('that is renewed has another name, on record, and its entries say it', async () => {
    const grantId = await granted();
    const before = await logHead(t.database);
    const { epoch: plain } = await s.revocations.revoke('operator', { kind: 'grant', id: grantId }, 'x');
    const { from, epoch } = await renewLog(t.database, s.authority.author, 'log_00000002', (was, head) =>
      s.authority.entry('log_renewed', s.time, {
        from: was,
        to: 'log_00000002',
        epoch: head,
        reason: 'restored',
      }),
    );
    expect([from, epoch]).toEqual([before.id, plain]);
    expect(await logHead(t.database)).toMatchObject({ id: 'log_00000002', since: plain, epoch });
    expect((await ownEntries(s)).at(-1)).toMatchObject({
      kind: 'log_renewed',
      body: { from, to: 'log_00000002', epoch, reason: 'restored' },
    });
    await s.revocations.revoke('operator', { kind: 'grant', id: grantId }, 'x');
    const { entries } = await s.revocations.after(plain - 1);
    const claims = await Promise.all(
      entries.map(async (entry) =>
        revocationClaims.parse(await verifyJws(s.authority.publicKey, signedTypes.revocation, entry)),
      ),
    );
    expect(claims.map(({ log }) => log)).toEqual([undefined, 'log_00000002']);
  });
});
