// Holds the tricks: what each needs, and where a mechanism's promise ends.
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';

export type Mechanism = 'cgroup' | 'subreaper' | 'kqueue';

export interface Fixture {
  /** The file in fixtures/, and the first line of it says what it tries. */
  readonly file: string;
  readonly user?: 'root';
  /** What the run's root has to be told. */
  readonly needs?: 'agent pid' | 'setuid file';
  /** The root is gone before anybody revokes: what it left behind ends with it. */
  readonly root?: 'exits';
  /** It ends its keeper, or stops it: the account is the agent's then. */
  readonly without?: 'keeper, killed' | 'keeper, stopped';
  /** At its ceiling it may have become so many, and no more. */
  readonly processesMax?: number;
  /** Why it is alive afterwards, under that mechanism alone: docs/containment.md says the same. */
  readonly survives?: Partial<Record<Mechanism, string>>;
  /** Why it may be alive afterwards under kqueue, or not: whether it was seen in time is a race. */
  readonly missed?: string;
  /** Why it is not tried under kqueue: nothing would end it. */
  readonly untried?: string;
}

const folder = path.join(import.meta.dirname, 'fixtures');

const unseen = 'it left its session and its environment behind before anybody looked at its parent';

const special: readonly Fixture[] = [
  { file: 'clears-environment.c', missed: unseen },
  { file: 'deleted-file.c', missed: unseen },
  { file: 'overwrites-environment.c', missed: unseen },
  {
    file: 'faster-than-a-walk.c',
    untried: 'by the time it is listed it is another process, and its group is that of the caller',
  },
  { file: 'handler-respawns.c', processesMax: 4 * 101 },
  { file: 'other-uid.c', user: 'root' },
  { file: 'other-gid.c', user: 'root' },
  { file: 'pid-reuse.c', user: 'root' },
  { file: 'every-namespace.c', user: 'root' },
  { file: 'leaves-cgroup.c', user: 'root' },
  { file: 'kills-the-agent.c', user: 'root', needs: 'agent pid' },
  { file: 'daemon3.c', root: 'exits' },
  { file: 'triple-fork-delayed.c', root: 'exits' },
  { file: 'subreaper-exits.c', root: 'exits' },
  { file: 'pid-namespace-orphaned.c', root: 'exits' },
  { file: 'nohup.sh', root: 'exits' },
  { file: 'setuid-program.c', needs: 'setuid file' },
  { file: 'kills-the-keeper.c', without: 'keeper, killed' },
  { file: 'blinds-the-keeper.c', without: 'keeper, stopped' },
  { file: 'starves-the-keeper.c', without: 'keeper, stopped' },
  { file: 'stops-the-keeper.c', without: 'keeper, stopped', missed: unseen },
  {
    file: 'kills-the-keeper-unmarked.c',
    without: 'keeper, killed',
    survives: {
      subreaper: 'its keeper is dead, its ancestry is init, and it has dropped the marker',
      kqueue: 'the same',
    },
  },
];

/** Every file of fixtures/: one that is in no list here is still run. */
export const fixtures: readonly Fixture[] = fs
  .readdirSync(folder)
  .filter((name) => /\.(c|sh)$/.test(name))
  .map((file) => special.find((each) => each.file === file) ?? { file });

/** Compiles all of them into a folder that every user can read. Throws what the compiler says. */
export function build(into: string): void {
  const flags = ['-std=c11', '-D_GNU_SOURCE', '-O1', '-Wall', '-Wextra', '-Werror', '-pthread'];
  for (const { file } of fixtures) {
    const made = path.join(into, file);
    if (file.endsWith('.sh')) {
      fs.copyFileSync(path.join(folder, file), made);
      continue;
    }
    const { status, stderr } = spawnSync('cc', [...flags, path.join(folder, file), '-o', made], {
      encoding: 'utf8',
    });
    if (status !== 0) throw new Error(`cc ${file}: ${stderr}`);
  }
}

export function commandOf({ file }: Fixture, built: string): string[] {
  const made = path.join(built, file);
  return file.endsWith('.sh') ? ['sh', made] : [made];
}
