// Owns the proof of the decision: grant and record together or neither, denials on record, and one order with revocations.
import { createHash } from 'node:crypto';
import { verifyJws } from '@custody/crypto/jws';
import { decodeFields } from '@custody/crypto/payload';
import { withDatabase } from '@custody/testkit/database';
import {
  grantClaims,
  revocationClaims,
  signedTypes,
  type GrantClaims,
  type GrantRequest,
} from '@custody/wire/messages';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  canary,
  enrol,
  grantRequest,
  issuePolicy,
  ownEntries,
  sceneOf,
  type Scene,
  type TestHost,
} from './support.ts';

const t = withDatabase();
let s: Scene;
let host: TestHost;

beforeAll(async () => {
  s = await sceneOf(t.database);
  host = await enrol(s, 'host-a', { env: 'prod' });
  await s.policies.apply('operator', issuePolicy);
  await s.secrets.put('operator', 'prod/stripe', 'utf8', { api_key: canary, other: 'second' });
  await s.secrets.put('operator', 'test/x', 'utf8', { a: 'b' });
});

async function decide(
  more: Partial<GrantRequest> = {},
): Promise<{ claims: GrantClaims; values: Record<string, string>; notes: string[] }> {
  const { grant, sealed, notes } = await s.grants.decide(host.row, grantRequest(more));
  const claims = grantClaims.parse(await verifyJws(s.authority.publicKey, signedTypes.grant, grant));
  const box = Buffer.from(sealed, 'base64');
  expect(claims.sealedSha256).toBe(createHash('sha256').update(box).digest('hex'));
  const fields = decodeFields(host.sealing.open(box));
  const values = Object.fromEntries(
    [...fields].map(([name, value]) => [name, Buffer.from(value).toString()]),
  );
  return { claims, values, notes };
}

const wanted = (path: string, field: string, name = 'KEY') => [{ name, path, field }];
const newest = async () => (await ownEntries(s)).at(-1);

describe('a grant', () => {
  it('answers its request, with the values sealed to its host, and stands on record', async () => {
    const request = grantRequest();
    const { claims, values, notes } = await decide(request);
    expect(claims).toMatchObject({
      requestId: request.requestId,
      runId: request.runId,
      hostId: host.row.id,
      subject: 'host-a/1000',
      ceilingMs: 900_000,
      policyIds: ['anyone-may-hold-prod'],
      credentials: [{ name: 'KEY', path: 'prod/stripe', field: 'api_key', version: 1 }],
    });
    expect(values).toEqual({ KEY: canary });
    expect(notes).toEqual([]);
    const entry = await newest();
    expect(entry).toMatchObject({ kind: 'granted', body: { grantId: claims.grantId, hostId: host.row.id } });
    expect(JSON.stringify(entry) + s.log()).not.toContain(canary);
    expect(await s.grants.get(claims.grantId)).toMatchObject({ state: 'granted', host: 'host-a' });
  });

  it('is clamped to the policy, and says so', async () => {
    const { claims, notes } = await decide({ ttlMs: 3_600_000 });
    expect(claims.ceilingMs).toBe(900_000);
    expect(notes).toEqual(['ttl 1h is more than the policy allows: the ceiling is 15m']);
    expect((await decide({ ttlMs: 2_000 })).claims.ceilingMs).toBe(2_000);
  });

  it('and its record are written together, or neither is', async () => {
    await t.database.pool.query(`
      CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
      CREATE TRIGGER refuse BEFORE INSERT ON ledger_entries FOR EACH ROW WHEN (NEW.kind = 'granted') EXECUTE FUNCTION refuse();`);
    const before = await t.database.prisma.grant.count();
    await expect(s.grants.decide(host.row, grantRequest())).rejects.toThrow();
    expect(await t.database.prisma.grant.count()).toBe(before);
    await t.database.pool.query('DROP TRIGGER refuse ON ledger_entries; DROP FUNCTION refuse();');
    await decide();
    expect(await t.database.prisma.grant.count()).toBe(before + 1);
  });

  it('of no credential at all holds nothing, and still has a ceiling', async () => {
    const { claims, values } = await decide({ credentials: [] });
    expect([claims.ceilingMs, claims.policyIds, values]).toEqual([900_000, [], {}]);
  });
});

describe('a denial', () => {
  it('names the missing permission, and is on record with its code', async () => {
    await expect(
      s.grants.decide(host.row, grantRequest({ credentials: wanted('test/x', 'a') })),
    ).rejects.toMatchObject({
      code: 'denied_by_policy',
      publicMessage: 'no policy (revision 1) permits LocalUser::"host-a/1000" to hold Secret::"test/x"',
    });
    expect(await newest()).toMatchObject({
      kind: 'denied',
      body: { subject: 'host-a/1000', error: { code: 'denied_by_policy' } },
    });
  });

  it('is no oracle: what is not permitted looks the same whether it is there or not', async () => {
    const told = async (path: string, field: string): Promise<string> => {
      const error: unknown = await s.grants
        .decide(host.row, grantRequest({ credentials: wanted(path, field) }))
        .catch((thrown: unknown) => thrown);
      return JSON.stringify(error).replaceAll(path, 'PATH');
    };
    const there = await told('test/x', 'a');
    expect(await told('test/none', 'a')).toBe(there);
    expect(await told('test/x', 'none')).toBe(there);
  });

  it.each([
    ['a secret that is not there', wanted('prod/none', 'a'), 'secret_unknown'],
    ['a field that is not there', wanted('prod/stripe', 'none'), 'field_unknown'],
  ])('of %s, where it is permitted, says so', async (_, credentials, code) => {
    await expect(s.grants.decide(host.row, grantRequest({ credentials }))).rejects.toMatchObject({ code });
    expect(await newest()).toMatchObject({ kind: 'denied', body: { error: { code } } });
  });

  it('of one credential is a denial of all', async () => {
    const credentials = [...wanted('prod/stripe', 'api_key'), ...wanted('test/x', 'a', 'X')];
    const before = await t.database.prisma.grant.count();
    await expect(s.grants.decide(host.row, grantRequest({ credentials }))).rejects.toMatchObject({
      code: 'denied_by_policy',
    });
    expect(await t.database.prisma.grant.count()).toBe(before);
  });
});

describe('a run inside a run', () => {
  it('holds no more than the outer one', async () => {
    const { claims: outer } = await decide();
    const parent = { grantId: outer.grantId, remainingMs: 5_000 };
    const { claims } = await decide({ parent });
    expect(claims).toMatchObject({ parent: outer.grantId, ceilingMs: 5_000 });
    await expect(
      s.grants.decide(host.row, grantRequest({ parent, credentials: wanted('prod/stripe', 'other') })),
    ).rejects.toMatchObject({ code: 'run_unacceptable' });
  });

  it('never lasts longer than the outer one was given, whatever its host says is left', async () => {
    const { claims: outer } = await decide({ ttlMs: 10_000 });
    const { claims } = await decide({ parent: { grantId: outer.grantId, remainingMs: 600_000 } });
    expect(claims.ceilingMs).toBe(10_000);
  });

  it("is refused inside another host's run, or none", async () => {
    const { claims: outer } = await decide();
    const other = await enrol(s, `host-other`);
    const parent = { grantId: outer.grantId, remainingMs: 5_000 };
    await expect(s.grants.decide(other.row, grantRequest({ parent }))).rejects.toMatchObject({
      code: 'run_unacceptable',
    });
    const none = { grantId: 'g_00000000', remainingMs: 5_000 };
    await expect(s.grants.decide(host.row, grantRequest({ parent: none }))).rejects.toMatchObject({
      code: 'not_found',
    });
  });

  it('is refused inside a run that was revoked', async () => {
    const { claims: outer } = await decide();
    await s.revocations.revoke('operator', { kind: 'grant', id: outer.grantId }, 'leaked');
    const parent = { grantId: outer.grantId, remainingMs: 5_000 };
    await expect(s.grants.decide(host.row, grantRequest({ parent }))).rejects.toMatchObject({
      code: 'run_unacceptable',
    });
  });
});

describe('policy', () => {
  it('applied is in force at once, numbered, told to hosts, and kept', async () => {
    const nudges = s.nudges();
    const { revision } = await s.policies.apply(
      'operator',
      `${issuePolicy}@id("no-uid-7") forbid (principal, action, resource) when { principal.uid == 7 };`,
    );
    expect(s.nudges()).toBe(nudges + 1);
    await expect(s.grants.decide(host.row, grantRequest({ uid: 7 }))).rejects.toMatchObject({
      publicMessage: expect.stringContaining(`policy no-uid-7 (revision ${revision}) forbids`),
    });
    expect((await decide()).claims.policyRevision).toBe(revision);
    expect((await s.policies.history()).map((row) => row.revision)).toEqual([revision, revision - 1]);
    expect(await s.policies.show('1')).toMatchObject({ text: issuePolicy });
    expect(await s.policies.show('current')).toMatchObject({ revision });
    await expect(s.policies.show('99')).rejects.toMatchObject({ code: 'not_found' });
  });

  it('that does not parse is refused, and the one in force stays', async () => {
    const before = await s.policies.inForce();
    await expect(s.policies.apply('operator', 'permit (principal')).rejects.toMatchObject({
      code: 'policy_invalid',
    });
    expect(() => s.policies.validate('permit (principal')).toThrow();
    expect((await s.policies.inForce()).revision).toBe(before.revision);
  });

  it('explains what it would decide, and what would change it', async () => {
    const explain = (path: string, uid = 1000) =>
      s.policies.explainFor(s.hosts, { subject: `host-a/${uid}`, path, command: ['node'] });
    expect(await explain('prod/any')).toMatchObject({
      allow: true,
      ceilingMs: 900_000,
      why: 'permitted by anyone-may-hold-prod',
    });
    expect(await explain('test/x')).toMatchObject({
      allow: false,
      why: 'no policy permits it',
      next: expect.stringContaining('would allow it'),
    });
    expect(await explain('prod/any', 7)).toMatchObject({ allow: false, why: 'forbidden by no-uid-7' });
  });

  it('is signed for each host with its own labels', async () => {
    const signed = await s.policies.signedFor(host.row);
    expect(await verifyJws(s.authority.publicKey, signedTypes.policy, signed)).toMatchObject({
      hostId: host.row.id,
      labels: { env: 'prod' },
    });
  });
});

describe('revocation', () => {
  it('numbers without a gap under many at once, each signed and on record, and grants stand in one order with them', async () => {
    const first = (await s.revocations.head()) + 1;
    const targets = await Promise.all(Array.from({ length: 10 }, () => decide()));
    const revoking = Array.from({ length: 50 }, (_, index) =>
      s.revocations.revoke(
        'operator',
        { kind: 'grant', id: targets[index % 10]?.claims.grantId ?? '' },
        `reason ${index}`,
      ),
    );
    const granting = Array.from({ length: 20 }, () => decide());
    const [revoked, granted] = await Promise.all([Promise.all(revoking), Promise.all(granting)]);
    const expected = Array.from({ length: 50 }, (_, index) => first + index);
    expect(revoked.map(({ epoch }) => epoch).toSorted((a, b) => a - b)).toEqual(expected);
    const { entries, head } = await s.revocations.after(first - 1);
    expect(head).toBe(first + 49);
    const claims = await Promise.all(
      entries.map(async (entry) =>
        revocationClaims.parse(await verifyJws(s.authority.publicKey, signedTypes.revocation, entry)),
      ),
    );
    expect(claims.map(({ epoch }) => epoch)).toEqual(expected);

    // By the order of the record: each grant knows exactly the revocations that stand before it.
    let known = 0;
    const at = new Map<string, number>();
    for (const { kind, body } of await ownEntries(s)) {
      if (kind === 'revoked') known = Number(body['epoch']);
      if (kind === 'granted' && typeof body['grantId'] === 'string') at.set(body['grantId'], known);
    }
    for (const { claims: grant } of [...targets, ...granted]) expect(at.get(grant.grantId)).toBe(grant.epoch);
  });

  it('of what is not there is refused, and takes no number', async () => {
    const head = await s.revocations.head();
    await expect(
      s.revocations.revoke('operator', { kind: 'grant', id: 'g_00000000' }, 'x'),
    ).rejects.toMatchObject({ code: 'not_found' });
    expect(await s.revocations.head()).toBe(head);
  });

  it('is pending, then late when the bound has passed and nobody has answered', async () => {
    const { claims } = await decide({ ttlMs: 1_000 });
    const { epoch, receipts, proven } = await s.revocations.revoke(
      'operator',
      { kind: 'grant', id: claims.grantId },
      'x',
    );
    expect([receipts[0]?.state, proven]).toEqual(['pending', false]);
    const made = s.time;
    s.time = new Date(made.getTime() + 60_000);
    expect((await s.revocations.get(epoch, 0)).receipts[0]?.state).toBe('late');
    expect((await s.grants.get(claims.grantId)).state).toBe('expired');
    s.time = made;
  });

  it('a page of the log is bounded, and nothing is after the head', async () => {
    expect((await s.revocations.after(0)).entries.length).toBeLessThanOrEqual(500);
    expect(await s.revocations.after(Number.MAX_SAFE_INTEGER)).toEqual({
      ok: true,
      entries: [],
      head: await s.revocations.head(),
    });
  });
});
