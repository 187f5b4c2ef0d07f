// Owns the proof that revocations, grants and the record come through programs killed at any instant, again and again.
import { setTimeout as delay } from 'node:timers/promises';
import { childrenOf, exited, until, withConstellation } from '@custody/testkit/constellation';
import { beforeAll, expect, onTestFinished, test, vi } from 'vitest';
import { chance } from './chance.ts';
import { Fleet, holds, type Revoked, type Tree } from './fleet.ts';

const busRestarts = 50;
const calmEvery = 10;
/** From a server that is there again to a proof: the longest wait between two dials, and what a loaded machine adds. */
const backMsMax = 8_000;
const databaseKills = 20;
const revokersAtOnce = 4;
const runEveryMs = 50;
const controlPlaneKills = 4;
const agentKills = 5;

// Durable: what Postgres said it had committed must be there after it was killed.
/** Several times what an idle machine takes. */
vi.setConfig({ testTimeout: 180_000 });

const kit = withConstellation({ hosts: 2, durable: true, controlPlanes: 2 });
const fleet = new Fleet(kit);

beforeAll(async () => {
  await fleet.begin();
  // One control plane, until two are what is tested.
  await kit.constellation.part('control-plane-b').down('SIGKILL');
});

/** The host's agent is asked for a run again and again: each is granted and on record, or refused and silent. */
async function runs(host: string, signal: AbortSignal, ran: Set<string>): Promise<void> {
  while (!signal.aborted) {
    const outcome = await kit.run(['sh', '-c', 'echo "$CUSTODY_GRANT"'], { holds, host });
    if (outcome.code === 0) ran.add(outcome.stdout.trim());
    else expect(exited(125, outcome).stdout).toBe('');
    await delay(runEveryMs);
  }
}

/** Aborted by the test, or when it is over however it ended. */
function ending(): AbortController {
  const over = new AbortController();
  onTestFinished(() => over.abort());
  return over;
}

/** Kills a part and resolves when its next life is ready. */
async function restart(part: string): Promise<void> {
  const { restarted } = await kit.constellation.part(part).kill('SIGKILL');
  await restarted;
}

/** Waits to the microsecond, as far as the machine lets it. */
async function pause(micros: number): Promise<void> {
  const dueMs = performance.now() + micros / 1_000;
  if (micros > 2_000) await delay(micros / 1_000 - 1);
  while (performance.now() < dueMs);
}

/** As many trees as asked for, over both hosts. */
async function trees(count: number): Promise<Tree[]> {
  const half = Math.ceil(count / 2);
  const [a, b] = await Promise.all([fleet.holdSome('host-a', half), fleet.holdSome('host-b', count - half)]);
  return [...a, ...b];
}

test(`nats-server, ${busRestarts} times: what is revoked meanwhile is proven, and nothing starts unrecorded`, async () => {
  const held = await trees(14);
  const revoked: Revoked[] = [];
  const ran = new Set<string>();
  const over = ending();
  const trying = runs('host-b', over.signal, ran);
  for (let count = 1; count <= busRestarts; count += 1) {
    const again = restart('nats');
    const next = count % 4 === 0 ? held.pop() : undefined;
    if (next !== undefined) revoked.push(await fleet.revoke(next, `in restart ${count} of nats-server`));
    await again;
    // Mostly it is gone again before a host is back; now and then one is.
    if (count % calmEvery === 0) await fleet.proven(revoked);
  }
  const lastAt = performance.now();
  await fleet.proven(revoked);
  expect(performance.now() - lastAt).toBeLessThan(backMsMax);
  over.abort();
  await trying;
  revoked.push(...(await Promise.all(held.map((tree) => fleet.revoke(tree, 'after the last restart')))));
  await fleet.proven(revoked);
  await fleet.sound(ran);
});

test(`PostgreSQL in mid-commit, ${databaseKills} times: a revocation is wholly there or not at all, and once`, async () => {
  const { below } = chance();
  const [tree] = (await trees(1)) as [Tree];
  await keepOutbox();
  const acknowledged = new Map<string, number>();
  const unanswered = new Set<string>();
  const ran = new Set<string>();
  const over = ending();
  let asked = 0;
  let up = Promise.resolve();
  const revoking = async (): Promise<void> => {
    while (!over.signal.aborted) {
      const reason = `request ${(asked += 1)}`;
      try {
        acknowledged.set(reason, (await fleet.revoke(tree, reason)).epoch);
      } catch {
        unanswered.add(reason);
        await up;
      }
    }
  };
  const working = [...Array.from({ length: revokersAtOnce }, revoking), runs('host-b', over.signal, ran)];
  for (let count = 0; count < databaseKills; count += 1) {
    const enough = acknowledged.size + 2;
    await until(() => acknowledged.size >= enough, 'PostgreSQL at work again');
    await pause(below(4_000));
    up = killDatabase();
    await up;
  }
  over.abort();
  await Promise.all(working);
  await fleet.sound(ran);
  const found = await revocationsKept();
  expect(found.filter(({ kept }) => kept !== 1)).toEqual([]);
  expect(new Set(found.map(({ reason }) => reason)).size).toBe(found.length);
  const epochs = new Map(found.map(({ reason, epoch }) => [reason, epoch]));
  for (const [reason, epoch] of acknowledged) expect([reason, epochs.get(reason)]).toEqual([reason, epoch]);
  // The kills fell where they should: commits that nobody was told of are there, whole.
  expect(unanswered.size).toBeGreaterThan(0);
});

test(`the control plane in mid-broadcast, ${controlPlaneKills} times: what was acknowledged is told to every host`, async () => {
  const { below } = chance();
  const held = await trees(controlPlaneKills * revokersAtOnce);
  const revoked: Revoked[] = [];
  const again: Tree[] = [];
  for (let count = 0; count < controlPlaneKills; count += 1) {
    const some = held.splice(0, revokersAtOnce);
    const asking = some.map((tree) => fleet.revoke(tree, `before kill ${count} of the control plane`));
    await Promise.race(asking);
    // The broadcast leaves with the answer.
    await pause(below(8_000));
    await restart('control-plane');
    for (const [index, outcome] of (await Promise.allSettled(asking)).entries()) {
      const tree = some[index];
      if (outcome.status === 'fulfilled') revoked.push(outcome.value);
      else if (tree !== undefined) again.push(tree);
    }
  }
  await fleet.proven(revoked);
  await fleet.proven(await Promise.all(again.map((tree) => fleet.revoke(tree, 'asked again'))));
  await fleet.sound();
});

test(`agents in mid-kill, ${agentKills} times: the next one finishes, and says so`, async () => {
  const { below } = chance();
  const held = await trees(2 * agentKills);
  for (let count = 0; count < agentKills; count += 1) {
    const pair = [held.shift(), held.pop()].filter((tree) => tree !== undefined);
    const asking = pair.map((tree) => fleet.revoke(tree, `before kill ${count} of the agents`));
    await Promise.race(asking);
    await pause(below(12_000));
    await Promise.all(['host-a', 'host-b'].map(restart));
    await fleet.proven(await Promise.all(asking));
  }
  await fleet.sound();
});

test('two control planes, one of them killed on the way: one chain, one order, and each revocation comes through', async () => {
  const { constellation } = kit;
  const [first = '', second = ''] = constellation.apis;
  await constellation.part('control-plane-b').up();
  const ran = new Set<string>();
  const over = ending();
  const held = await trees(16);
  const working = ['host-a', 'host-b'].map((host) => runs(host, over.signal, ran));
  const both = await Promise.all(
    held
      .splice(0, 12)
      .map((tree, index) => fleet.revoke(tree, 'two serve', index % 2 === 0 ? first : second)),
  );
  // Who took the receipt and who is asked for it need not be the same.
  await Promise.all([fleet.proven(both, undefined, first), fleet.proven(both, undefined, second)]);
  const asking = held.map((tree) => fleet.revoke(tree, 'one is killed', first).catch(() => tree));
  await Promise.race(asking);
  await constellation.part('control-plane').down('SIGKILL');
  const outcomes = await Promise.all(asking);
  const answered = outcomes.filter((each) => 'epoch' in each);
  const again = outcomes.filter((each) => 'pids' in each);
  const anew = await Promise.all(again.map((tree) => fleet.revoke(tree, 'asked of the other', second)));
  await fleet.proven([...answered, ...anew], undefined, second);
  over.abort();
  await Promise.all(working);
  await constellation.part('control-plane').up();
  await fleet.sound(ran);
});

/** The server and every process of it, at once: what was on its way to the disk goes no further. */
async function killDatabase(): Promise<void> {
  const part = kit.constellation.part('postgres');
  const backends = childrenOf(part.pid);
  const { restarted } = await part.kill('SIGKILL');
  for (const pid of backends) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It had gone.
    }
  }
  await restarted;
}

/** From now on each message is also kept where sending does not remove it, in the transaction that left it. */
async function keepOutbox(): Promise<void> {
  await using database = await fleet.database();
  await database.pool.query(`CREATE TABLE outbox_kept (payload bytea);
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
      'BEGIN INSERT INTO outbox_kept VALUES (NEW.payload); RETURN NEW; END';
    CREATE TRIGGER keep AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION keep()`);
}

/** Each revocation by its reason, with how many messages tell of it; and each message that tells of none. */
async function revocationsKept(): Promise<{ reason: string; epoch: number; kept: number }[]> {
  await using database = await fleet.database();
  const { rows } = await database.pool.query<{ reason: string; epoch: number; kept: number }>(
    `WITH told AS (SELECT convert_from(payload, 'UTF8')::jsonb->>'entry' AS signed FROM outbox_kept)
     SELECT coalesce(reason, 'none') AS reason, epoch::int, count(told.signed)::int AS kept
       FROM revocations FULL JOIN told USING (signed) WHERE reason LIKE 'request %' OR reason IS NULL
      GROUP BY reason, epoch`,
  );
  return rows;
}
