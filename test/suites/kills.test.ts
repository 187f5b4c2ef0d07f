// Owns the proof that no moment is a bad one: agent and keepers are killed at random, and nothing outlives its bound.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { graceMsDefault } from '@custody/core/limits';
import { bootTimeMs } from '@custody/keeper/native';
import { testSeed } from '@custody/testkit/config';
import {
  alive,
  exited,
  openPolicy,
  processes,
  shownOf,
  until,
  withConstellation,
  type StartedRun,
  type TestConstellation,
} from '@custody/testkit/constellation';
import { randomOf } from '@custody/testkit/random';
import { hostKinds, type HostBody } from '@custody/wire/ledger';
import { describe, expect, test } from 'vitest';
import { wholeChains } from './chains.ts';

const killsEach = 100;
/** Of the kills: an agent takes longer to come back than a run to start. */
const agentShare = 0.2;
/** Of the keepers: those whose tree is up. The others are anywhere between their start and that. */
const upShare = 0.7;
const workers = 8;
const pauseMsMax = 120;
const upMsMax = 2_000;
const [ttlMsMin, ttlMsMax] = [200, 1_200];
const lookMs = 100;
/** Beyond ceiling and grace, or the agent's return where both were dead: a sweep, and what a loaded machine adds. */
const slackMs = 3_000;
const testMsMax = 180_000;

/** What a run may be. Each keeps its marker: without it a keeper's death is the end of what leads to it, but for a group. */
const trees = [
  'true',
  'sleep 0.1; exit 3',
  'sleep 60',
  `trap '' TERM; while :; do sleep 1; done`,
  `(setsid sh -c 'trap "" TERM HUP; while :; do sleep 1; done' &); sleep 60`,
  `(setsid sh -c 'trap "" TERM HUP; sleep 60; sleep 60' &)`,
  `i=0; while [ $i -lt 20 ]; do (setsid sleep 60 &); i=$((i+1)); done; sleep 60`,
];

interface Story {
  /** When somebody of that grant was last seen alive. */
  readonly seenBootMs: Map<string, number>;
  readonly killed: { agent: number; keeper: number };
  /** From each kill of the agent until it was back. */
  readonly down: { fromBootMs: number; untilBootMs: number }[];
}

/** Runs without end, kills at random moments, and an eye on who is alive, until there were that many kills. */
async function play(kit: TestConstellation, seed: number): Promise<Story> {
  const random = randomOf(seed);
  const pick = <Value>(values: readonly Value[]): Value | undefined =>
    values[Math.floor(random() * values.length)];
  const keepers = { any: new Set<StartedRun>(), up: new Set<StartedRun>() };
  const forget = (run: StartedRun): void => Object.values(keepers).forEach((each) => each.delete(run));
  const story: Story = { seenBootMs: new Map(), killed: { agent: 0, keeper: 0 }, down: [] };
  const under = (): boolean => story.killed.agent + story.killed.keeper < killsEach;

  /** The next that is up. */
  let one = Promise.withResolvers<void>();

  const work = async (): Promise<void> => {
    while (under()) {
      const ttlMs = Math.round(ttlMsMin + random() * (ttlMsMax - ttlMsMin));
      const run = kit.startRun(['sh', '-c', `echo up; ${pick(trees) ?? ''}`], {
        holds: ['KEY=custody://prod/stripe/api_key'],
        flags: ['--ttl', `${ttlMs}ms`],
      });
      keepers.any.add(run);
      run.line(1).then(
        () => {
          if (keepers.any.has(run)) keepers.up.add(run);
          one.resolve();
          one = Promise.withResolvers();
        },
        () => {}, // it ended before it was up
      );
      const { code, stderr } = await run.outcome;
      forget(run);
      // Without an agent there is no run; a moment later there may be one again.
      if (code === 125) {
        expect(stderr).toMatch(/no agent at|agent closed the connection/);
        await delay(50);
      }
    }
  };
  const kill = async (): Promise<void> => {
    const agent = kit.constellation.part('host-a');
    let agentBack = Promise.resolve(0);
    let agentUp = true;
    while (under()) {
      // However slow the machine is: between two kills there is something to be killed.
      if (agentUp) await Promise.race([one.promise, delay(upMsMax)]);
      await delay(random() * pauseMsMax);
      const from = random() < upShare ? keepers.up : keepers.any;
      const victim = random() < agentShare ? 'agent' : pick([...from]);
      if (victim === 'agent' && agentUp) {
        agentUp = false;
        const down = { fromBootMs: bootTimeMs(), untilBootMs: Infinity };
        story.down.push(down);
        const { restarted } = await agent.kill('SIGKILL');
        agentBack = restarted.finally(() => {
          agentUp = true;
          down.untilBootMs = bootTimeMs();
        });
        story.killed.agent += 1;
      } else if (victim !== undefined && victim !== 'agent') {
        victim.kill('SIGKILL');
        forget(victim);
        story.killed.keeper += 1;
      }
    }
    await agentBack;
  };
  const watching = new AbortController();
  const watch = async (): Promise<void> => {
    while (!watching.signal.aborted) {
      for (const grantId of living(kit.scratch)) story.seenBootMs.set(grantId, bootTimeMs());
      await delay(lookMs);
    }
  };
  const watched = watch();
  await Promise.all([kill(), ...Array.from({ length: workers }, work)]);
  await until(() => living(kit.scratch).size === 0, 'nobody alive', ttlMsMax + graceMsDefault + slackMs);
  watching.abort();
  await watched;
  return story;
}

/** When the last process of a run must be dead: a keeper that is dead as well leaves it to the next agent. */
function boundOf(ceilingBootMs: number, down: Story['down']): number {
  return down.reduce(
    (bound, { fromBootMs, untilBootMs }) =>
      fromBootMs < bound + slackMs && untilBootMs > bound ? untilBootMs : bound,
    ceilingBootMs + graceMsDefault,
  );
}

/** The grants of which a process is alive, whoever is its parent. Keepers do not hold their own. */
function living(folder: string): Set<string> {
  const found = new Set<string>();
  for (const pid of processes()) {
    // Inherited by every fork: other constellations may be on this machine.
    if (!workingIn(pid, folder)) continue;
    const marker = /(?:^|\0)CUSTODY_GRANT=(g_[^\0]+)/.exec(shownOf(pid).environment.toString('latin1'));
    if (marker?.[1] !== undefined && alive(pid)) found.add(marker[1]);
  }
  return found;
}

function workingIn(pid: number, folder: string): boolean {
  try {
    return fs.readlinkSync(`/proc/${pid}/cwd`) === folder;
  } catch {
    return false;
  }
}

/** The bodies of one kind, by the host's own ledger. */
function bodies<Kind extends 'released' | 'ended'>(kit: TestConstellation, kind: Kind): HostBody<Kind>[] {
  const dir = path.join(kit.constellation.layout.hostDir('host-a'), 'ledger');
  return fs
    .readdirSync(dir)
    .filter((name) => name.endsWith('.ledger'))
    .toSorted()
    .flatMap((name) => fs.readFileSync(path.join(dir, name), 'utf8').split('\n'))
    .filter((line) => line.includes(`"kind":"${kind}"`))
    .map((line) => JSON.parse(line.slice(0, line.lastIndexOf('}') + 1)) as { body: unknown })
    .map(({ body }) => hostKinds[kind].parse(body) as HostBody<Kind>);
}

async function settled(kit: TestConstellation): Promise<void> {
  await until(async () => {
    const { code, stdout } = await kit.custody(['agent', 'status', '--json']);
    if (code !== 0) return false;
    const { runs, ledger_unconfirmed } = JSON.parse(stdout) as {
      runs: unknown[];
      ledger_unconfirmed: string;
    };
    return runs.length === 0 && ledger_unconfirmed === '0';
  }, 'every run closed, and every entry confirmed');
}

describe.each(['subreaper', 'cgroup'])('held by %s', (mechanism) => {
  const kit = withConstellation({
    hosts: 1,
    environment: async () => ({ CUSTODY_CONTAINMENT: mechanism }),
  });

  test(
    `${killsEach} kills of agent and keepers: nobody past the bound, every run closed, every ledger sound (seed ${testSeed})`,
    async () => {
      const policy = path.join(kit.scratch, 'policy.cedar');
      fs.writeFileSync(policy, openPolicy);
      exited(0, await kit.custody(['policy', 'apply', policy]));
      exited(0, await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1']));
      const story = await play(kit, testSeed);
      await settled(kit);

      const released = bodies(kit, 'released');
      const tooLong = released.flatMap(({ grantId, ceilingBootMs, command }) => {
        const seenBootMs = story.seenBootMs.get(grantId) ?? 0;
        const lateMs = Math.round(seenBootMs - boundOf(ceilingBootMs, story.down) - slackMs);
        return lateMs > 0 ? [{ grantId, lateMs, command }] : [];
      });
      expect(tooLong).toEqual([]);
      // Whoever was seen alive with a grant holds one that was on record before.
      const onRecord = new Set(released.map(({ grantId }) => grantId));
      expect([...story.seenBootMs.keys()].filter((grantId) => !onRecord.has(grantId))).toEqual([]);
      expect(story.seenBootMs.size).toBeGreaterThan(10);
      // A grant that was never released may be closed too: its keeper had gone before.
      const ended = bodies(kit, 'ended').filter(
        ({ grantId, cause }) => onRecord.has(grantId) || cause !== 'not_started',
      );
      expect(ended.map(({ grantId }) => grantId).toSorted()).toEqual([...onRecord].toSorted());
      expect(story.killed.agent).toBeGreaterThan(3);

      await using database = await wholeChains(kit);
      const { rows: open } = await database.pool.query<{ grant_id: string }>(
        `SELECT grant_id FROM ledger_entries WHERE kind = 'released'
        EXCEPT SELECT grant_id FROM ledger_entries WHERE kind = 'ended'`,
      );
      expect(open).toEqual([]);
    },
    testMsMax,
  );
});
