// Owns what is caught of a process that another program starts for the run: at, cron, sshd and tmux, where they are installed.
// They run in a mount namespace of the test's own, so that neither their spools nor their lock files are the machine's.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import * as path from 'node:path';
import { alive, until } from '@custody/testkit/constellation';
import { describe, expect, onTestFinished, test } from 'vitest';
import { stage, type Case } from './story.ts';

const on = stage('cgroup');
// Daemons live where a user's PATH does not look.
process.env['PATH'] = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`;
const isRoot = process.getuid?.() === 0;
const has = (...programs: string[]): boolean =>
  programs.every((program) => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0);
const canUnshare = isRoot && has('unshare', 'nsenter') && spawnSync('unshare', ['-m', 'true']).status === 0;

/** Where Debian's at and cron have them. */
const spools = '/var/spool/cron';

/** Spools and lock files of its own, until the test ends. */
async function place(): Promise<ChildProcess> {
  const script = `
    mount -t tmpfs custody-test /run && mount -t tmpfs custody-test ${spools} && cd ${spools} &&
    install -d -m 1770 -o daemon -g daemon atjobs atspool &&
    install -m 600 -o daemon -g daemon /dev/null atjobs/.SEQ && install -d -m 1730 crontabs && mkdir /run/sshd &&
    echo made && exec sleep 300`;
  const holder = spawn('unshare', ['-m', 'sh', '-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  onTestFinished(() => void holder.kill('SIGKILL'));
  const failed = once(holder, 'exit').then(([code]) =>
    Promise.reject(new Error(`no place: exit ${String(code)}`)),
  );
  failed.catch(() => undefined); // that it ends later is as it should be
  await Promise.race([once(holder.stdout ?? holder, 'data'), failed]);
  return holder;
}

const inside = (holder: ChildProcess): string => `nsenter -m -t ${holder.pid} --`;

/** A daemon there, which stays in the foreground. */
function daemon(holder: ChildProcess, ...command: string[]): void {
  const child = spawn('nsenter', ['-m', '-t', String(holder.pid), '--', ...command], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
}

/** A program that writes its pid into the folder it is given, and stays. */
function jobIn(dir: string): string {
  const file = path.join(dir, 'job');
  const script = '#!/bin/sh\ncd "$1" && echo $$ > pid.new && mv pid.new pid && exec sleep 300\n';
  fs.writeFileSync(file, script, { mode: 0o755 });
  return file;
}

/** The one that somebody else started for the run. */
async function started({ dir }: Case): Promise<number> {
  const file = path.join(dir, 'pid');
  const pid = await until(
    () => (fs.existsSync(file) ? Number(fs.readFileSync(file, 'utf8')) : undefined),
    'the job',
  );
  onTestFinished(() => {
    if (alive(pid)) process.kill(pid, 'SIGKILL');
  });
  return pid;
}

const root = { root: true } as const;

describe('a process that somebody else starts', () => {
  test('with the environment of the run, as at(1) does, is an escape: on record, and dead after the revocation', async () => {
    const run = await on.run(['sh', '-c', 'env -0 > environment; echo ready; exec sleep 300'], {
      root: true,
    });
    const entries = fs.readFileSync(path.join(run.dir, 'environment'), 'utf8').split('\0').filter(Boolean);
    const env = Object.fromEntries(
      entries.map((entry) => [entry.slice(0, entry.indexOf('=')), entry.slice(entry.indexOf('=') + 1)]),
    );
    const spooled = spawn('sleep', ['300'], { env, stdio: 'ignore', detached: true });
    await once(spooled, 'spawn');
    const [escape] = await until(async () => {
      const found = await on.recorded(run, 'escape');
      return found.length > 0 && found;
    }, 'the escape on record');
    expect(escape).toMatchObject({
      pid: spooled.pid,
      ppid: process.pid,
      name: 'sleep',
      uid: process.getuid?.(),
    });
    expect(alive(spooled.pid ?? 0)).toBe(true);
    await on.revoke(run);
    expect(alive(spooled.pid ?? 0)).toBe(false);
    expect((await on.ended(run)).rows).toContainEqual(
      expect.objectContaining({ pid: spooled.pid, how: 'killed:9' }),
    );
    expect(await on.recorded(run, 'escape')).toHaveLength(1);
  });

  test('without it, as cron(8) and systemd-run(1) do, is not caught: nothing leads to it', async () => {
    const run = await on.run(['sh', '-c', 'echo ready; exec sleep 300']);
    const other = spawn('sleep', ['300'], { env: {}, stdio: 'ignore', detached: true });
    await once(other, 'spawn');
    await on.revoke(run);
    expect(alive(other.pid ?? 0)).toBe(true);
    other.kill('SIGKILL');
    expect(await on.recorded(run, 'escape')).toEqual([]);
  });

  test.runIf(has('tmux'))('a tmux server that the run started is of its tree, and dies with it', async () => {
    const run = await on.run(
      [
        'sh',
        '-c',
        'tmux -S ./s new-session -d "echo escapee=\\$\\$ > pid; exec sleep 300"; while ! [ -s pid ]; do sleep 0.02; done; cat pid; echo ready; exec sleep 300',
      ],
      { root: true },
    );
    expect(run.escapees().filter(alive)).toHaveLength(1);
    await on.revoke(run);
    expect(on.left(run)).toEqual([]);
  });

  test.runIf(has('tmux'))(
    'a tmux server that was there before starts what it is told, and that is not caught',
    async () => {
      const socket = path.join(on.kit.scratch, 'tmux');
      const tmux = (...args: string[]) => spawnSync('tmux', ['-S', socket, ...args], { encoding: 'utf8' });
      tmux('new-session', '-d', 'sleep 300');
      const run = await on.run(
        [
          'sh',
          '-c',
          `tmux -S ${socket} new-window -d "echo escapee=\\$\\$ > $PWD/pid; exec sleep 300"; while ! [ -s pid ]; do sleep 0.02; done; cat pid; echo ready; exec sleep 300`,
        ],
        { root: true },
      );
      await on.revoke(run);
      expect(run.escapees().filter(alive)).toHaveLength(1);
      tmux('kill-server');
    },
  );

  test.runIf(canUnshare && has('at', 'atd') && fs.existsSync(`${spools}/atjobs`))(
    'a job of at(1) is an escape: its shell sets the environment that the job was given',
    async () => {
      const holder = await place();
      daemon(holder, 'atd', '-f');
      const run = await on.run(
        [
          'sh',
          '-c',
          `echo ${jobIn(on.kit.scratch)} $PWD | ${inside(holder)} at now; echo ready; exec sleep 300`,
        ],
        root,
      );
      const pid = await started(run);
      await until(
        async () => (await on.recorded(run, 'escape')).some((escape) => escape['pid'] === pid),
        'the escape',
      );
      expect(alive(pid)).toBe(true);
      await on.revoke(run);
      expect(alive(pid)).toBe(false);
      expect((await on.ended(run)).rows).toContainEqual(expect.objectContaining({ pid, how: 'killed:9' }));
    },
  );

  test.runIf(canUnshare && has('cron', 'crontab') && fs.existsSync(`${spools}/crontabs`))(
    'a job of cron(8) is not caught: neither ancestry nor environment leads to it',
    async () => {
      const holder = await place();
      const run = await on.run(
        [
          'sh',
          '-c',
          `echo "@reboot ${jobIn(on.kit.scratch)} $PWD" | ${inside(holder)} crontab -; echo ready; exec sleep 300`,
        ],
        root,
      );
      daemon(holder, 'cron', '-f');
      const pid = await started(run);
      await on.revoke(run);
      expect(alive(pid)).toBe(true);
      expect(await on.recorded(run, 'escape')).toEqual([]);
    },
  );

  test.runIf(canUnshare && has('sshd', 'ssh', 'ssh-keygen') && fs.existsSync(spools))(
    'a command of ssh(1) to this host is not caught: sshd starts it, with an environment of its own',
    async () => {
      const holder = await place();
      const { scratch } = on.kit;
      const keyOf = (name: string): string => {
        spawnSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path.join(scratch, name)]);
        return path.join(scratch, name);
      };
      const [host, user] = [keyOf('ssh-host'), keyOf('ssh-user')];
      const settings = [
        `HostKey=${host}`,
        `AuthorizedKeysFile=${user}.pub`,
        ...['UsePAM=no', 'StrictModes=no', 'PermitRootLogin=yes', 'PrintMotd=no'],
      ];
      // As inetd would: sshd takes no port 0.
      const server = createServer({ pauseOnConnect: true }, (socket) => {
        const sshd = ['sshd', '-i', '-e', '-f', '/dev/null', ...settings.flatMap((each) => ['-o', each])];
        spawn(
          'nsenter',
          ['-m', '-t', String(holder.pid), '--', 'sh', '-c', 'exec "$(command -v "$0")" "$@"', ...sshd],
          {
            stdio: [socket, socket, 'ignore'],
          },
        );
        socket.destroy();
      });
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      onTestFinished(() => void server.close());
      const { port } = server.address() as AddressInfo;
      const ssh =
        `ssh -i ${user} -p ${port} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null ` +
        `-o BatchMode=yes root@127.0.0.1`;
      const run = await on.run(
        [
          'sh',
          '-c',
          `${ssh} "${jobIn(scratch)} $PWD >/dev/null 2>&1 &" 2>ssh.log; echo ready; exec sleep 300`,
        ],
        root,
      );
      const pid = await started(run);
      await on.revoke(run);
      expect(alive(pid)).toBe(true);
      expect(await on.recorded(run, 'escape')).toEqual([]);
    },
  );
});
