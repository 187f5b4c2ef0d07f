// The addon: who is at the other end of a socket, and the clock of ceilings.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createConnection, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { bootTimeMs, keeperPath, peerOf, processOf } from '../src/native.ts';
import './builds.ts';
import { until } from './fake-agent.ts';

/** The descriptor of a socket, which Node keeps to itself. */
function descriptorOf(socket: Socket): number {
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  return fd;
}

const thrownCode = (code: string) => expect.objectContaining({ name: 'KeeperError', code });

describe('processOf', () => {
  it('says what /proc says, of the stopped and of the dead too', async () => {
    // Its parent never collects it.
    const script = 'sleep 300 & echo "$!"; exec sleep 300';
    const parent = spawn('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'ignore'] });
    const [line] = (await once(parent.stdout, 'data')) as [Buffer];
    const pid = Number(line.toString());
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1').split(' ');
    const lives = { ppid: parent.pid, startTicks: stat[21], alive: true, stopped: false };
    expect(processOf(pid)).toEqual(lives);
    process.kill(pid, 'SIGSTOP');
    await until(() => processOf(pid)?.stopped === true, 'stopped');
    process.kill(pid, 'SIGKILL');
    await until(() => processOf(pid)?.alive === false, 'a zombie');
    expect(processOf(pid)).toEqual({ ...lives, alive: false });
    parent.kill('SIGKILL');
    await once(parent, 'exit');
    expect(processOf(0)).toBeUndefined();
    expect(processOf(parent.pid ?? 0)).toBeUndefined();
  });
});

describe('peerOf', () => {
  it('names the process that connected, as the kernel knows it', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'keeper-peer-'));
    const path = join(folder, 's');
    const server = createServer();
    server.listen(path);
    await once(server, 'listening');
    const program = 'require("node:net").connect(process.argv[1]).resume()';
    const other = spawn(process.execPath, ['-e', program, path], { stdio: 'ignore' });
    const [socket] = (await once(server, 'connection')) as [Socket];
    expect(peerOf(descriptorOf(socket))).toEqual({
      pid: other.pid,
      uid: process.getuid?.(),
      gid: process.getgid?.(),
    });
    socket.destroy();
    other.kill();
    await once(other, 'exit');
    server.close();
    rmSync(folder, { recursive: true });
  });

  it('throws for what is no socket, and for a socket that no local process holds', async () => {
    expect(() => peerOf(-1)).toThrow(thrownCode('not_a_socket'));
    expect(() => peerOf(1_000_000)).toThrow(thrownCode('not_a_socket'));
    const server = createServer((socket) => socket.resume());
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('no port');
    const socket = createConnection(address.port, '127.0.0.1');
    await once(socket, 'connect');
    expect(() => peerOf(descriptorOf(socket))).toThrow(thrownCode('no_peer'));
    socket.destroy();
    server.close();
  });
});

it('bootTimeMs agrees with the clock of the kernel and never goes back', () => {
  const uptimeMs = Number(readFileSync('/proc/uptime', 'latin1').split(' ')[0]) * 1000; // CLOCK_BOOTTIME, in 10 ms steps
  const [first, second] = [bootTimeMs(), bootTimeMs()];
  expect(first).toBeGreaterThan(uptimeMs - 20);
  expect(first).toBeLessThan(uptimeMs + 1000);
  expect(second).toBeGreaterThanOrEqual(first);
});

it('keeperPath is absolute and the same from src and from dist', () => {
  expect(isAbsolute(keeperPath())).toBe(true);
  expect(keeperPath()).toMatch(/libs\/keeper\/build\/custody-keeper$/);
});

describe('undumpable', () => {
  it('leaves a process that can write no core file', async () => {
    const native = join(import.meta.dirname, '..', 'dist', 'native.js');
    const program = `import(${JSON.stringify(native)}).then(({ undumpable }) => { undumpable(); console.log('done'); setInterval(() => {}, 1e6); })`;
    const child = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(child.stdout, 'data');
    const limits = readFileSync(`/proc/${child.pid}/limits`, 'utf8');
    expect(limits).toMatch(/^Max core file size\s+0\s+0\s/m);
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
});
