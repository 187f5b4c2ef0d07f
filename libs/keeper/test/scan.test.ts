// Who holds a marker outside of its tree.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { describe, expect, it, onTestFinished } from 'vitest';
import { scan } from '../src/scan.ts';
import { builds } from './builds.ts';
import { FakeAgent, Keeper, processOf, started } from './fake-agent.ts';

async function sleeping(env: Record<string, string>): Promise<number> {
  const child = spawn('sleep', ['300'], { env: { PATH: process.env['PATH'], ...env }, stdio: 'ignore' });
  await once(child, 'spawn');
  onTestFinished(() => void child.kill('SIGKILL'));
  return child.pid ?? 0;
}

describe.each(builds)('a scan ($name)', ({ keeper: program }) => {
  it('finds who holds the marker outside of the tree, and nobody in it', async () => {
    const grant = `scan-${process.pid}-${program.length}`;
    await using agent = await FakeAgent.start();
    await using run = Keeper.run({
      keeper: program,
      agent,
      command: ['sh', '-c', 'setsid sleep 300 & sleep 300'],
    });
    const link = await agent.link();
    await link.expect('request');
    link.grant({ grant });
    await started(link);
    const outside = await sleeping({ X: 'y', CUSTODY_GRANT: grant });
    await sleeping({ CUSTODY_GRANT: `${grant}0`, Y: `CUSTODY_GRANT=${grant}` });
    const startTicks = processOf(run.pid)?.startTicks ?? '';
    const open = { grantId: grant, runId: 'r_none' };
    const found = await scan([{ ...open, keeper: { pid: run.pid, startTicks } }], program);
    const cgroup = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'latin1'))?.[1] ?? '';
    const row = { grantId: grant, ppid: process.pid, startTicks: processOf(outside)?.startTicks, cgroup };
    expect(found).toEqual([{ ...row, pid: outside, uid: process.getuid?.(), name: 'sleep' }]);
    // Of a keeper that has gone, or whose pid is another's by now, everybody is outside.
    const all = await scan([{ ...open, keeper: { pid: run.pid, startTicks: '1' } }], program);
    expect(all.length).toBeGreaterThanOrEqual(3);
    expect(await scan([{ ...open, keeper: undefined }], program)).toEqual(all);
    expect(await scan([], program)).toEqual([]);
  });

  it('refuses what is no list of runs', async () => {
    const wrong = { grantId: 'g'.repeat(80), runId: 'r', keeper: undefined };
    await expect(scan([wrong], program)).rejects.toMatchObject({ code: 'scan_failed' });
    await expect(scan([], '/no/such/keeper')).rejects.toMatchObject({ code: 'scan_failed' });
  });
});
