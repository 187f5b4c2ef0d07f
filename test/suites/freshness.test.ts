// Owns the proof, on real parts, that a host which is cut off keeps a strict grant for as long as policy says and no longer.
import { execFile } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { promisify } from 'node:util';
import { alive, exited, until, withConstellation, type StartedRun } from '@custody/testkit/constellation';
import { beforeAll, describe, expect, test } from 'vitest';

const kit = withConstellation({ hosts: 1 });
const boundMs = 15_000;
/** TERM ends these runs at once; the rest is what a loaded machine may add. */
const slackMs = 2_000;
const beaconMs = 5_000;

const policy = `
@id("strict") @ceiling("15m") @freshness("strict 15s")
permit (principal, action == Action::"hold", resource == Secret::"prod/strict");
@id("lasting") @ceiling("15m") @freshness("best_effort")
permit (principal, action == Action::"hold", resource == Secret::"prod/lasting");
`;

beforeAll(async () => {
  const file = path.join(kit.scratch, 'policy.cedar');
  fs.writeFileSync(file, policy);
  exited(0, await kit.custody(['policy', 'apply', file]));
  for (const name of ['strict', 'lasting'])
    exited(0, await kit.custody(['secret', 'put', `prod/${name}`, '--field', 'key=v1']));
});

interface Running {
  readonly run: StartedRun;
  readonly grantId: string;
  readonly root: number;
}

interface RunShown {
  readonly grantId: string;
  readonly freshness: { readonly kind: string };
  readonly staleInMs?: number;
  readonly renewable: boolean;
}

interface Grant {
  readonly ended?: { readonly cause: string; readonly proof: string };
}

async function hold(name: 'strict' | 'lasting'): Promise<Running> {
  const script = 'echo "$CUSTODY_GRANT $$"; exec sleep 300';
  const run = kit.startRun(['sh', '-c', script], { holds: [`KEY=custody://prod/${name}/key`] });
  const [grantId = '', root = ''] = (await run.line(1)).split(' ');
  return { run, grantId, root: Number(root) };
}

async function shown(grantId: string): Promise<RunShown | undefined> {
  const { runs } = await kit.json<{ runs: RunShown[] }>(['agent', 'status']);
  return runs.find((each) => each.grantId === grantId);
}

function endOf(grantId: string): Promise<NonNullable<Grant['ended']>> {
  return until(
    async () => (await kit.json<Grant>(['grant', 'show', grantId])).ended,
    `the end of ${grantId} in the central ledger`,
  );
}

/** Does that while the part is stopped. */
async function stopped<Value>(part: string, work: () => Promise<Value>): Promise<Value> {
  const { pid } = kit.constellation.part(part);
  process.kill(pid, 'SIGSTOP');
  try {
    return await work();
  } finally {
    process.kill(pid, 'SIGCONT');
  }
}

/** Waits for the run's end, which must come as its freshness has it: a beacon's interval may have passed already. */
async function staleIn({ run, root }: Running, from: number): Promise<void> {
  await until(() => !alive(root), 'the strict run gone', boundMs + slackMs);
  const ms = performance.now() - from;
  expect(ms).toBeGreaterThan(boundMs - beaconMs - slackMs);
  expect(ms).toBeLessThan(boundMs + slackMs);
  expect(exited(122, await run.outcome).stderr).toContain('cut off from the control plane');
}

async function over({ run, grantId }: Running): Promise<void> {
  exited(0, await kit.custody(['revoke', '--grant', grantId, '--reason', 'the test is over', '--wait']));
  await run.outcome;
}

describe('a host that is cut off', () => {
  test('because the control plane is stopped: strict ends by its bound, best effort lives, and all is well afterwards', async () => {
    const [strict, lasting] = [await hold('strict'), await hold('lasting')];
    expect((await shown(strict.grantId))?.staleInMs).toBeLessThanOrEqual(boundMs);
    expect(await shown(lasting.grantId)).not.toHaveProperty('staleInMs');
    await stopped('control-plane', async () => {
      await staleIn(strict, performance.now());
      expect(alive(lasting.root)).toBe(true);
      const refused = await kit.run(['true'], { holds: ['KEY=custody://prod/strict/key'] });
      expect(exited(125, refused).stderr).toContain('the control plane cannot be reached');
    });
    expect(await endOf(strict.grantId)).toMatchObject({ cause: 'stale', proof: 'keeper' });
    exited(0, await kit.run(['true'], { holds: ['KEY=custody://prod/strict/key'] }));
    expect(alive(lasting.root)).toBe(true);
    await over(lasting);
  });

  test('by its own agent, stopped: a revocation made meanwhile is kept by its bound', async () => {
    const [strict, lasting] = [await hold('strict'), await hold('lasting')];
    const { boundAt, state } = await stopped('host-a', async () => {
      const from = performance.now();
      const revocation = await kit.json<{ receipts: { boundAt: string; state: string }[] }>([
        ...['revoke', '--grant', strict.grantId, '--reason', 'while its agent is stopped'],
      ]);
      const revokedAt = Date.now();
      await staleIn(strict, from);
      const [receipt] = revocation.receipts;
      expect(Date.parse(receipt?.boundAt ?? '')).toBeGreaterThan(Date.now());
      expect(Date.parse(receipt?.boundAt ?? '')).toBeLessThan(revokedAt + boundMs + 2 * slackMs);
      expect(alive(lasting.root)).toBe(true);
      return { boundAt: '', state: '', ...receipt };
    });
    expect(boundAt).not.toBe('');
    expect(state).toBe('pending');
    expect(await endOf(strict.grantId)).toMatchObject({ cause: 'stale', proof: 'keeper' });
    await over(lasting);
  });

  test('by its agent, killed and started again: nothing is extended by that, and beacons renew what is adopted', async () => {
    const strict = await hold('strict');
    const part = kit.constellation.part('host-a');
    const from = performance.now();
    await part.down('SIGKILL');
    await part.up();
    const found = await until(() => shown(strict.grantId), 'the run adopted');
    expect(found).toMatchObject({ freshness: { kind: 'strict', ms: boundMs }, renewable: true });
    await until(() => performance.now() - from > boundMs + slackMs, 'its first bound passed', 2 * boundMs);
    expect(alive(strict.root)).toBe(true);
    await over(strict);
  });
});

test('a database that was restored: after renew-log strict runs of before end by their bound, and new ones are fresh', async () => {
  const strict = await hold('strict');
  const { layout, busUrl } = kit.constellation;
  const main = path.join(import.meta.dirname, '..', '..', 'apps', 'control-plane', 'dist', 'main.js');
  const from = performance.now();
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [main, 'renew-log', '--reason', 'restored from yesterday'],
    {
      env: {
        CUSTODY_KEYS_DIR: layout.keys,
        CUSTODY_DATABASE_URL_FILE: layout.databaseUrl,
        CUSTODY_BUS_SERVERS: busUrl,
      },
    },
  );
  expect(stdout).toMatch(/^the revocation log log_\w+ is now log_\w+, at epoch \d+\n$/);
  await until(
    async () => (await shown(strict.grantId))?.renewable === false,
    'the host has noticed',
    beaconMs + slackMs,
  );
  const later = await hold('strict');
  await until(() => !alive(strict.root), 'the strict run of before gone', boundMs + slackMs);
  expect(performance.now() - from).toBeGreaterThan(boundMs - beaconMs - slackMs);
  exited(122, await strict.run.outcome);
  expect(await shown(later.grantId)).toMatchObject({ renewable: true });
  const ledger = path.join(layout.hostDir('host-a'), 'ledger');
  const lines = fs
    .readdirSync(ledger)
    .filter((name) => name.endsWith('.ledger'))
    .flatMap((name) => fs.readFileSync(path.join(ledger, name), 'utf8').split('\n'));
  expect(lines.filter((line) => line.includes('"kind":"log_changed"'))).toHaveLength(1);
  // A revocation of the new life of the log is applied like any other.
  await over(later);
});
