// Rounds of canaries over a real database: when one is made, who judges it, and what the verdict says of each host.
import { canaryField, canaryPath } from '@custody/core/canary';
import { canaryJudgedAfterMs, canaryPauseMsMax } from '@custody/core/limits';
import { withDatabase } from '@custody/testkit/database';
import { describe, expect, it, onTestFinished } from 'vitest';
import { proveKills } from '../src/canaries.ts';
import { toRow } from '../src/authority.ts';
import { ingestLedger } from '@custody/store/ledger';
import { parseLine } from '@custody/ledger/entry';
import {
  captureLog,
  enrol,
  grantRequest,
  ownEntries,
  sceneOf,
  until,
  type Scene,
  type TestHost,
} from './support.ts';

const t = withDatabase();
const intervalMs = 3_600_000;
const credentials = [{ name: 'CUSTODY_CANARY', path: canaryPath, field: canaryField }];

async function ship(s: Scene, ...lines: string[]): Promise<void> {
  await ingestLedger(
    s.db,
    lines.map((line) => toRow(parseLine(line.trimEnd()))),
    s.time,
  );
}

/** A host whose canary is on record as started. */
async function withCanary(
  s: Scene,
  name: string,
): Promise<{ host: TestHost; grantId: string; runId: string }> {
  const host = await enrol(s, name);
  const request = grantRequest({ credentials, uid: 0 });
  await s.grants.decide(host.row, request);
  const grant = (await s.grants.list({ canaries: true })).find(({ runId }) => runId === request.runId);
  if (grant === undefined) throw new Error('no canary was granted');
  const { grantId, runId, subject, command, credentials: held } = grant;
  const released = {
    ...{ grantId, runId, uid: 0, pid: 4242, subject, command, cwd: '/', credentials: held, ceilingMs: 1 },
    ...{ ceilingBootMs: 1, policyRevision: 0, policyIds: ['canary'], containment: 'subreaper' as const },
  };
  await ship(s, host.write('released', released));
  await ship(s, host.write('started', { grantId, runId, pid: 5, startTicks: '6' }));
  return { host, grantId, runId };
}

function tended(s: Scene) {
  const { log } = captureLog();
  const { db, authority, revocations } = s;
  const canaries = proveKills({
    ...{ db, authority, revocations, intervalMs, log },
    joined: () => true,
    now: () => s.time,
  });
  onTestFinished(() => canaries[Symbol.asyncDispose]());
  return canaries;
}

const rounds = async (s: Scene) =>
  (await s.revocations.list(false)).filter(({ target }) => target.kind === 'prefix');
const verdicts = async (s: Scene) => (await ownEntries(s)).filter(({ kind }) => kind === 'canary_judged');

it('one revocation meets all canaries; two control planes make and judge it once', async () => {
  const s = await sceneOf(t.database);
  const [one, two] = [tended(s), tended(s)];
  const killed = await withCanary(s, 'kills');
  const silent = await withCanary(s, 'silent');
  await enrol(s, 'without');
  s.time = new Date(s.time.getTime() + canaryPauseMsMax + 1);
  await enrol(s, 'new');
  one.nudge();
  two.nudge();
  await until(async () => (await rounds(s)).length > 0);
  const [round] = await rounds(s);
  expect(round).toMatchObject({ createdBy: 'control-plane', target: { kind: 'prefix', path: canaryPath } });
  const epoch = round?.epoch ?? 0;
  expect(await s.revocations.get(epoch, 0)).toMatchObject({ counts: { expected: 2, pending: 2 } });
  const tree = { survivors: 1, processes: 2, containment: 'subreaper' as const };
  await ship(
    s,
    killed.host.write('receipt', {
      ...{ grantId: killed.grantId, runId: killed.runId, epoch, outcome: 'killed', ...tree },
      ...{ heardAt: s.time.toISOString(), signalledMicros: 300, emptyMicros: 4_200 },
    }),
  );
  // Receipts have their time.
  one.nudge();
  s.time = new Date(s.time.getTime() + canaryJudgedAfterMs);
  one.nudge();
  two.nudge();
  await until(async () => (await verdicts(s)).length > 0);
  one.nudge();
  two.nudge();
  await one[Symbol.asyncDispose]();
  await two[Symbol.asyncDispose]();
  expect(await verdicts(s)).toHaveLength(1);
  expect(await rounds(s)).toHaveLength(1);
  expect((await verdicts(s))[0]?.body).toEqual({
    ...{ epoch, expected: 2, killed: 1, slowestMicros: 4_200 },
    ...{ failedCount: 1, failed: [{ host: 'silent', state: 'unreachable' }] },
    ...{ absentCount: 1, absent: ['without'] },
  });
  expect(silent.grantId).not.toBe(killed.grantId);
  const states = Object.fromEntries((await s.hosts.list()).map(({ name, canary }) => [name, canary]));
  expect(states).toMatchObject({
    kills: { state: 'proven', emptyMicros: 4_200 },
    silent: { state: 'failed' },
    without: { state: 'absent' },
    new: { state: 'waiting' },
  });
});

describe('the credential of a canary', () => {
  it('needs no policy, is listed only when asked for, and has a value that is stored nowhere', async () => {
    const s = await sceneOf(t.database);
    const { grantId } = await withCanary(s, 'alone');
    expect((await s.grants.list({})).map((grant) => grant.grantId)).not.toContain(grantId);
    expect(await s.grants.get(grantId)).toMatchObject({
      policyIds: ['canary'],
      credentials: [{ path: canaryPath }],
    });
    expect(await s.secrets.list('custody')).toEqual([]);
  });

  it('is refused beside another, as is anything else in its folder; no secret can be put there', async () => {
    const s = await sceneOf(t.database);
    const host = await enrol(s, 'greedy');
    const more = { name: 'KEY', path: 'prod/stripe', field: 'api_key' };
    for (const wanted of [[...credentials, more], [{ ...more, path: 'custody/other' }]]) {
      const asked = s.grants.decide(host.row, grantRequest({ credentials: wanted }));
      await expect(asked).rejects.toMatchObject({ code: 'denied_by_policy' });
    }
    const put = s.secrets.put('operator', canaryPath, 'utf8', { value: 'x' });
    await expect(put).rejects.toMatchObject({ code: 'bad_request' });
  });
});

it('a round right after another accuses nobody of having no canary', async () => {
  const s = await sceneOf(t.database);
  s.time = new Date(s.time.getTime() + 24 * intervalMs);
  const { host, grantId, runId } = await withCanary(s, 'quick');
  s.time = new Date(s.time.getTime() + 2 * canaryPauseMsMax);
  const drill = async (): Promise<unknown> => {
    const canaries = tended(s);
    const { epoch } = await s.revocations.revoke('operator', { kind: 'prefix', path: canaryPath }, 'a drill');
    const tree = { survivors: 1, processes: 2, containment: 'subreaper' as const };
    const end = {
      grantId,
      runId,
      cause: 'revoked' as const,
      emptyBootMs: 1,
      rows: [],
      proof: 'keeper' as const,
    };
    await ship(s, host.write('ended', { ...end, ...tree }));
    s.time = new Date(s.time.getTime() + canaryJudgedAfterMs);
    canaries.nudge();
    await until(async () => (await verdicts(s)).some(({ body }) => body['epoch'] === epoch));
    await canaries[Symbol.asyncDispose]();
    return (await verdicts(s)).find(({ body }) => body['epoch'] === epoch)?.body['absent'];
  };
  expect(await drill()).not.toContain('quick');
  expect(await drill()).not.toContain('quick');
  s.time = new Date(s.time.getTime() + 2 * canaryPauseMsMax);
  expect(await drill()).toContain('quick');
});
