// Owns the proof that the database knows which grants a revocation hits exactly as libs/core does, and looks at living ones only.
import { hits, keyOf, stands, type GrantFacts, type RevocationTarget } from '@custody/core/revocation';
import { withDatabase } from '@custody/testkit/database';
import fc from 'fast-check';
import { beforeEach, describe, expect, test } from 'vitest';
import { hitMember, live, revokedAround } from '../src/hits.ts';
import { owedReceipts, previewHits } from '../src/revocations.ts';

const t = withDatabase();
const now = new Date('2026-11-22T10:00:00.000Z');
const slackMs = 2_500;
const hosts = ['h_00000001', 'h_00000002'];
const paths = ['prod', 'prod/a', 'prod/a/b', 'prod/ab', 'test/a'];

interface Grant extends GrantFacts {
  /** Which of the earlier ones it stands in. */
  readonly parent: number | undefined;
  readonly ended: boolean;
  /** How long ago its ceiling passed; negative: that is to come. */
  readonly overMs: number;
  readonly epoch: number;
}

beforeEach(async () => {
  const { prisma } = t.database;
  await prisma.$executeRawUnsafe(
    'TRUNCATE hosts, grants, revocations, revocation_hits, secrets, policy_revisions CASCADE',
  );
  for (const id of hosts) {
    const keys = { signingKey: 'k', sealingKey: 'k', busUserKey: 'k' };
    await prisma.host.create({ data: { id, name: id.replace('_', '-'), ...keys, enrolledAt: now } });
  }
  for (const path of paths) await prisma.secret.create({ data: { path, createdAt: now, lastVersion: 3 } });
  for (const revision of [1, 2, 3])
    await prisma.policyRevision.create({ data: { revision, text: '', createdAt: now, createdBy: 'x' } });
});

async function write(grants: readonly Grant[]): Promise<void> {
  await t.database.prisma.grant.createMany({
    data: grants.map((grant) => {
      const { grantId, runId, hostId, subject, credentials, policyRevision, parent, ended, overMs, epoch } =
        grant;
      const ceilingMs = 60_000;
      const ceilingAt = new Date(now.getTime() - overMs);
      return {
        ...{ id: grantId, runId, hostId, subject, policyRevision, ceilingMs, ceilingAt },
        ...{ uid: 1, pid: 1, command: ['x'], cwd: '/', policyIds: [], containment: 'subreaper', jws: 'x' },
        credentials: credentials.map((each) => ({ ...each, name: 'K', field: 'f' })),
        paths: [...new Set(credentials.map(({ path }) => path))],
        grantedAt: new Date(ceilingAt.getTime() - ceilingMs),
        freshness: { kind: 'best_effort' },
        parentGrant: parent === undefined ? null : (grants[parent]?.grantId ?? null),
        epoch: BigInt(epoch),
        endedAt: ended ? now : null,
      };
    }),
  });
}

const idOf = (prefix: string, n: number): string => `${prefix}_${String(n).padStart(8, '0')}`;
const subjects = ['h-00000001/1', 'h-00000001/10', 'h-00000002/1'];
const anyGrants = fc
  .array(
    fc.record({
      host: fc.nat({ max: 1 }),
      subject: fc.constantFrom(...subjects),
      credentials: fc.array(
        fc.record({ path: fc.constantFrom(...paths), version: fc.integer({ min: 1, max: 3 }) }),
        { maxLength: 3 },
      ),
      policyRevision: fc.integer({ min: 1, max: 3 }),
      parent: fc.option(fc.nat({ max: 30 }), { nil: undefined }),
      ended: fc.boolean(),
      overMs: fc.constantFrom(-60_000, 0, slackMs - 1, slackMs, slackMs + 1, 3_600_000),
      epoch: fc.nat({ max: 5 }),
    }),
    { minLength: 1, maxLength: 25 },
  )
  .map((rows) =>
    rows.map(({ host, parent, ...row }, index): Grant => ({
      ...row,
      ...{ grantId: idOf('g', index), runId: idOf('r', index), hostId: hosts[host] ?? '' },
      parent: parent === undefined || index === 0 ? undefined : parent % index,
    })),
  );
const someone = fc.nat({ max: 24 });
const anyTarget: fc.Arbitrary<RevocationTarget> = fc.oneof(
  someone.map((n) => ({ kind: 'grant', id: idOf('g', n) }) as const),
  someone.map((n) => ({ kind: 'run', id: idOf('r', n) }) as const),
  fc.constantFrom(...hosts).map((id) => ({ kind: 'host', id, name: 'x' }) as const),
  fc.constantFrom(...subjects).map((subject) => ({ kind: 'subject', subject }) as const),
  fc.constantFrom(...paths).map((path) => ({ kind: 'secret', path }) as const),
  fc
    .tuple(fc.constantFrom(...paths), fc.integer({ min: 1, max: 3 }))
    .map(([path, version]) => ({ kind: 'secret', path, version }) as const),
  fc.constantFrom(...paths, 'prod/a/b/c').map((path) => ({ kind: 'prefix', path }) as const),
  fc.integer({ min: 1, max: 3 }).map((revision) => ({ kind: 'policy_revision', revision }) as const),
  fc.constant({ kind: 'all' } as const),
);

function around(grants: readonly Grant[], grant: Grant): Grant[] {
  const outer = grant.parent === undefined ? undefined : grants[grant.parent];
  return outer === undefined ? [] : [outer, ...around(grants, outer)];
}

const exists = (grants: readonly Grant[], target: RevocationTarget): boolean =>
  (target.kind !== 'grant' && target.kind !== 'run') ||
  grants.some(({ grantId, runId }) => target.id === grantId || target.id === runId);

async function clear(): Promise<void> {
  await t.database.prisma.$executeRawUnsafe('TRUNCATE grants, revocations, revocation_hits CASCADE');
}

describe('which grants are hit', () => {
  test('the database and the pure function agree, over whatever grants in whatever grants', async () => {
    let hit = 0;
    const property = fc.asyncProperty(
      anyGrants,
      fc.array(anyTarget, { minLength: 6 }),
      async (grants, targets) => {
        await clear();
        await write(grants);
        for (const target of targets.filter((each) => exists(grants, each))) {
          const expected = grants
            .filter(({ ended, overMs }) => !ended && overMs < slackMs)
            .filter((grant) => hits(target, { ...grant, within: around(grants, grant) }))
            .map(({ grantId }) => grantId);
          const found = await previewHits(t.database, target, { now, slackMs });
          expect(found.hits.map(({ grantId }) => grantId).toSorted()).toEqual(expected);
          expect([found.grants, found.hosts.reduce((sum, each) => sum + each.grants, 0)]).toEqual([
            expected.length,
            expected.length,
          ]);
          hit += expected.length;
        }
      },
    );
    await fc.assert(property, { numRuns: 60, endOnFailure: true });
    expect(hit).toBeGreaterThan(100);
  }, 60_000);

  test('and so they do for what a run inside must not outlive', async () => {
    let refused = 0;
    const property = fc.asyncProperty(
      anyGrants,
      fc.array(anyTarget, { maxLength: 6 }),
      async (grants, targets) => {
        await clear();
        await write(grants);
        const log = targets.map((target, index) => ({ target, epoch: index + 1 }));
        await t.database.prisma.revocation.createMany({
          data: log.map(({ target, epoch }) => ({
            ...{ epoch: BigInt(epoch), targetKind: target.kind, target: keyOf(target), claim: { ...target } },
            ...{ reason: 'r', createdAt: now, createdBy: 'x', signed: 'x', standing: stands(target) },
          })),
        });
        for (const grant of grants) {
          const outers = [grant, ...around(grants, grant)];
          const expected = log.find(({ target, epoch }) =>
            outers.some((outer) => epoch > outer.epoch && hits(target, { ...outer, within: [] })),
          );
          const { rows } = await t.database.pool.query<{ epoch: string }>(revokedAround, [grant.grantId]);
          expect(rows.map(({ epoch }) => Number(epoch))).toEqual(
            expected === undefined ? [] : [expected.epoch],
          );
          refused += rows.length;
        }
      },
    );
    await fc.assert(property, { numRuns: 40, endOnFailure: true });
    expect(refused).toBeGreaterThan(50);
  }, 60_000);
});

describe('with 100,000 grants that are over and 50 that live', () => {
  beforeEach(async () => {
    await t.database.pool.query(
      `INSERT INTO grants (id, run_id, host_id, uid, pid, subject, command, cwd, credentials, paths, policy_revision,
                           policy_ids, ceiling_ms, granted_at, containment, freshness, epoch, jws, ceiling_at, ended_at)
       SELECT 'g_' || lpad(n::text, 8, '0'), 'r_' || lpad(n::text, 8, '0'), $1, 1, 1, 's/1', '{x}', '/',
              '[{"path":"prod/a","version":1}]', '{prod/a}', 1, '{}', 60000, $2::timestamptz, 'subreaper', '{}', 0, 'x',
              $2::timestamptz + interval '1 minute', CASE WHEN n <= 50 THEN NULL ELSE $2::timestamptz END
         FROM generate_series(1, 100050) AS n`,
      [hosts[0], now],
    );
    await t.database.pool.query('ANALYZE grants');
  });

  const targets: RevocationTarget[] = [
    { kind: 'all' },
    { kind: 'host', id: 'h_00000001', name: 'x' },
    { kind: 'secret', path: 'prod/a' },
    { kind: 'prefix', path: 'prod' },
    { kind: 'policy_revision', revision: 1 },
    { kind: 'subject', subject: 's/1' },
  ];

  test('a revocation reads the living ones, whatever its target', async () => {
    for (const target of targets) {
      const { sql, values } = hitMember(target, { now, slackMs });
      const { rows } = await t.database.pool.query<{ 'QUERY PLAN': [{ Plan: Plan }] }>(
        `EXPLAIN (ANALYZE, FORMAT JSON) WITH RECURSIVE ${sql} SELECT id FROM hit`,
        values,
      );
      const plan = rows[0]?.['QUERY PLAN'][0].Plan;
      if (plan === undefined) throw new Error('no plan');
      expect([target, plan['Actual Rows']]).toEqual([target, 50]);
      const scans = nodesOf(plan).filter((node) => node['Relation Name'] === 'grants');
      expect(scans.length).toBeGreaterThan(0);
      const read = scans.map((scan) => (scan['Actual Rows'] ?? 0) + (scan['Rows Removed by Filter'] ?? 0));
      expect([target, Math.max(...read) <= 50]).toEqual([target, true]);
    }
  });

  test('the count of the living does too', async () => {
    const { rows } = await t.database.pool.query<{ 'QUERY PLAN': string }>(
      `EXPLAIN SELECT count(*) FROM grants g WHERE ${live('g', '$1', '$2')}`,
      [now, slackMs],
    );
    expect(rows.map((row) => row['QUERY PLAN']).join('\n')).toContain('grants_live_idx');
  });
});

interface Plan {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Actual Rows'?: number;
  readonly 'Rows Removed by Filter'?: number;
  readonly Plans?: readonly Plan[];
}

function nodesOf(plan: Plan): Plan[] {
  return [plan, ...(plan.Plans ?? []).flatMap(nodesOf)];
}

test('a receipt is owed by a host that was heard of, for a grant not ended, once, under its newest revocation', async () => {
  const { prisma } = t.database;
  const base = {
    subject: 's/1',
    credentials: [],
    policyRevision: 1,
    parent: undefined,
    overMs: -1_000,
    epoch: 0,
  };
  const grants = [0, 1, 2, 3].map((n): Grant => ({
    ...base,
    ...{ grantId: idOf('g', n), runId: idOf('r', n), hostId: hosts[n === 3 ? 1 : 0] ?? '', ended: n === 1 },
  }));
  await write(grants);
  const early = new Date(now.getTime() - 10_000);
  for (const [epoch, createdAt] of [
    [1, early],
    [2, early],
    [3, now],
  ] as const) {
    await prisma.revocation.create({
      data: {
        ...{ epoch: BigInt(epoch), targetKind: 'all', target: '', claim: { kind: 'all' }, reason: 'r' },
        ...{ createdAt, createdBy: 'x', signed: 'x' },
      },
    });
  }
  const hit = [
    [1, 0],
    [2, 0],
    [1, 1],
    [3, 2],
    [1, 3],
  ] as const;
  await prisma.revocationHit.createMany({
    data: hit.map(([epoch, n]) => ({ epoch: BigInt(epoch), grantId: idOf('g', n) })),
  });
  await prisma.host.update({ where: { id: hosts[0] ?? '' }, data: { lastSeenAt: now } });
  const asked = { before: now, seenSince: early };
  expect(await owedReceipts(t.database, asked, 10)).toEqual([
    { hostId: hosts[0], grantId: idOf('g', 0), runId: idOf('r', 0), epoch: 2 },
  ]);
  const entry = {
    ...{ author: hosts[0] ?? '', chainEpoch: 1, kind: 'receipt', grantId: idOf('g', 0), at: now, bootMs: 1n },
    ...{ hash: new Uint8Array(32), bytes: new Uint8Array(), signature: new Uint8Array(64), ingestedAt: now },
  };
  await prisma.ledgerEntry.create({ data: { ...entry, seq: 1, body: { outcome: 'not_empty' } } });
  expect(await owedReceipts(t.database, asked, 10)).toHaveLength(1);
  await prisma.ledgerEntry.create({ data: { ...entry, seq: 2, body: { outcome: 'not_here' } } });
  expect(await owedReceipts(t.database, asked, 10)).toEqual([]);
});
