// Owns the proof of invariant 10: whichever process is killed, no tree outlives its bound and no acknowledged entry is lost.
import * as fs from 'node:fs';
import * as path from 'node:path';
import {
  alive,
  exited,
  openPolicy,
  processesWithMarker,
  until,
  withConstellation,
  type StartedRun,
} from '@custody/testkit/constellation';
import { beforeAll, describe, expect, test } from 'vitest';
import { wholeChains } from './chains.ts';

// Durable: what Postgres said it had committed must be there after it was killed.
const kit = withConstellation({ hosts: 1, durable: true });
const holds = ['KEY=custody://prod/stripe/api_key'];
const ttlMs = 2_500;
const graceMs = 2_000;
/** What a loaded machine may add. */
const slackMs = 5_000;

interface Grant {
  readonly grantId: string;
  readonly state: string;
  readonly epoch: number;
  readonly root?: { readonly pid: number };
  readonly ended?: { readonly cause: string; readonly proof: string };
}

interface Tree {
  readonly run: StartedRun;
  readonly grantId: string;
  readonly root: number;
  readonly daemon: number;
  readonly startedAt: number;
}

beforeAll(async () => {
  const policy = path.join(kit.scratch, 'policy.cedar');
  fs.writeFileSync(policy, openPolicy);
  exited(0, await kit.custody(['policy', 'apply', policy]));
  exited(0, await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1']));
});

/** A run that ignores TERM, with a daemon in a session of its own that does so too. */
async function stubborn(flags: readonly string[]): Promise<Tree> {
  const startedAt = performance.now();
  const daemon = `(setsid sh -c 'trap "" TERM; echo $$; exec 1>&- 2>&-; while :; do sleep 1; done' &)`;
  const script = `trap "" TERM; echo "$CUSTODY_GRANT $$"; ${daemon}; while :; do sleep 1; done`;
  const run = kit.startRun(['sh', '-c', script], { holds, flags });
  const [grantId = '', root = ''] = (await run.line(1)).split(' ');
  const tree = { run, grantId, root: Number(root), daemon: Number(await run.line(2)), startedAt };
  expect([tree.root, tree.daemon].map(alive)).toEqual([true, true]);
  await until(() => released(grantId), `${grantId} released, on the host's disk`);
  return tree;
}

/** Whether the host's own ledger holds the release: from then on it is acknowledged. */
function released(grantId: string): boolean {
  const dir = path.join(kit.constellation.layout.hostDir('host-a'), 'ledger');
  const lines = fs
    .readdirSync(dir)
    .filter((name) => name.endsWith('.ledger'))
    .flatMap((name) => fs.readFileSync(path.join(dir, name), 'utf8').split('\n'));
  return lines.some((line) => line.includes('"kind":"released"') && line.includes(grantId));
}

/** Everything of the tree is gone; nothing on the machine carries its marker. */
function gone({ grantId, root, daemon }: Tree): boolean {
  return !alive(root) && !alive(daemon) && processesWithMarker(grantId).filter(alive).length === 0;
}

function endOf(grantId: string): Promise<NonNullable<Grant['ended']>> {
  return until(async () => {
    const outcome = await kit.custody(['grant', 'show', grantId, '--json']);
    return outcome.code === 0 ? (JSON.parse(outcome.stdout) as Grant).ended : undefined;
  }, `the end of ${grantId} in the central ledger`);
}

async function ready(): Promise<void> {
  await until(async () => (await kit.custody(['agent', 'status'])).code === 0, 'the agent ready');
  await until(async () => (await kit.custody(['status'])).code === 0, 'the control plane ready');
}

/** Every entry that a host or the control plane wrote is in Postgres once, and every chain is sound. */
async function nothingLost(grantIds: readonly string[]): Promise<void> {
  await until(async () => {
    const status = await kit.json<{ ledger_unconfirmed: string }>(['agent', 'status']);
    return status.ledger_unconfirmed === '0';
  }, 'every entry confirmed');
  await using database = await wholeChains(kit);
  const { rows: kinds } = await database.pool.query<{ grant_id: string; kinds: string[] }>(
    `SELECT grant_id, array_agg(kind ORDER BY kind) AS kinds FROM ledger_entries
      WHERE grant_id = ANY($1) AND kind IN ('granted', 'released', 'started', 'ended') GROUP BY grant_id`,
    [grantIds],
  );
  expect(Object.fromEntries(kinds.map((row) => [row.grant_id, row.kinds]))).toEqual(
    Object.fromEntries(grantIds.map((id) => [id, ['ended', 'granted', 'released', 'started']])),
  );
}

describe('killed during a run and kept down', () => {
  test.for([['host-a'], ['nats'], ['postgres']] as const)(
    '%s: the tree is dead by ceiling and grace, and the record is whole afterwards',
    async ([name]) => {
      const tree = await stubborn(['--ttl', `${ttlMs}ms`]);
      // Only 'released' is promised to be durable before the child runs: what follows is killed once it is on record.
      await until(
        async () => (await kit.json<Grant>(['grant', 'show', tree.grantId])).root !== undefined,
        'the start on record',
      );
      const part = kit.constellation.part(name);
      await part.down('SIGKILL');
      await until(() => gone(tree), 'the tree gone', ttlMs + graceMs + slackMs);
      const ms = performance.now() - tree.startedAt;
      expect(ms).toBeLessThan(ttlMs + graceMs + slackMs);
      const outcome = exited(124, await tree.run.outcome);
      expect(outcome.ms).toBeGreaterThan(ttlMs + graceMs - 100);
      await part.up();
      await ready();
      const end = await endOf(tree.grantId);
      // The keeper gives up its report where no agent takes it; the agent then finds the run in its own ledger.
      if (name === 'host-a') expect(end).toMatchObject({ cause: 'lost', proof: 'sweep' });
      else expect(end).toMatchObject({ cause: 'ceiling', proof: 'keeper' });
      await nothingLost([tree.grantId]);
    },
  );

  test('the agent: a revocation made meanwhile is applied when it is back, before any new grant', async () => {
    const tree = await stubborn([]);
    await until(
      async () => (await kit.json<Grant>(['grant', 'show', tree.grantId])).state === 'running',
      'the run on record',
    );
    const part = kit.constellation.part('host-a');
    await part.down('SIGKILL');
    const revocation = await kit.json<{ epoch: number; receipts: { state: string }[] }>([
      ...['revoke', '--grant', tree.grantId, '--reason', 'while the agent is down'],
    ]);
    expect(revocation.receipts).toMatchObject([{ state: 'pending' }]);
    expect(gone(tree)).toBe(false);
    await part.up();
    const next = exited(0, await kit.run(['sh', '-c', 'echo "$CUSTODY_GRANT"'], { holds }));
    const { epoch } = await kit.json<Grant>(['grant', 'show', next.stdout.trim()]);
    expect(epoch).toBeGreaterThanOrEqual(revocation.epoch);
    await until(() => gone(tree), 'the revoked tree gone', slackMs);
    const waited = exited(
      0,
      await kit.custody(['revoke', '--grant', tree.grantId, '--reason', 'test', '--wait', '--json']),
    );
    expect(JSON.parse(waited.stdout)).toMatchObject({ proven: true });
    exited(123, await tree.run.outcome);
    expect(await endOf(tree.grantId)).toMatchObject({ cause: 'revoked' });
    await nothingLost([tree.grantId, next.stdout.trim()]);
  });

  test('control-plane: trees go on, to their end or their ceiling, and what they did arrives later', async () => {
    const go = path.join(kit.scratch, 'go');
    const patient = `echo "$CUSTODY_GRANT"; until [ -e ${go} ]; do sleep 0.02; done; echo "$KEY"`;
    const run = kit.startRun(['sh', '-c', patient], { holds });
    const grantId = await run.line(1);
    const tree = await stubborn(['--ttl', `${ttlMs}ms`]);
    const part = kit.constellation.part('control-plane');
    await part.down('SIGKILL');
    const revoke = exited(1, await kit.custody(['revoke', '--grant', grantId, '--reason', 'test']));
    expect(revoke.stderr).toContain('cannot reach the control plane');
    fs.writeFileSync(go, '');
    expect(exited(0, await run.outcome).stdout).toBe(`${grantId}\nv1\n`);
    await until(() => gone(tree), 'the tree gone', ttlMs + graceMs + slackMs);
    exited(124, await tree.run.outcome);
    await part.up();
    await ready();
    expect(await endOf(grantId)).toMatchObject({ cause: 'exit', proof: 'keeper' });
    expect(await endOf(tree.grantId)).toMatchObject({ cause: 'ceiling', proof: 'keeper' });
    await nothingLost([grantId, tree.grantId]);
  });
});

describe('killed during a run and started again', () => {
  test('the keeper: the agent empties the tree at once, and closes the run on what it found', async () => {
    const tree = await stubborn([]);
    const killedAt = performance.now();
    tree.run.kill('SIGKILL');
    await until(() => gone(tree), 'the tree gone');
    expect(performance.now() - killedAt).toBeLessThan(slackMs);
    expect(await endOf(tree.grantId)).toMatchObject({ cause: 'lost', proof: 'sweep' });
    await nothingLost([tree.grantId]);
  });

  test('the agent: it adopts the run, and a later revocation ends it with a receipt', async () => {
    const tree = await stubborn([]);
    const { restarted } = await kit.constellation.part('host-a').kill('SIGKILL');
    await restarted;
    await ready();
    // Longer than a keeper may take to come back: the run stays open because it did.
    const status = await kit.json<{ runs: { grantId: string }[] }>(['agent', 'status']);
    expect(status.runs).toMatchObject([{ grantId: tree.grantId }]);
    const outcome = exited(
      0,
      await kit.custody(['revoke', '--grant', tree.grantId, '--reason', 'test', '--wait', '--json']),
    );
    expect(JSON.parse(outcome.stdout)).toMatchObject({
      proven: true,
      receipts: [{ state: 'killed', survivors: 0 }],
    });
    expect(gone(tree)).toBe(true);
    exited(123, await tree.run.outcome);
    expect(await endOf(tree.grantId)).toMatchObject({ cause: 'revoked', proof: 'keeper' });
    await nothingLost([tree.grantId]);
  });

  test('Postgres in a burst of runs: what was acknowledged is there, once', async () => {
    const part = kit.constellation.part('postgres');
    const granted: string[] = [];
    let refused = 0;
    let killed: Promise<unknown> | undefined;
    const one = async (): Promise<void> => {
      const outcome = await kit.run(['sh', '-c', 'echo "$CUSTODY_GRANT"'], { holds });
      if (outcome.code === 0) granted.push(outcome.stdout.trim());
      else {
        refused += 1;
        expect(exited(125, outcome).stdout).toBe('');
      }
    };
    const worker = async (): Promise<void> => {
      for (let count = 0; count < 12; count += 1) {
        await one();
        if (granted.length >= 12) killed ??= part.kill('SIGKILL').then(({ restarted }) => restarted);
      }
    };
    await Promise.all([worker(), worker(), worker()]);
    await killed;
    await ready();
    expect(granted.length + refused).toBe(36);
    expect(granted.length).toBeGreaterThanOrEqual(12);
    exited(0, await kit.run(['true'], { holds }));
    await nothingLost(granted);
  });
});
