// The groups of runs, on the kernel's own cgroup file system where one can be made.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { groupPlaces, Groups } from '../src/groups.ts';
import { isAlive } from '../src/process.ts';
import { captureLog } from './support.ts';

const uid = process.getuid?.() ?? 0;
const places = groupPlaces(
  readMaybe('/proc/self/cgroup'),
  readMaybe('/proc/self/mountinfo'),
  process.getuid?.(),
);
let hosts = 0;
const hostId = (): string => `h_test${process.pid}x${(hosts += 1)}`;
const open = (id = hostId(), more: { tasksMax?: number } = {}): Groups =>
  new Groups({ hostId: id, places, log: captureLog().log, ...more });
const possible = await (async () => {
  await using groups = open();
  return groups.refusal === undefined;
})();

function readMaybe(path: string): string {
  return existsSync(path) ? readFileSync(path, 'latin1') : '';
}

/** A shell that stands in for the keeper: it does what it is told on its standard input. */
async function shell(): Promise<ChildProcess & { pid: number }> {
  const child = spawn('sh', { stdio: ['pipe', 'pipe', 'ignore'], detached: true });
  await once(child, 'spawn');
  onTestFinished(async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  });
  return child as ChildProcess & { pid: number };
}

async function told(keeper: ChildProcess, line: string): Promise<string> {
  keeper.stdin?.write(`${line}\n`);
  const [chunk] = (await once(keeper.stdout ?? keeper, 'data')) as [Buffer];
  return chunk.toString().trim();
}

const groupOf = (pid: number): string => /^0::(.*)$/m.exec(readMaybe(`/proc/${pid}/cgroup`))?.[1] ?? '';
const until = async (condition: () => boolean): Promise<void> => {
  for (let left = 500; !condition(); left -= 1) {
    if (left === 0) throw new Error('it never came about');
    await new Promise((resolve) => setTimeout(resolve, 4));
  }
};

describe.runIf(possible)('a group', () => {
  it('holds what its keeper starts from birth, and is killed without the keeper once that has left', async () => {
    await using groups = open();
    const keeper = await shell();
    expect(await groups.hold('r_1', { pid: keeper.pid, uid }, undefined).done).toBeUndefined();
    const child = Number(await told(keeper, 'setsid -f sh -c "trap \'\' TERM; echo \\$\\$; exec sleep 300"'));
    expect(groupOf(child)).toMatch(/\/r_1\/tree$/);
    expect(groups.kill('r_1')).toBe(false);
    expect(isAlive(child)).toBe(true);
    await groups.freeKeeper('r_1');
    expect(groupOf(keeper.pid)).toMatch(/\/r_1\/keeper$/);
    expect(groups.kill('r_1')).toBe(true);
    // It was asked for before, and is done when the keeper has left.
    await until(() => !isAlive(child));
    expect(isAlive(keeper.pid)).toBe(true);
    groups.killAll('r_1');
    await until(() => !isAlive(keeper.pid));
    groups.drop('r_1');
  });

  it('stands inside the tree of the run around it, and dies with that', async () => {
    await using groups = open();
    const [outer, inner] = [await shell(), await shell()];
    await groups.hold('r_1', { pid: outer.pid, uid }, undefined).done;
    await groups.hold('r_2', { pid: inner.pid, uid }, 'r_1').done;
    expect(groupOf(inner.pid)).toMatch(/\/r_1\/tree\/r_2\/tree$/);
    await groups.freeKeeper('r_2');
    await groups.freeKeeper('r_1');
    groups.kill('r_1');
    await until(() => !isAlive(inner.pid));
    expect(isAlive(outer.pid)).toBe(true);
    groups.killAll('r_1');
    groups.drop('r_2');
    groups.drop('r_1');
  });

  it('that was refused its run lets the keeper say so before it goes', async () => {
    await using groups = open();
    const keeper = await shell();
    await groups.hold('r_1', { pid: keeper.pid, uid }, undefined).done;
    groups.drop('r_1');
    expect(await told(keeper, 'echo refused')).toBe('refused');
    keeper.stdin?.end();
    await once(keeper, 'exit');
  });

  it('is not made for a process that is not its user’s, or has gone, and nothing is left behind', async () => {
    const id = hostId();
    await using groups = open(id);
    const keeper = await shell();
    const before = groupOf(keeper.pid);
    expect(await groups.hold('r_1', { pid: keeper.pid, uid: uid + 1 }, undefined).done).toMatch(
      /the keeper has gone/,
    );
    expect(await groups.hold('r_2', { pid: 2 ** 22, uid }, undefined).done).toMatch(/the keeper has gone/);
    expect(groupOf(keeper.pid)).toBe(before);
    const [base = ''] = places.unified;
    const left = () => readdirSync(join(base, `custody-${id}`)).filter((name) => name.startsWith('r_'));
    await until(() => left().length === 0);
  });

  it('of a run that is still open is found again, and any other is a leftover', async () => {
    const id = hostId();
    const [mine, stale] = [await shell(), await shell()];
    const before = open(id);
    await before.hold('r_mine', { pid: mine.pid, uid }, undefined).done;
    await before.hold('r_stale', { pid: stale.pid, uid }, undefined).done;
    await using groups = open(id);
    groups.dropAllBut(new Set(['r_mine']));
    await until(() => !isAlive(stale.pid));
    expect([groups.treeOf('r_mine') === undefined, groups.treeOf('r_stale')]).toEqual([false, undefined]);
    groups.kill('r_mine');
    await until(() => !isAlive(mine.pid));
    groups.drop('r_mine');
  });

  it('bounds a fork bomb, where the kernel counts processes', async () => {
    await using groups = open(hostId(), { tasksMax: 50 });
    const keeper = await shell();
    await groups.hold('r_1', { pid: keeper.pid, uid }, undefined).done;
    const bounded =
      places.pids !== undefined || existsSync(join(groups.treeOf('r_1') ?? '', '..', 'pids.max'));
    await groups.freeKeeper('r_1');
    const tree = groups.treeOf('r_1') ?? '';
    if (bounded) {
      const refused = 'i=0; while [ $i -lt 100 ]; do sleep 300 & i=$((i+1)); done 2>/dev/null; echo all';
      expect(await told(keeper, `sh -c '${refused}' || echo refused`)).toMatch(/refused/);
      groups.killAll('r_1');
    }
    groups.drop('r_1');
    expect(tree).not.toBe('');
  });
});

describe('where groups can be made', () => {
  const line = (root: string, point: string, kind: string, more: string): string =>
    `41 31 0:38 ${root} ${point} rw,relatime - ${kind} ${kind} ${more}`;

  it('is the top of the hierarchy for root, and the own subtree for anybody', () => {
    const own = '9:name=systemd:/\n0::/user.slice/app.slice\n';
    const mountinfo = line('/', '/sys/fs/cgroup', 'cgroup2', 'rw');
    expect(groupPlaces(own, mountinfo, 0)).toEqual({
      unified: ['/sys/fs/cgroup', '/sys/fs/cgroup/user.slice/app.slice'],
      pids: undefined,
      fromAnywhere: true,
    });
    expect(groupPlaces(own, mountinfo, 1000).unified).toEqual(['/sys/fs/cgroup/user.slice/app.slice']);
  });

  it('is beside the v1 hierarchies on a hybrid system, with the pids controller where it is', () => {
    const mountinfo = [
      line('/', '/sys/fs/cgroup/memory', 'cgroup', 'rw,memory'),
      line('/', '/sys/fs/cgroup/pids', 'cgroup', 'rw,pids'),
      line('/', '/sys/fs/cgroup/unified', 'cgroup2', 'rw'),
    ].join('\n');
    const found = { unified: ['/sys/fs/cgroup/unified'], pids: '/sys/fs/cgroup/pids', fromAnywhere: true };
    expect(groupPlaces('0::/\n', mountinfo, 0)).toEqual(found);
  });

  it('follows a mount that shows a part of the hierarchy, and one whose path is written in octal', () => {
    const mountinfo = line('/docker/abc', '/mnt/a\\040b', 'cgroup2', 'rw');
    expect(groupPlaces('0::/docker/abc/x\n', mountinfo, 1).unified).toEqual(['/mnt/a b/x']);
    expect(groupPlaces('0::/elsewhere\n', mountinfo, 1).unified).toEqual([]);
  });

  it('is nowhere on a system without cgroups, and says so', async () => {
    const groups = new Groups({
      hostId: hostId(),
      places: groupPlaces('', '', undefined),
      log: captureLog().log,
    });
    expect(groups.refusal).toMatch(/no cgroup v2/);
    expect(await groups.hold('r_1', { pid: process.pid, uid }, undefined).done).toMatch(/no cgroup v2/);
  });
});
