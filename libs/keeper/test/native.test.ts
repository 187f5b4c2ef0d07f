// The addon: who is at the other end of a socket, and the clock of ceilings.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createConnection, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { bootTimeMs, keeperPath, peerOf } from '../src/native.ts';
import './builds.ts';

/** The descriptor of a socket, which Node keeps to itself. */
function descriptorOf(socket: Socket): number {
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  return fd;
}

const thrownCode = (code: string) => expect.objectContaining({ name: 'KeeperError', code });

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
