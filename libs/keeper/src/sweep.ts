// Owns the call of `custody-keeper sweep`: ends what holds the marker of a grant whose keeper is gone.
import { execFile } from 'node:child_process';
import { KeeperError } from './error.ts';
import { parseProcRow, type ProcRow } from './frames.ts';
import { keeperPath } from './native.ts';

/** A process by its name for ever: the start time keeps a stranger of the same pid out of it. */
export interface KeeperProcess {
  readonly pid: number;
  /** As the keeper says it: field 22 of /proc/PID/stat; on macOS microseconds. */
  readonly startTicks: string;
}

export interface SweepOptions {
  /** It ends too, and so does every descendant of it, marker or not. */
  readonly keeper?: KeeperProcess | undefined;
  /** The run's root and every descendant of it end too. On Linux it died with its keeper. */
  readonly root?: KeeperProcess | undefined;
  /** Between TERM and KILL. Default 0: KILL at once. */
  readonly graceMs?: number;
  /** Where the files of this grant's run stand, as its keeper said: they are removed. Default: nowhere. */
  readonly place?: string | undefined;
  /** Default: the `custody-keeper` that was built. */
  readonly program?: string;
}

export interface SweepResult {
  /** Every process that the sweep ended. */
  readonly processes: readonly ProcRow[];
  /** When no process of the grant was left, on the boot-time clock; undefined when one could not be killed. */
  readonly emptyBootMs: number | undefined;
  /** What the sweep said about those it could not kill, and files it could not remove. */
  readonly complaints: readonly string[];
}

const outputBytesMax = 16 * 1024 * 1024;
const slackMs = 30_000; // a sweep gives up by itself 2 s after its grace

/**
 * Ends every process started with `CUSTODY_GRANT=<grant>` and every descendant of one.
 * Resolves also when something could not be killed: `emptyBootMs` is undefined then.
 * @throws KeeperError `not_built`; `sweep_failed` when the sweep could not run to its end.
 */
export async function sweep(grant: string, options: SweepOptions = {}): Promise<SweepResult> {
  const { graceMs = 0, keeper, root, place, program = keeperPath() } = options;
  const too = [
    ...(keeper === undefined ? [] : ['--keeper', `${keeper.pid}:${keeper.startTicks}`]),
    ...(root === undefined ? [] : ['--root', `${root.pid}:${root.startTicks}`]),
    ...(place === undefined ? [] : ['--place', place]),
  ];
  const limits = { encoding: 'buffer', maxBuffer: outputBytesMax, timeout: graceMs + slackMs } as const;
  return new Promise((resolve, reject) => {
    execFile(
      program,
      ['sweep', grant, '--grace-ms', String(graceMs), ...too],
      limits,
      (fault, stdout, stderr) => {
        const complaints = stderr
          .toString('utf8')
          .split('\n')
          .filter((line) => line !== '');
        const failed = (cause?: unknown) =>
          new KeeperError(
            'sweep_failed',
            complaints[0] ?? `the sweep of grant ${grant} did not run to its end`,
            {
              cause,
            },
          );
        if (fault !== null && fault.code !== 1) return reject(failed(fault));
        try {
          resolve(parseSweep(stdout, complaints, fault === null));
        } catch (cause) {
          reject(failed(cause));
        }
      },
    );
  });
}

function parseSweep(stdout: Buffer, complaints: string[], empty: boolean): SweepResult {
  const processes: ProcRow[] = [];
  let emptyBootMs: number | undefined;
  for (const line of stdout.toString('latin1').split('\n')) {
    if (line === '') continue;
    const end = /^empty ([0-9]{1,16})$/.exec(line);
    if (end !== null) emptyBootMs = Number(end[1]);
    else processes.push(parseProcRow(Buffer.from(line, 'latin1')));
  }
  if (empty !== (emptyBootMs !== undefined)) throw new KeeperError('sweep_failed', 'the sweep ended halfway');
  return { processes, emptyBootMs, complaints };
}
