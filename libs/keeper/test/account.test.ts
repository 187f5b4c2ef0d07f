// The account of a tree: who has a row, how and when each ended, what is beyond the bound, and what is not seen.
import { describe, expect, it } from 'vitest';
import { fieldAll, number, parseProcRow, parseUnlisted, type Frame, type ProcRow } from '../src/frames.ts';
import { builds, variant } from './builds.ts';
import { alive, children, FakeAgent, processOf, running, sleeps, until } from './fake-agent.ts';

const rowsMax = 256;

const rows = (ended: Frame) => fieldAll(ended, 'proc').map(parseProcRow);
const how = ({ how: { kind, number: ending } }: ProcRow) => `${kind}:${ending}`;
const unlisted = (ended: Frame) =>
  Object.fromEntries(
    fieldAll(ended, 'unlisted')
      .map(parseUnlisted)
      .map(({ kind, count }) => [kind, count]),
  );

describe.each([...builds, ...(variant === undefined ? [] : [variant])])(
  'the account ($name)',
  ({ keeper }) => {
    it('has a row for the root: how and when it ended, under its last name', async () => {
      await using agent = await FakeAgent.start();
      const { run, link, root, beganBootMs } = await running(
        { keeper },
        agent,
        'exec sh -c "exec sleep 0.2"',
      );
      await using _ = run;
      const ended = await link.expect('ended');
      const [row, ...others] = rows(ended);
      expect(others).toEqual([]);
      expect(row).toMatchObject({
        ...{ pid: root.pid, ppid: run.pid, startTicks: root.startTicks, name: 'sleep', survivor: false },
        how: { kind: 'exit', number: 0 },
      });
      expect(row?.endedBootUs).toBeGreaterThanOrEqual((beganBootMs + 199) * 1_000);
      expect(row?.endedBootUs).toBeLessThanOrEqual(number(ended, 'empty_boot_us'));
      expect(unlisted(ended)).toEqual({});
      await run.exit;
    });

    it('has a row for every orphan that ends while the run lasts, by itself or by a signal', async () => {
      await using agent = await FakeAgent.start();
      // Each is orphaned before it ends: its parent has gone.
      const orphan = (script: string) => `(sh -c 'sleep 0.1; ${script}' &); `;
      const script = `${orphan('exit 7')}${orphan('kill -USR1 $$')}${orphan('kill -KILL $$')}echo up; exec sleep 300`;
      const { run, link, root } = await running({ keeper }, agent, script, { graceMs: 60_000 });
      await using _ = run;
      await run.says(/up\n/);
      await until(() => children(run.pid).length === 1, 'the orphans are gone');
      process.kill(root.pid, 'SIGKILL');
      const ended = await link.expect('ended');
      const found = rows(ended);
      // A sleep that its shell waited for is in no row: the shell alone was told of its end.
      expect(found.map(how).toSorted()).toEqual(['exit:7', 'signal:10', 'signal:9', 'signal:9']);
      expect(found.filter(({ pid }) => pid !== root.pid).every(({ ppid }) => ppid === run.pid)).toBe(true);
      expect(found.every(({ survivor }) => !survivor)).toBe(true);
      expect(number(ended, 'processes')).toBe(4);
    });

    it('marks who was alive when the root had gone, and those alone', async () => {
      await using agent = await FakeAgent.start();
      const stays = `(setsid sh -c 'trap "" TERM; echo stays=$$; sleep 300 & wait; sleep 300' &); `;
      const { run, link, root } = await running({ keeper }, agent, `${stays}(exit 3 &); exec sleep 300`, {
        graceMs: 200,
      });
      await using _ = run;
      const left = Number((await run.says(/stays=([0-9]+)\n/))[1]);
      await until(() => children(left).length === 1, 'the survivor has a child');
      const [below = 0] = children(left);
      process.kill(root.pid, 'SIGKILL');
      const ended = await link.expect('ended');
      const of = (pid: number) => rows(ended).find((row) => row.pid === pid);
      expect(of(root.pid)).toMatchObject({ survivor: false, how: { kind: 'signal', number: 9 } });
      expect(of(left)).toMatchObject({ survivor: true, how: { kind: 'killed', number: 9 } });
      expect(of(below)).toMatchObject({ survivor: true, how: { kind: 'killed', number: 9 } });
      expect(rows(ended).filter(({ survivor }) => survivor)).toHaveLength(number(ended, 'survivors'));
      expect(of(left)?.endedBootUs).toBeGreaterThanOrEqual(number(ended, 'signalled_boot_us') + 199_000);
    });

    it('says gone of a survivor that ended by itself and whose own parent has its status', async () => {
      await using agent = await FakeAgent.start();
      const stays = `(setsid sh -c 'sleep 300 & echo below=$!; wait $!; exit 4' &); `;
      const { run, link, root } = await running({ keeper }, agent, `${stays}exec sleep 300`, {
        fields: [['on_exit', 'wait']],
      });
      await using _ = run;
      const below = Number((await run.says(/below=([0-9]+)\n/))[1]);
      await until(() => sleeps(root.pid), 'the root has collected the fork between');
      process.kill(root.pid, 'SIGKILL');
      await until(() => !alive(root.pid), 'the root has gone');
      await until(() => processOf(run.pid)?.state === 'S', 'the keeper has looked who is left');
      process.kill(below, 'SIGUSR1');
      const ended = await link.expect('ended');
      expect(rows(ended).find(({ pid }) => pid === below)).toMatchObject({
        survivor: true,
        how: { kind: 'gone', number: 0 },
      });
      expect(
        rows(ended)
          .filter(({ survivor }) => survivor)
          .map(how)
          .toSorted(),
      ).toEqual(['exit:4', 'gone:0']);
      expect(number(ended, 'processes')).toBe(2);
    });

    it('does not grow: past the bound there are counts, and whom custody killed keeps a row', async () => {
      await using agent = await FakeAgent.start();
      const storm = 'i=0; while [ $i -lt 300 ]; do (sh -c "exit 5" &); i=$((i+1)); done; ';
      const stays = `(trap '' TERM; sleep 300 & sleep 300 & sleep 300 & echo up; wait) & `;
      const { run, link, root } = await running({ keeper }, agent, `${storm}${stays}exec sleep 300`);
      await using _ = run;
      await run.says(/up\n/);
      await until(() => children(run.pid).length === 1, 'the storm is over');
      link.send('end', [
        ['cause', 'revoked'],
        ['grace_ms', 0],
      ]);
      const ended = await link.expect('ended');
      const found = rows(ended);
      expect(found).toHaveLength(rowsMax);
      expect(found.filter((row) => how(row) === 'killed:9')).toHaveLength(5);
      expect(found.find(({ pid }) => pid === root.pid)).toMatchObject({ how: { kind: 'killed', number: 9 } });
      expect(unlisted(ended)).toEqual({ exit: 300 + 5 - rowsMax });
      // Of the three that it waits for, the shell may collect one that dies before the shell has come to stop.
      expect([302, 303, 304, 305]).toContain(number(ended, 'processes'));
    });
  },
);
