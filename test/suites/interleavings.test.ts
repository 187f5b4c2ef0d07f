// Owns the proof that grant and revocation of one secret, however they meet, leave no run alive after the receipts.
import { randomInt, randomUUID } from 'node:crypto';
import * as fs from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';
import { call } from '@custody/wire/client';
import type { RevocationView } from '@custody/wire/http';
import { openPolicy, processes, shownOf, withConstellation } from '@custody/testkit/constellation';
import { randomOf } from '@custody/testkit/random';
import { beforeAll, expect, test } from 'vitest';

const kit = withConstellation({ hosts: 2 });
const episodes = 300;
/** Each with a secret of its own, side by side. */
const lanes = 3;
/** In which runs are asked for and the secret is revoked: about as long as a run takes to begin. */
const windowMs = 80;
const endMsMax = 15_000;
/** The kernel counts its uptime in these. */
const tickSeconds = 0.01;
const msMax = 280_000;

const client = () => ({ url: kit.constellation.api, token: kit.constellation.token });
const pathOf = (lane: number): string => `prod/lane-${lane}`;
/** Nothing else on the machine holds it, not even the same test beside this one. */
const own = randomUUID();
const valueOf = (lane: number): string => `value-of-lane-${lane}-${own}`;
const uptimeSeconds = (): number => Number(fs.readFileSync('/proc/uptime', 'utf8').split(' ', 1)[0]);

beforeAll(async () => {
  await call(client(), 'policy.apply', { body: { text: openPolicy } });
  for (let lane = 0; lane < lanes; lane += 1) {
    await call(client(), 'secret.put', {
      params: { path: pathOf(lane) },
      body: { fields: { key: valueOf(lane) } },
    });
  }
});

interface Told {
  readonly code: number;
  /** When its tree began, by the kernel's uptime; undefined where it never did. */
  readonly beganSeconds: number | undefined;
}

/** Prints when it began, and stays. */
const script = 'read -r up _ < /proc/uptime; echo "$up"; exec sleep 600';

async function runAfter(ms: number, lane: number, host: string): Promise<Told> {
  await wait(ms);
  const run = kit.startRun(['sh', '-c', script], { holds: [`KEY=custody://${pathOf(lane)}/key`], host });
  const outcome = await Promise.race([run.outcome, wait(endMsMax, undefined, { ref: false })]);
  if (outcome === undefined) {
    run.kill('SIGKILL');
    throw new Error('a run was still there long after the receipts');
  }
  const line = outcome.stdout.trim();
  return { code: outcome.code, beganSeconds: line === '' ? undefined : Number(line) };
}

/** Revokes the secret and waits for every receipt; answers with when they were there. */
async function revokeAfter(ms: number, lane: number): Promise<{ view: RevocationView; seconds: number }> {
  await wait(ms);
  const target = { kind: 'secret' as const, path: pathOf(lane) };
  const made = await call(client(), 'revocation.create', { body: { target, reason: 'an episode' } });
  if (!('proven' in made)) throw new Error('a preview');
  let view: RevocationView = made;
  const deadlineMs = performance.now() + endMsMax;
  while (!view.proven) {
    if (performance.now() > deadlineMs) throw new Error(`not proven: ${JSON.stringify(view)}`);
    view = await call(client(), 'revocation.get', {
      params: { epoch: String(view.epoch) },
      query: { waitMs: '1000' },
    });
  }
  return { view, seconds: uptimeSeconds() };
}

function holders(value: string): number[] {
  return processes().filter((pid) => shownOf(pid).environment.includes(value));
}

async function episode(seed: number, lane: number): Promise<string> {
  const chance = randomOf(seed); // the plan follows from the seed; what the machine makes of it does not
  const hosts = kit.constellation.hosts.map(({ name }) => name);
  const runs = Array.from({ length: 1 + Math.floor(chance() * 3) }, () =>
    runAfter(chance() * windowMs, lane, hosts[Math.floor(chance() * hosts.length)] ?? ''),
  );
  const { view, seconds } = await revokeAfter(chance() * windowMs, lane);
  const alive = holders(valueOf(lane));
  const told = await Promise.all(runs);
  const late = told.filter(({ beganSeconds = 0 }) => beganSeconds > seconds + tickSeconds);
  expect({ seed, alive, late, codes: told.filter(({ code }) => code !== 123 && code !== 125) }).toEqual({
    seed,
    alive: [],
    late: [],
    codes: [],
  });
  await call(client(), 'revocation.lift', {
    body: { what: { epoch: view.epoch }, reason: 'the next episode' },
  });
  return told
    .map(({ code, beganSeconds }) => `${code}${beganSeconds === undefined ? '' : ' began'}`)
    .toSorted()
    .join(', ');
}

test(
  `${episodes} seeded meetings of grant and revocation: nothing lives after the receipts, nothing starts`,
  async () => {
    const seed = randomInt(2 ** 30);
    const ends = new Map<string, number>();
    await Promise.all(
      Array.from({ length: lanes }, async (_, lane) => {
        for (let each = lane; each < episodes; each += lanes) {
          const end = await episode(seed + each, lane);
          ends.set(end, (ends.get(end) ?? 0) + 1);
        }
      }),
    );
    // Both ways of meeting came about: refused, and killed.
    const seen = [...ends.keys()].join('; ');
    for (const way of [/125/, /123 began/]) expect(seen).toMatch(way);
    console.log(`seed ${seed}: ${JSON.stringify(Object.fromEntries(ends))}`);
  },
  msMax,
);
