// Owns the cgroups of this host's runs: made before a run is asked for, killed, and removed (ADR 0007).
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { mkdir, rmdir, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import {
  groupLookPauseMs,
  groupLooksMax,
  groupRemovalPauseMs,
  groupRemovalsMax,
  keeperReturnMsMax,
  processRowsMax,
  runTasksMax,
} from '@custody/core/limits';
import type { Log } from './log.ts';
import { memberOf, startOf, uidOf, type Member } from './process.ts';

/** What this system offers, from /proc/self/cgroup and /proc/self/mountinfo. */
export interface GroupPlaces {
  /** Where the groups of runs may be made in cgroup v2, most wanted first. */
  readonly unified: readonly string[];
  /** The same for the pids controller where it is a hierarchy of its own (v1). */
  readonly pids: string | undefined;
  /** Whether any process can be moved there from wherever it is, and not only one of the same subtree. */
  readonly fromAnywhere: boolean;
}

export interface GroupsOptions {
  /** Distinguishes agents that share one hierarchy: `custody-<host id>` is the folder of one. */
  readonly hostId: string;
  readonly places: GroupPlaces;
  readonly log: Log;
  readonly tasksMax?: number;
}

interface Group {
  readonly dir: string;
  readonly tasks: string | undefined;
  /** Undefined once it has left the tree, and for a group that was found. */
  keeper: Keeper | undefined;
  /** Somebody asked for a kill while the keeper stood in the tree. */
  killWanted: boolean;
}

/** The making of one group. */
export interface Holding {
  /** Whether the run can be asked for as held by it while it is still being made. */
  readonly sure: boolean;
  /** Undefined when the keeper stands in it; else why not, and nothing is left behind. */
  readonly done: Promise<string | undefined>;
}

interface Keeper {
  readonly pid: number;
  readonly uid: number;
}

/** The two folders of a group: the run's processes, and the keeper once it has started them. */
const holding = 'tree';
const keeping = 'keeper';

/** What runs need of the groups. */
export type RunGroups = Pick<
  Groups,
  'hold' | 'freeKeeper' | 'kill' | 'killAll' | 'membersOf' | 'emptied' | 'drop'
>;

/**
 * The groups of runs. Where none can be made, `hold` says why and the subreaper holds the run alone.
 * A move between groups may wait for an RCU grace period, and the kernel makes one at a time: so they stand in
 * one line, off the event loop. A kill does not wait in it.
 */
export class Groups {
  readonly #options: GroupsOptions;
  readonly #groups = new Map<string, Group>();
  readonly #removing = new Set<Promise<void>>();
  #line: Promise<unknown> = Promise.resolve();
  readonly #base: string | undefined;
  readonly #tasksBase: string | undefined;
  /** Why there are no groups here. */
  readonly refusal: string | undefined;

  constructor(options: GroupsOptions) {
    this.#options = options;
    const { places, hostId } = options;
    const name = `custody-${hostId}`;
    const made = firstUsable(places.unified, name, 'cgroup.kill');
    this.#base = made.dir;
    this.refusal = made.dir === undefined ? made.why : undefined;
    if (made.dir === undefined) return;
    // No process stands in this folder itself, so the controller may go down (cgroup-v2.rst, no internal processes).
    writeSyncMaybe(join(made.dir, 'cgroup.subtree_control'), '+pids');
    if (places.pids !== undefined) this.#tasksBase = firstUsable([places.pids], name, 'pids.max').dir;
    this.#adopt(made.dir);
  }

  /**
   * Makes the run's group and moves its keeper in: whatever the keeper starts after that is born inside.
   * `parentId`: the run that this one stands in.
   */
  hold(runId: string, keeper: Keeper, parentId: string | undefined): Holding {
    if (this.#base === undefined) {
      return { sure: false, done: Promise.resolve(this.refusal ?? 'there are no groups') };
    }
    const around = parentId === undefined ? undefined : this.#groups.get(parentId);
    const dir = join(around === undefined ? this.#base : join(around.dir, holding), runId);
    const tasks = this.#tasksBase === undefined ? undefined : join(around?.tasks ?? this.#tasksBase, runId);
    const group: Group = { dir, tasks, keeper, killWanted: false };
    this.#groups.set(runId, group);
    const done = this.#inLine(() => this.#make(group, keeper)).then(
      () => undefined,
      (error: unknown) => {
        group.keeper = undefined; // it was not moved
        this.drop(runId);
        return `its group cannot be made: ${error instanceof Error ? error.message : 'unknown'}`;
      },
    );
    return { sure: this.#options.places.fromAnywhere, done };
  }

  /** The keeper has started its child: it leaves, and a kill of the tree no longer meets it. */
  freeKeeper(runId: string): Promise<void> {
    const group = this.#groups.get(runId);
    return group === undefined ? Promise.resolve() : this.#inLine(() => free(group));
  }

  /** The folder of the tree, for whoever compares it with what /proc says of a process. */
  treeOf(runId: string): string | undefined {
    const group = this.#groups.get(runId);
    return group === undefined ? undefined : join(group.dir, holding);
  }

  /**
   * SIGKILL to everything in the tree at once, forks under way included (cgroup-v2.rst, cgroup.kill). Not
   * while the keeper still stands in it, which has been told: then as soon as it has left. True when it was sent.
   */
  kill(runId: string): boolean {
    const group = this.#groups.get(runId);
    if (group === undefined) return false;
    group.killWanted = true;
    if (group.keeper === undefined) killIn(join(group.dir, holding));
    return group.keeper === undefined;
  }

  /** The same to the keeper too, and to whatever it has put beside itself. */
  killAll(runId: string): void {
    const group = this.#groups.get(runId);
    if (group !== undefined) killIn(group.dir);
  }

  /** Who is in the tree, as far as one record has room for them. */
  membersOf(runId: string): Member[] {
    const group = this.#groups.get(runId);
    if (group === undefined) return [];
    const text = readMaybe(join(group.dir, holding, 'cgroup.procs'));
    const pids = text.split('\n').filter((line) => line !== '' && Number(line) !== group.keeper?.pid);
    return pids.slice(0, processRowsMax).flatMap((pid) => memberOf(Number(pid)) ?? []);
  }

  /**
   * Whether nothing is alive in the tree. A process leaves its group a moment after its parent could collect
   * it, and what was just killed takes its time: so it is asked for a while. True where there is no group.
   */
  async emptied(runId: string): Promise<boolean> {
    const group = this.#groups.get(runId);
    if (group === undefined) return true;
    await this.#inLine(() => free(group));
    for (let look = 0; look < groupLooksMax; look += 1) {
      if (!/^populated 1$/m.test(readMaybe(join(group.dir, holding, 'cgroup.events')))) return true;
      await wait(groupLookPauseMs);
    }
    return false;
  }

  /** The run is over. What is still in its tree dies; the group goes when the kernel lets it. */
  drop(runId: string): void {
    const group = this.#groups.get(runId);
    if (group === undefined) return;
    this.#groups.delete(runId);
    const removed = this.#remove(group).finally(() => this.#removing.delete(removed));
    this.#removing.add(removed);
  }

  /** At the agent's start: groups of runs that its ledger does not hold open are a dead agent's leftovers. */
  dropAllBut(open: ReadonlySet<string>): void {
    for (const runId of [...this.#groups.keys()]) if (!open.has(runId)) this.drop(runId);
  }

  /** Waits for the removals under way. The groups of open runs stay: the next agent adopts them. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#removing);
    await this.#line;
    for (const base of [this.#base, this.#tasksBase]) if (base !== undefined) await removeFolder(base);
  }

  async #make({ dir, tasks }: Group, keeper: Keeper): Promise<void> {
    const { tasksMax = runTasksMax } = this.#options;
    for (const each of [dir, join(dir, holding), join(dir, keeping)]) await mkdir(each, { mode: 0o755 });
    await writeMaybe(join(dir, 'pids.max'), String(tasksMax));
    if (!(await moveKeeper(join(dir, holding), keeper))) {
      // The pid is a stranger's by now: it stands in the group, and goes back before the group is emptied.
      await writeMaybe(join(this.#base ?? '', '..', 'cgroup.procs'), String(keeper.pid));
      throw new Error('the keeper has gone');
    }
    if (tasks !== undefined) await joinTasks(tasks, keeper.pid, tasksMax);
  }

  async #remove(group: Group): Promise<void> {
    await this.#inLine(() => free(group));
    killIn(join(group.dir, holding));
    for (let attempt = 0; attempt < groupRemovalsMax; attempt += 1) {
      const gone = await Promise.all([
        removeTree(group.dir),
        group.tasks === undefined || removeTree(group.tasks),
      ]);
      if (gone.every(Boolean)) return;
      await wait(groupRemovalPauseMs, undefined, { ref: false });
      // The keeper goes by itself, its account delivered. What has not gone by then is no keeper.
      if (attempt * groupRemovalPauseMs > keeperReturnMsMax) killIn(group.dir);
    }
    this.#options.log.warn({ group: basename(group.dir) }, 'a group of a run that ended is still busy');
  }

  #inLine<Value>(work: () => Promise<Value>): Promise<Value> {
    const done = this.#line.then(work);
    this.#line = done.catch(() => undefined);
    return done;
  }

  #adopt(base: string, tasksBase = this.#tasksBase): void {
    for (const runId of foldersIn(base)) {
      const dir = join(base, runId);
      const tasks = tasksBase === undefined ? undefined : join(tasksBase, runId);
      this.#groups.set(runId, { dir, tasks, keeper: undefined, killWanted: false });
      this.#adopt(join(dir, holding), tasks);
    }
  }
}

/**
 * Reads where groups can be made. Root takes the top of the hierarchy, where a restart of its own service
 * does not end the runs; anybody else the subtree it stands in, which works where that is delegated.
 */
export function groupPlaces(own: string, mountinfo: string, uid: number | undefined): GroupPlaces {
  const unified: string[] = [];
  let pids: string | undefined;
  for (const line of mountinfo.split('\n')) {
    const [, , , root, point, ...rest] = line.split(' ');
    const tail = rest.slice(rest.indexOf('-') + 1);
    if (root === undefined || point === undefined) continue;
    const mount = point.replaceAll(/\\([0-7]{3})/g, (_, octal: string) =>
      String.fromCodePoint(Number.parseInt(octal, 8)),
    );
    if (tail[0] === 'cgroup2') {
      const path = /^0::(\/.*)$/m.exec(own)?.[1];
      const inside = path === undefined ? undefined : below(root, path);
      if (uid === 0) unified.push(mount);
      if (inside !== undefined) unified.push(inside === '/' ? mount : join(mount, inside));
    } else if (tail[0] === 'cgroup' && (tail[2] ?? '').split(',').includes('pids') && uid === 0) {
      pids = mount;
    }
  }
  return { unified: [...new Set(unified)], pids, fromAnywhere: uid === 0 };
}

/** A mount shows the hierarchy from its root on: what lies outside of it cannot be reached through it. */
function below(root: string, path: string): string | undefined {
  if (root === '/') return path;
  return path === root || path.startsWith(`${root}/`) ? path.slice(root.length) || '/' : undefined;
}

function firstUsable(
  places: readonly string[],
  name: string,
  needs: string,
): { dir: string | undefined; why: string } {
  let why = 'this system has no cgroup v2 that can be reached';
  for (const place of places) {
    const dir = join(place, name);
    try {
      mkdirSync(dir, { mode: 0o755, recursive: true });
      if (readdirSync(dir).includes(needs)) return { dir, why };
      rmdirSync(dir);
      why = `the kernel has no ${needs}`; // cgroup.kill: Linux 5.14
    } catch (error) {
      why = `no group can be made in ${place}: ${error instanceof Error ? error.message : 'unknown'}`;
    }
  }
  return { dir: undefined, why };
}

/**
 * The peer's pid is from the moment it connected: the uid is what the process must have now, and the start
 * time what it must keep while it is moved. False when a stranger was moved; throws when nobody was.
 */
async function moveKeeper(tree: string, keeper: Keeper): Promise<boolean> {
  const before = startOf(keeper.pid);
  if (before === undefined || uidOf(keeper.pid) !== keeper.uid) throw new Error('the keeper has gone');
  await writeFile(join(tree, 'cgroup.procs'), String(keeper.pid));
  return startOf(keeper.pid) === before;
}

async function free(group: Group): Promise<void> {
  const { keeper } = group;
  if (keeper === undefined) return;
  if (uidOf(keeper.pid) === keeper.uid) {
    await writeMaybe(join(group.dir, keeping, 'cgroup.procs'), String(keeper.pid));
  }
  group.keeper = undefined;
  if (group.killWanted) killIn(join(group.dir, holding));
}

async function joinTasks(dir: string, pid: number, tasksMax: number): Promise<void> {
  try {
    await mkdir(dir, { mode: 0o755 });
    await writeFile(join(dir, 'pids.max'), String(tasksMax));
    await writeFile(join(dir, 'cgroup.procs'), String(pid));
  } catch {
    await removeFolder(dir); // a limit that cannot be set bounds nothing; the tree is held all the same
  }
}

/** At once, and not behind whatever else the threads of this process are doing. */
function killIn(dir: string): void {
  writeSyncMaybe(join(dir, 'cgroup.kill'), '1');
}

/** Children first. True when it is gone. */
async function removeTree(dir: string): Promise<boolean> {
  for (const each of foldersIn(dir)) await removeTree(join(dir, each));
  return removeFolder(dir);
}

async function removeFolder(dir: string): Promise<boolean> {
  try {
    await rmdir(dir);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT';
  }
}

function foldersIn(dir: string): string[] {
  try {
    const entries = readdirSync(dir, { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
  } catch {
    return [];
  }
}

function readMaybe(file: string): string {
  try {
    return readFileSync(file, 'latin1');
  } catch {
    return '';
  }
}

/** For what is tried again, or does not matter: the group has gone, or the kernel does not offer this. */
function writeMaybe(file: string, text: string): Promise<void> {
  return writeFile(file, text).catch(() => {});
}

function writeSyncMaybe(file: string, text: string): void {
  try {
    writeFileSync(file, text);
  } catch {
    // the same
  }
}
