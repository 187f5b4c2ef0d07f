// Owns a network of a test's own: one that this process enters, one beside it for each host, and the faults between them.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ownNetwork } from '@custody/keeper/own-network';
import { searchPath } from './config.ts';

/** RFC 5737: an address that nobody has. Nothing outside of the test's own networks sees it. */
const hubAddress = '192.0.2.1';
const hostDevice = 'hub0';

/** What happens to packets between a host and the hub. All of it is silent: nobody is told that a packet was dropped. */
export type Fault =
  /** Nothing passes either way. */
  | { readonly kind: 'partition' }
  /** Nothing reaches the host. */
  | { readonly kind: 'deaf' }
  /** Nothing leaves the host. */
  | { readonly kind: 'mute' }
  /** Connections that stand now pass nothing more; new ones do. */
  | { readonly kind: 'black_hole' }
  /** Each packet is lost with this probability, either way. The kernel draws: there is no seed. */
  | { readonly kind: 'loss'; readonly percent: number };

export interface HostNetwork {
  /** Words before a command that start it in there, under the same pid. */
  readonly before: readonly string[];
  /** Replaces the fault there was. */
  fault(fault: Fault): void;
  heal(): void;
}

export interface Network extends AsyncDisposable {
  /** Where hosts find what listens in this process's own network. */
  readonly address: string;
  /** Throws for a host that was not named. */
  host(name: string): HostNetwork;
}

/**
 * Moves this process, and what it starts from now on, into a network of its own, with one more network for each
 * host. None has a name: the kernel removes each with the last process in it, and should this process be
 * killed, a shell in each, which waits on a pipe from here, kills what is left there. Answers with the reason, in
 * words for whoever runs the tests, where this machine cannot do it; then there is a loopback, and that is all.
 */
export async function openNetwork(hosts: readonly string[]): Promise<Network | { readonly refusal: string }> {
  const refusal = missing();
  if (refusal !== undefined) return { refusal };
  await using stack = new AsyncDisposableStack();
  try {
    ownNetwork();
    must('ip', 'link', 'set', 'lo', 'up');
    must('ip', 'address', 'add', `${hubAddress}/32`, 'dev', 'lo');
    stack.use(await leash([]));
    const networks = new Map<string, HostNetwork>();
    for (const [index, name] of hosts.entries()) {
      const holder = stack.use(await leash(['unshare', '--net', '--']));
      networks.set(name, link(holder.pid, `host${index}`, `192.0.2.${index + 2}`));
    }
    const owned = stack.move();
    return {
      address: hubAddress,
      host: (name) => {
        const network = networks.get(name);
        if (network === undefined) throw new Error(`the network has no ${name}`);
        return network;
      },
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  } catch (error) {
    return { refusal: `this kernel or its guard refuses: ${(error as Error).message.trim()}` };
  }
}

function missing(): string | undefined {
  if (process.platform !== 'linux') return 'network namespaces are Linux';
  if (process.getuid?.() !== 0) return 'it needs root';
  const packages = { ip: 'iproute2', nft: 'nftables', unshare: 'util-linux', nsenter: 'util-linux' };
  const absent = Object.entries(packages).filter(([tool]) => !onPath(tool));
  if (absent.length === 0) return undefined;
  const wanted = [...new Set(absent.map(([, name]) => name))].join(' ');
  return `there is no ${absent.map(([tool]) => tool).join(', ')}; apt-get install ${wanted}`;
}

function onPath(tool: string): boolean {
  return searchPath.split(path.delimiter).some((folder) => fs.existsSync(path.join(folder, tool)));
}

/** Kills whatever is left in its network once the pipe is closed that only its parent holds open. */
const leashScript = `echo in; read -r never; own=$(readlink /proc/self/ns/net)
for each in /proc/[0-9]*; do
  pid=\${each#/proc/}
  [ "$pid" = $$ ] || [ "$(readlink $each/ns/net)" != "$own" ] || kill -9 "$pid"
done`;

interface Leash extends AsyncDisposable {
  readonly pid: number;
}

/** A process that stands in a network, and holds it while nothing else does. */
async function leash(before: readonly string[]): Promise<Leash> {
  const [command, ...args] = [...before, 'sh', '-c', leashScript];
  const shell = spawn(command, args, {
    cwd: '/',
    env: { PATH: searchPath },
    stdio: ['pipe', 'pipe', 'ignore'],
    detached: true,
  });
  const gone = once(shell, 'exit');
  await Promise.race([once(shell.stdout, 'data'), gone]);
  if (shell.exitCode !== null) throw new Error(`${command}: it did not come to stand in its network`);
  return {
    pid: shell.pid ?? 0,
    // Killed before its pipe is closed: it ends without looking for anybody.
    [Symbol.asyncDispose]: async () => {
      shell.kill('SIGKILL');
      await gone;
    },
  };
}

function link(holder: number, hubDevice: string, address: string): HostNetwork {
  const before = ['nsenter', `--net=/proc/${holder}/ns/net`, '--'];
  must('ip', 'link', 'add', hubDevice, 'type', 'veth', 'peer', 'name', hostDevice, 'netns', String(holder));
  must('ip', 'address', 'add', hubAddress, 'peer', address, 'dev', hubDevice);
  must('ip', 'link', 'set', hubDevice, 'up');
  must(...before, 'ip', 'address', 'add', address, 'peer', hubAddress, 'dev', hostDevice);
  must(...before, 'ip', 'link', 'set', hostDevice, 'up');
  const rules = (inward: string, outward: string): void => {
    const chain = (hook: string, device: string, rule: string): string =>
      `chain ${hook} { type filter hook ${hook} priority 0; policy accept; ${device} "${hostDevice}" ${rule}; }`;
    // Each table is replaced in one transaction of the kernel.
    const text = `table inet fault\ndelete table inet fault\ntable inet fault {
${inward === '' ? '' : chain('input', 'iifname', inward)}
${outward === '' ? '' : chain('output', 'oifname', outward)}
}\n`;
    const { status, stderr } = spawnSync('nsenter', [...before.slice(1), 'nft', '-f', '-'], {
      env: { PATH: searchPath },
      input: text,
      encoding: 'utf8',
    });
    if (status !== 0) throw new Error(`nft: ${stderr}`);
  };
  const heal = (): void => rules('', '');
  heal(); // so that a machine without nftables says so now
  return {
    before,
    fault: (fault) => {
      switch (fault.kind) {
        case 'partition':
          return rules('drop', 'drop');
        case 'deaf':
          return rules('drop', '');
        case 'mute':
          return rules('', 'drop');
        case 'loss': {
          const lose = `numgen random mod 100 < ${fault.percent} drop`;
          return rules(lose, lose);
        }
        case 'black_hole': {
          const ports = standing(holder).join(', ');
          return rules(`tcp dport { ${ports} } drop`, `tcp sport { ${ports} } drop`);
        }
      }
    },
    heal,
  };
}

/** The local ports of the connections that stand in a process's network: proc_pid_net(5). */
function standing(pid: number): number[] {
  const established = '01';
  const rows = fs.readFileSync(`/proc/${pid}/net/tcp`, 'latin1').trim().split('\n').slice(1);
  const ports = rows
    .map((row) => row.trim().split(/\s+/))
    .filter(([, , , state]) => state === established)
    .map(([, local = '']) => Number.parseInt(local.split(':')[1] ?? '', 16));
  if (ports.length === 0) throw new Error('no connection stands in that network');
  return ports;
}

function must(...words: string[]): void {
  const [command = '', ...args] = words;
  const { status, stderr } = spawnSync(command, args, { env: { PATH: searchPath }, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${words.join(' ')}: ${stderr}`);
}
