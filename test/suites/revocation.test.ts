// Owns the proof of revocation over two real hosts: each target, what it would hit, what stands and is lifted, ban, events.
import * as fs from 'node:fs';
import * as path from 'node:path';
import {
  alive,
  exited,
  openPolicy,
  until,
  withConstellation,
  type StartedRun,
} from '@custody/testkit/constellation';
import { follow } from '@custody/wire/client';
import type { FleetEvent } from '@custody/wire/events';
import type { HostView, RevocationPreview, RevocationSummary, RevocationView } from '@custody/wire/http';
import { beforeAll, describe, expect, test } from 'vitest';

const kit = withConstellation({ hosts: 3 });
const uid = process.getuid?.() ?? 0;
const holds = (secret: string): string[] => [`KEY=custody://${secret}/api_key`];

beforeAll(async () => {
  const policy = path.join(kit.scratch, 'policy.cedar');
  fs.writeFileSync(policy, openPolicy);
  exited(0, await kit.custody(['policy', 'apply', policy]));
  for (const secret of ['prod/stripe', 'prod/db/main', 'prod/db/other'])
    exited(0, await kit.custody(['secret', 'put', secret, '--field', 'api_key=v1']));
});

interface Live {
  readonly run: StartedRun;
  readonly grantId: string;
  readonly pid: number;
}

/** A run that is on record as running. */
async function live(secret: string, host = 'host-a'): Promise<Live> {
  const run = kit.startRun(['sh', '-c', 'echo "$CUSTODY_GRANT $$"; exec sleep 300'], {
    holds: holds(secret),
    host,
  });
  const [grantId = '', pid = ''] = (await run.line(1)).split(' ');
  await until(async () => (await grantOf(grantId)).state === 'running', `${grantId} on record`);
  return { run, grantId, pid: Number(pid) };
}

const grantOf = (grantId: string): Promise<{ runId: string; state: string }> =>
  kit.json(['grant', 'show', grantId]);

async function revoke(...flags: string[]): Promise<RevocationView> {
  const outcome = await kit.custody(['revoke', ...flags, '--reason', 'leaked', '--wait', '--json']);
  return JSON.parse(exited(0, outcome).stdout) as RevocationView;
}

const hitBy = ({ receipts }: RevocationView): string[] =>
  receipts.map(({ grantId }) => grantId).toSorted((a, b) => a.localeCompare(b));
const ids = (...runs: Live[]): string[] =>
  runs.map(({ grantId }) => grantId).toSorted((a, b) => a.localeCompare(b));

async function end(...runs: Live[]): Promise<void> {
  for (const { run } of runs) run.kill('SIGTERM');
  await Promise.all(runs.map(({ run }) => run.outcome));
  for (const { grantId } of runs)
    await until(async () => (await grantOf(grantId)).state === 'ended', `${grantId} ended on record`);
}

describe('a revocation', () => {
  test.each<[string, (one: Live, runId: string) => string[], boolean]>([
    ['of a grant', ({ grantId }) => ['--grant', grantId], false],
    ['of a run', (_, runId) => ['--run', runId], false],
    ['of a secret', () => ['--secret', 'prod/stripe'], true],
    ['of a version of a secret', () => ['--secret', 'prod/stripe@1'], true],
    ['of a prefix', () => ['--prefix', 'prod/stripe'], false],
    ['of a host', () => ['--host', 'host-a'], true],
  ])('%s ends what it names, and nothing else; a look before writes nothing', async (_, flags, standing) => {
    const [hit, other] = await Promise.all([live('prod/stripe'), live('prod/db/main', 'host-b')]);
    const named = flags(hit, (await grantOf(hit.grantId)).runId);
    const before = await kit.json<{ epoch: number }>(['status']);
    const preview = await kit.json<RevocationPreview>(['revoke', ...named, '--reason', 'x', '--dry-run']);
    expect(preview).toMatchObject({ dryRun: true, standing, grants: 1, hits: [{ grantId: hit.grantId }] });
    expect(await kit.json(['status'])).toMatchObject({ epoch: before.epoch });
    expect(alive(hit.pid)).toBe(true);

    const made = await revoke(...named);
    expect(made).toMatchObject({ epoch: before.epoch + 1, proven: true, standing, counts: { killed: 1 } });
    expect(made.receipts).toMatchObject([{ host: 'host-a', grantId: hit.grantId, survivors: 0, escapes: 0 }]);
    expect([alive(hit.pid), alive(other.pid)]).toEqual([false, true]);
    exited(123, await hit.run.outcome);
    if (standing) {
      const refused = exited(125, await kit.run(['true'], { holds: holds('prod/stripe') }));
      expect(refused.stderr).toContain(`revocation ${made.epoch}: leaked`);
      expect(refused.stderr).toContain(`custody lift --epoch ${made.epoch}`);
      const stands = await kit.json<RevocationSummary[]>(['revocation', 'list', '--standing']);
      expect(stands.map(({ epoch }) => epoch)).toEqual([made.epoch]);
      const lifted = exited(0, await kit.custody(['lift', ...named, '--reason', 'rotated']));
      expect(lifted.stdout).toContain(`lifted revocation ${made.epoch}`);
    }
    exited(0, await kit.run(['true'], { holds: holds('prod/stripe') }));
    expect(await kit.json(['revocation', 'list', '--standing'])).toEqual([]);
    await end(other);
  });

  test('of a subject ends it on its host alone, and refuses it there until it is lifted', async () => {
    const [hit, other] = await Promise.all([live('prod/stripe'), live('prod/stripe', 'host-b')]);
    const subject = `host-a/${uid}`;
    const made = await revoke('--subject', subject);
    expect(hitBy(made)).toEqual(ids(hit));
    expect(alive(other.pid)).toBe(true);
    exited(125, await kit.run(['true'], { holds: [] }));
    exited(0, await kit.run(['true'], { holds: [], host: 'host-b' }));
    exited(0, await kit.custody(['lift', '--epoch', String(made.epoch), '--reason', 'cleared']));
    exited(0, await kit.run(['true'], { holds: [] }));
    await end(other);
  });

  test('of a prefix, a policy revision or everything reaches every host', async () => {
    for (const flags of [['--prefix', 'prod/db'], ['--policy-revision', '1'], ['--all']]) {
      const runs = await Promise.all([
        live('prod/db/main'),
        live('prod/db/other', 'host-b'),
        live('prod/stripe', 'host-b'),
      ]);
      const hit = flags[0] === '--prefix' ? runs.slice(0, 2) : runs;
      const made = await revoke(...flags);
      expect([flags, hitBy(made)]).toEqual([flags, ids(...hit)]);
      expect(hit.map(({ pid }) => alive(pid))).toEqual(hit.map(() => false));
      await end(...runs.filter((run) => !hit.includes(run)));
    }
  });

  test('waits for the receipts of the runs inside too', async () => {
    const custody = path.resolve(import.meta.dirname, '../../apps/cli/bin/custody');
    const inner = `${custody} run --env K=custody://prod/stripe/api_key -- sh -c 'echo "$CUSTODY_GRANT"; exec sleep 300'`;
    const run = kit.startRun(['sh', '-c', `echo "$CUSTODY_GRANT"; ${inner}`], {
      holds: [...holds('prod/db/main'), 'K=custody://prod/stripe/api_key'],
    });
    const [outer, within] = [await run.line(1), await run.line(2)];
    // The inner run holds nothing of prod/db: it is hit for what stands around it.
    const made = await revoke('--prefix', 'prod/db');
    expect(hitBy(made)).toEqual([outer, within].toSorted((a, b) => a.localeCompare(b)));
    expect(made.receipts.map(({ state }) => state)).toEqual(['killed', 'killed']);
    await run.outcome;
  });

  test('of a host that is down is bounded, exits with 3, and is proven once it is back', async () => {
    const hit = await live('prod/stripe', 'host-b');
    const part = kit.constellation.part('host-b');
    await part.down('SIGKILL');
    const command = [
      'revoke',
      '--grant',
      hit.grantId,
      '--reason',
      'x',
      '--wait',
      '--timeout',
      '7s',
      '--json',
    ];
    const waited = JSON.parse(exited(3, await kit.custody(command)).stdout) as RevocationView;
    expect(waited).toMatchObject({ proven: false, receipts: [{ state: 'unreachable', proven: false }] });
    expect(new Date(waited.receipts[0]?.boundAt ?? 0).getTime()).toBeGreaterThan(Date.now());
    await part.up();
    const shown = ['revocation', 'show', String(waited.epoch), '--wait', '--json'];
    const last = JSON.parse(exited(0, await kit.custody(shown)).stdout) as RevocationView;
    expect(last).toMatchObject({ proven: true, receipts: [{ grantId: hit.grantId, proven: true }] });
    expect(alive(hit.pid)).toBe(false);
    await hit.run.outcome;
  });
});

describe('events', () => {
  test('tell of all of it in order, and go on after the last id without a gap or a repeat', async () => {
    const { api: url, token } = kit.constellation;
    const abort = new AbortController();
    const seen: FleetEvent[] = [];
    const shown = exited(0, await kit.custody(['events', '--json']))
      .stdout.trim()
      .split('\n');
    const before = (JSON.parse(shown.at(-1) ?? '') as FleetEvent).id;
    const first = (async () => {
      for await (const event of follow({ url, token }, { since: String(before) }, abort.signal)) {
        seen.push(event);
        if (event.kind === 'started') return;
      }
    })();
    const run = await live('prod/stripe');
    await first;
    const made = await revoke('--secret', 'prod/stripe');
    exited(0, await kit.custody(['lift', '--secret', 'prod/stripe', '--reason', 'rotated']));
    for await (const event of follow({ url, token }, { since: String(seen.at(-1)?.id) }, abort.signal)) {
      seen.push(event);
      if (event.kind === 'lifted') break;
    }
    abort.abort();
    const numbers = seen.map(({ id }) => id);
    expect(numbers).toEqual([...new Set(numbers)].toSorted((a, b) => a - b));
    const ofRun = seen.filter(({ body }) => body['grantId'] === run.grantId).map(({ kind }) => kind);
    expect(ofRun).toEqual(['granted', 'started', 'ended', 'receipt']);
    expect(seen.find(({ kind }) => kind === 'revoked')?.body).toMatchObject({
      epoch: made.epoch,
      expected: 1,
    });
    const { stdout } = exited(
      0,
      await kit.custody(['events', '--since', String((numbers[0] ?? 1) - 1), '--json']),
    );
    const again = stdout
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as FleetEvent).id);
    expect(again.slice(0, numbers.length)).toEqual(numbers);
    await run.run.outcome;
  });
});

describe('a ban', () => {
  test('ends the host’s runs with receipts, wipes its keys, is its last word, and cuts it off', async () => {
    const hit = await live('prod/stripe', 'host-c');
    const dir = kit.constellation.layout.hostDir('host-c');
    const command = ['host', 'ban', 'host-c', '--reason', 'stolen', '--wait', '--json'];
    const made = JSON.parse(exited(0, await kit.custody(command)).stdout) as RevocationView;
    expect(made).toMatchObject({ proven: true, counts: { expected: 1, killed: 1 }, target: { ban: true } });
    expect(alive(hit.pid)).toBe(false);
    await hit.run.outcome;
    const told = await until(async () => {
      const { stdout } = exited(0, await kit.custody(['events', '--json']));
      return stdout.split('\n').find((line) => line.includes('"kind":"banned"'));
    }, 'its last entry in the central ledger');
    expect(JSON.parse(told)).toMatchObject({ name: 'host-c', body: { epoch: made.epoch, openRuns: 0 } });
    for (const file of ['identity.json', 'keys/signing.seed', 'keys/sealing.seed', 'keys/bus.nkey'])
      expect([file, fs.existsSync(path.join(dir, file))]).toEqual([file, false]);
    const log = (): string => fs.readFileSync(kit.constellation.layout.log('host-c'), 'utf8');
    await until(() => log().includes('the bus refuses this host'), 'cut off');
    const refused = exited(125, await kit.run(['true'], { host: 'host-c' }));
    expect(refused.stderr).toContain('host-c was banned');
    exited(0, await kit.custody(['ledger', 'verify', '--json']));
    expect(exited(1, await kit.custody(['lift', '--host', 'host-c', '--reason', 'x'])).stderr).toContain(
      'banned',
    );
  });

  test('outlives the agent, and frees the name for a new enrolment', async () => {
    const part = kit.constellation.part('host-c');
    await part.down('SIGKILL');
    const log = (): string => fs.readFileSync(kit.constellation.layout.log('host-c'), 'utf8');
    const before = log().length;
    void part.up();
    await until(() => log().slice(before).includes('was banned (revocation'), 'it refuses to start');
    const { token } = await kit.json<{ token: string }>(['host', 'token', 'create', '--name', 'host-c']);
    const { api } = kit.constellation;
    const args = [
      'agent',
      'enroll',
      '--url',
      api,
      '--token',
      token,
      '--data',
      path.join(kit.scratch, 'again'),
    ];
    exited(0, await kit.custody(args));
    const hosts = (await kit.json<HostView[]>(['host', 'list'])).filter(({ name }) => name === 'host-c');
    expect(hosts.filter(({ bannedAt }) => bannedAt === undefined)).toHaveLength(1);
    expect(hosts).toHaveLength(2);
    exited(0, await kit.custody(['host', 'show', 'host-c']));
  });
});
