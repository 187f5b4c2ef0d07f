// Owns the story of every trick under one mechanism: it runs, it is revoked, and nothing of it is left.
import { spawn, type ChildProcess } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { keeperPath } from '@custody/keeper/native';
import { call } from '@custody/wire/client';
import type { GrantView } from '@custody/wire/http';
import {
  alive,
  exited,
  openPolicy,
  processes,
  processesWithMarker,
  until,
  withConstellation,
  type TestConstellation,
} from '@custody/testkit/constellation';
import { beforeAll, describe, expect, test } from 'vitest';
import { build, commandOf, fixtures, type Fixture, type Mechanism } from './fixtures.ts';

const root = process.getuid?.() === 0;
/** That of macOS runs over its shim (libs/keeper/test/shim). The agent's own sweep is Linux's all the same. */
const keepers: Readonly<Record<Mechanism, string>> = {
  cgroup: keeperPath(),
  subreaper: keeperPath(),
  kqueue: `${keeperPath()}-kqueue`,
};
const nobody = 65_534;
/** What a run under test may say on its standard error when it cannot try its trick here. */
const impossible = 77;
const readyMsMax = 10_000;

export interface Case {
  readonly pid: number;
  readonly dir: string;
  readonly grantId: string;
  readonly exit: Promise<number>;
  readonly escapees: () => number[];
  readonly output: () => string;
  /** Undefined where the trick could be tried; else why not. */
  readonly skipped: string | undefined;
}

export interface Stage {
  readonly kit: TestConstellation;
  client(): { url: string; token: string };
  start(fixture: Fixture, flags?: readonly string[]): Promise<Case>;
  /** Any command: it says `ready`, and `escapee=PID` of whom it wants to survive. */
  run(command: readonly string[], more?: CaseOptions): Promise<Case>;
  /** Everything that descends from the run and is alive, by an account that is not custody's. */
  left(run: Case): number[];
  revoke(run: Case): Promise<Receipt | undefined>;
  ended(run: Case, msMax?: number): Promise<NonNullable<GrantView['ended']>>;
  /** The bodies of one kind of entry on record for this run. */
  recorded(run: Case, kind: string): Promise<Readonly<Record<string, unknown>>[]>;
}

export interface CaseOptions {
  readonly flags?: readonly string[];
  readonly root?: boolean;
  readonly env?: Readonly<Record<string, string>>;
  /** Its keeper may die before it is ready. */
  readonly keeperDies?: boolean;
}

interface Line {
  readonly entry: { readonly kind: string; readonly body: Readonly<Record<string, unknown>> };
}

type Receipt = Awaited<ReturnType<typeof revocation>>['receipts'][number];

async function revocation(client: { url: string; token: string }, grantId: string) {
  const target = { kind: 'grant', id: grantId } as const;
  const made = await call(client, 'revocation.create', { body: { target, reason: 'the test is over' } });
  if ('dryRun' in made) throw new Error('it was to be revoked');
  let view = made;
  for (let asked = 0; !view.proven && asked < 20; asked += 1) {
    view = await call(client, 'revocation.get', {
      params: { epoch: String(view.epoch) },
      query: { waitMs: '1000' },
    });
  }
  return view;
}

/** One constellation, whose agent holds runs by that mechanism and no stronger one. */
export function stage(mechanism: Mechanism): Stage {
  const kit = withConstellation({
    hosts: 1,
    environment: async () => ({ CUSTODY_CONTAINMENT: mechanism === 'cgroup' ? 'cgroup' : 'subreaper' }),
  });
  const built = fs.mkdtempSync(path.join(os.tmpdir(), 'custody-escapes-'));
  const children: ChildProcess[] = [];
  const client = () => ({ url: kit.constellation.api, token: kit.constellation.token });
  beforeAll(async () => {
    fs.chmodSync(built, 0o755);
    build(built);
    if (root) fs.chmodSync(path.join(built, 'setuid-program.c'), 0o4755);
    // Runs are somebody's who is not root, and reach the agent all the same.
    const [host] = kit.constellation.hosts;
    if (host !== undefined) fs.chmodSync(path.dirname(host.socket), 0o711);
    const policy = path.join(kit.scratch, 'policy.cedar');
    fs.writeFileSync(policy, openPolicy);
    exited(0, await kit.custody(['policy', 'apply', policy]));
    exited(0, await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1']));
    return () => {
      for (const child of children) child.kill('SIGKILL');
      fs.rmSync(built, { recursive: true, force: true });
    };
  });

  const run = async (command: readonly string[], more: CaseOptions = {}): Promise<Case> => {
    const dir = fs.mkdtempSync(path.join(kit.scratch, 'case-'));
    fs.chmodSync(dir, 0o755);
    const args = [
      'run',
      '--env',
      'KEY=custody://prod/stripe/api_key',
      ...(more.flags ?? []),
      '--',
      ...command,
    ];
    const child = spawn(keepers[mechanism], args, {
      cwd: dir,
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
      ...(root && more.root !== true ? { uid: nobody, gid: nobody } : {}),
      env: {
        PATH: process.env['PATH'],
        CUSTODY_SOCKET: kit.constellation.hosts[0]?.socket,
        AGENT_PID: String(kit.constellation.part('host-a').pid),
        ...more.env,
      },
    });
    children.push(child);
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString('latin1')));
    child.stderr.on('data', (chunk: Buffer) => (err += chunk.toString('latin1')));
    const exit = new Promise<number>((resolve) => child.once('exit', (code) => resolve(code ?? -1)));
    let code: number | undefined;
    void exit.then((ended) => (code = ended));
    await until(
      () => /^ready$/m.test(out) || (code !== undefined && more.keeperDies !== true),
      `${command.join(' ')} ready`,
      readyMsMax,
    ).catch((cause: unknown) => {
      throw new Error(`it said ${JSON.stringify(out + err)} and exited with ${code}`, { cause });
    });
    const skipped = /^impossible: (.*)$/m.exec(err)?.[1];
    if (code === 125) throw new Error(`${command.join(' ')}: ${err}`);
    const { grants } = await call(client(), 'grant.list', {});
    const grant = grants.find(({ pid }) => pid === child.pid);
    if (grant === undefined) throw new Error(`no grant for ${command.join(' ')}`);
    expect(grant.containment).toBe(mechanism);
    const escapees = () => [...out.matchAll(/^escapee=(\d+)$/gm)].map(([, pid]) => Number(pid));
    return { pid: child.pid ?? 0, dir, output: () => out, grantId: grant.grantId, exit, escapees, skipped };
  };

  return {
    kit,
    client,
    run,
    start: async (fixture, flags = []) => {
      const { user, without } = fixture;
      const started = await run(commandOf(fixture, built), {
        flags,
        root: user === 'root',
        keeperDies: without !== undefined,
      });
      if (without === 'keeper, killed') await started.exit;
      return started;
    },
    left: (of) =>
      [
        ...new Set([
          ...processes().filter((pid) => workingIn(pid, of.dir)),
          ...of.escapees(),
          ...processesWithMarker(of.grantId),
        ]),
      ].filter((pid) => pid !== of.pid && alive(pid)),
    revoke: async (of) => {
      const { receipts, proven } = await revocation(client(), of.grantId);
      const [receipt] = receipts;
      if (!proven) throw new Error(`no receipt for ${of.grantId}`);
      if (receipt !== undefined) return receipt;
      // Nothing is expected of what had ended before: its own record must say so.
      const { state } = await call(client(), 'grant.get', { params: { grantId: of.grantId } });
      if (state !== 'ended') throw new Error(`no receipt is expected for ${of.grantId}, which is ${state}`);
      return undefined;
    },
    recorded: async (of, kind) => {
      const { stdout } = exited(0, await kit.custody(['ledger', 'tail', '--json']));
      const lines = stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as Line);
      return lines.flatMap(({ entry }) =>
        entry.kind === kind && entry.body['grantId'] === of.grantId ? [entry.body] : [],
      );
    },
    ended: (of, msMax) =>
      until(
        async () => (await call(client(), 'grant.get', { params: { grantId: of.grantId } })).ended,
        `the end of ${of.grantId} on record`,
        msMax,
      ),
  };
}

/** What a documented exception leaves behind, and by its groups whoever forks faster than it is listed. */
function endLeft(on: Stage, run: Case): void {
  const end = (pid: number): void => {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // gone already
    }
  };
  for (let pids = on.left(run); pids.length > 0; pids = on.left(run)) {
    end(-run.pid);
    for (const pid of pids) end(pid);
  }
}

/** A working directory is inherited by every fork, and only its owner changes it. */
function workingIn(pid: number, dir: string): boolean {
  try {
    return fs.readlinkSync(`/proc/${pid}/cwd`) === dir;
  } catch {
    return false;
  }
}

export function revokesEveryTrick(mechanism: Mechanism, on: Stage): void {
  describe(`a revocation, held by ${mechanism}`, () => {
    test.for(fixtures)('leaves nothing of $file', async (fixture, { skip }) => {
      if (fixture.user === 'root' && !root) skip('it needs root');
      if (mechanism === 'kqueue' && fixture.untried !== undefined) skip(fixture.untried);
      const run = await on.start(fixture);
      if (run.skipped !== undefined) {
        expect(await run.exit).toBe(impossible);
        skip(run.skipped);
      }
      const before = on.left(run);
      if (fixture.without === undefined && fixture.root === undefined) expect(before).not.toEqual([]);
      const receipt = await on.revoke(run);
      const reason = fixture.survives?.[mechanism];
      if (reason !== undefined) {
        expect(on.left(run)).not.toEqual([]); // so it is documented, with this reason
        endLeft(on, run);
        return;
      }
      if (mechanism === 'kqueue' && fixture.missed !== undefined) endLeft(on, run);
      expect(on.left(run)).toEqual([]);
      if (fixture.root === undefined && fixture.without === undefined)
        expect(receipt).toMatchObject({ state: 'killed', containment: mechanism });
      const ended = await on.ended(run);
      // Where the keeper is gone, who died with it before anybody looked was never seen.
      expect(ended.processes).toBeGreaterThanOrEqual(fixture.without === undefined ? 1 : 0);
      const code = await run.exit;
      if (fixture.without === undefined && fixture.root === undefined) expect(code).toBe(123);
    });
  });
}

/** Each trick to the end of its time: nobody revokes, and the keeper may be stopped or dead. */
export function outlastsNoCeiling(mechanism: Mechanism, on: Stage, files: readonly string[]): void {
  test(`at ceiling and grace nothing is left, held by ${mechanism}`, async () => {
    const chosen = fixtures.filter(({ file }) => files.includes(file));
    expect(chosen.length).toBe(files.length);
    await Promise.all(
      chosen.map(async (fixture) => {
        const startedMs = performance.now();
        const run = await on.start(fixture, ['--ttl', '4s']);
        const ended = await on.ended(run);
        const lastedMs = performance.now() - startedMs;
        expect([fixture.file, on.left(run)]).toEqual([fixture.file, []]);
        expect([fixture.file, ended.cause]).toEqual([
          fixture.file,
          fixture.without === undefined ? 'ceiling' : ended.cause,
        ]);
        expect(ended.processes).toBeLessThanOrEqual(fixture.processesMax ?? Infinity);
        // Ceiling, grace, what a keeper may lag behind, and what a loaded machine adds.
        expect(lastedMs).toBeLessThan(4_000 + 2_000 + 500 + 10_000);
      }),
    );
  });
}
