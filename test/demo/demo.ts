// Owns the story that `npm run demo` tells: eight steps, each a real command against real parts. A failed step ends it with 1.
import { spawn, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..', '..');
const started = performance.now();
const dir = mkdtempSync(join(tmpdir(), 'custody-demo-'));
// PostgreSQL runs as another user where we are root: it has to get through.
chmodSync(dir, 0o711);
const data = join(dir, 'data');
const colour = process.stdout.isTTY;
const bold = (text: string): string => (colour ? `\u001B[1m${text}\u001B[0m` : text);
const dim = (text: string): string => (colour ? `\u001B[2m${text}\u001B[0m` : text);

const environment: Record<string, string> = {
  ...Object.fromEntries(Object.entries(process.env).filter(([key]) => !key.startsWith('CUSTODY_'))),
  PATH: `${join(root, 'node_modules', '.bin')}:${process.env['PATH'] ?? ''}`,
  NODE: join(root, 'node_modules', '.bin', 'node'),
  DATA: data,
  DIR: dir,
  DEMO: join(root, 'test', 'demo'),
};

interface Outcome {
  readonly code: number;
  readonly out: string;
  readonly ms: number;
}

/** Shows a command and what it says, as a person at a terminal would see both. */
async function shell(
  command: string,
  options: { env?: Record<string, string>; quiet?: boolean } = {},
): Promise<Outcome> {
  if (options.quiet !== true) console.log(`  ${bold('$')} ${command}`);
  const from = performance.now();
  const child = spawn('bash', ['-c', command], {
    env: { ...environment, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8');
    stream.on('data', (text: string) => (out += text));
  }
  const code = await exitOf(child);
  const ms = performance.now() - from;
  if (options.quiet !== true) show(out);
  return { code, out, ms };
}

function exitOf(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve(code ?? 255));
  });
}

function show(text: string): void {
  for (const line of text.trimEnd().split('\n')) if (line !== '') console.log(`    ${dim(line)}`);
}

function step(number: number, title: string): void {
  console.log(`\n${bold(`${number}. ${title}`)}`);
}

/** What the story claims, checked: the demo is also a test. */
function check(holds: boolean, claim: string): void {
  if (!holds) throw new Error(`this does not hold: ${claim}`);
  console.log(`  ✓ ${claim}`);
}

interface Grant {
  readonly grantId: string;
  readonly state: string;
  readonly ended?: {
    readonly cause: string;
    readonly survivors: number;
    readonly rows: readonly { pid: number; how: string; name: string }[];
  };
}

async function json<Value>(command: string): Promise<Value> {
  const { code, out } = await shell(`${command} --json`, { quiet: true });
  if (code !== 0) throw new Error(`${command}: exit ${code}: ${out}`);
  return JSON.parse(out) as Value;
}

/** Ledgers arrive when they arrive; the story waits for the fact, not for a time. */
async function until<Value>(what: string, look: () => Promise<Value | undefined>): Promise<Value> {
  const deadline = performance.now() + 15_000;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (performance.now() > deadline) throw new Error(`waited in vain for ${what}`);
  }
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function constellation(): Promise<void> {
  step(1, 'The constellation comes up: PostgreSQL, nats-server, control plane, two hosts with an agent each');
  const up = await shell('custody up --detach --hosts 2 --data "$DATA"');
  check(up.code === 0, `two hosts are enrolled and served (${(up.ms / 1_000).toFixed(1)} s)`);
  const variables = await json<Record<string, string>>('custody env --data "$DATA"');
  Object.assign(environment, variables);
  await shell('custody host list');
}

async function secretAndPolicy(): Promise<void> {
  step(2, 'A secret is stored, a policy is applied');
  writeFileSync(join(dir, 'key'), 'sk_live_demo_51HxQp7', { mode: 0o600 });
  writeFileSync(
    join(dir, 'policy.cedar'),
    '@id("anyone-may-hold-prod")\n@ceiling("15m")\npermit (principal, action == Action::"hold", resource in Folder::"prod");\n',
  );
  const put = await shell('custody secret put prod/stripe --field api_key=@"$DIR"/key');
  await shell('cat "$DIR"/policy.cedar');
  const applied = await shell('custody policy apply "$DIR"/policy.cedar');
  check(put.code === 0 && applied.code === 0, 'stored sealed, in force as revision 1');
}

async function run(): Promise<void> {
  step(3, 'A run on host A: the child holds the value, the calling shell does not');
  const child = await shell(
    'custody run --env STRIPE_KEY=custody://prod/stripe/api_key -- "$NODE" "$DEMO"/agent.mjs',
  );
  const caller = await shell('echo "the shell has: ${STRIPE_KEY-nothing}"');
  check(
    child.code === 0 && child.out.includes('Qp7') && caller.out.includes('nothing'),
    'only the tree of the run had it',
  );
  const grantId = /g_[0-9a-f]+/.exec(child.out)?.[0] ?? '';
  await until('the end of the run', async () =>
    (await json<Grant>(`custody grant show ${grantId}`)).state === 'ended' ? true : undefined,
  );
  await shell(`custody grant show ${grantId}`);
}

async function survivor(): Promise<void> {
  step(4, 'A run leaves a daemon behind, double-forked and in a session of its own; its root exits');
  // The substitution ends when the daemon has closed its output: by then it is in its own session.
  const daemon = '$( (setsid sh -c "echo \\$\\$; exec sleep 600 >&-" &) )';
  const command = `custody run --env STRIPE_KEY=custody://prod/stripe/api_key -- bash -c 'pid=${daemon}; echo "daemon: pid $pid"; echo "root: done, grant $CUSTODY_GRANT"'`;
  const { code, out } = await shell(command);
  const pid = Number(/daemon: pid (\d+)/.exec(out)?.[1]);
  const grantId = /g_[0-9a-f]+/.exec(out)?.[0] ?? '';
  check(code === 0 && pid > 0 && !alive(pid), `the daemon, pid ${pid}, is gone`);
  const ended = await until(
    'the end of the run',
    async () => (await json<Grant>(`custody grant show ${grantId}`)).ended,
  );
  await shell(`custody grant show ${grantId} | tail -n 5`);
  check(
    ended.survivors > 0 && ended.rows.some((row) => row.pid === pid && row.how.startsWith('killed')),
    `the ledger accounts for pid ${pid}: found alive after its root, ended by custody`,
  );
}

async function ceiling(): Promise<void> {
  step(5, 'A run that ignores SIGTERM meets its ceiling');
  const { code, ms } = await shell(
    `custody run --ttl 2s --env STRIPE_KEY=custody://prod/stripe/api_key -- bash -c 'trap "" TERM; sleep 600 & wait; sleep 600'`,
  );
  check(code === 124 && ms < 5_000, `exit 124 after ${(ms / 1_000).toFixed(2)} s: ceiling 2 s, grace 2 s`);
}

async function revocation(): Promise<void> {
  step(6, "A session on host B is revoked from the operator's side");
  const socket =
    (await json<Record<string, string>>('custody env --data "$DATA" --host host-b'))['CUSTODY_SOCKET'] ?? '';
  const command = 'custody run --env STRIPE_KEY=custody://prod/stripe/api_key -- sleep 600';
  console.log(`  ${bold('$')} ${command} ${dim('&  # on host-b')}`);
  const session = spawn('bash', ['-c', `exec ${command}`], {
    env: { ...environment, CUSTODY_SOCKET: socket },
    stdio: 'ignore',
  });
  const exited = exitOf(session);
  const grant = await until('the run on host B', async () =>
    (await json<Grant[]>('custody grant list --active')).find((each) => each.state === 'running'),
  );
  const revoked = await shell(`custody revoke --grant ${grant.grantId} --reason "key seen in a log" --wait`);
  check(
    revoked.code === 0 && /survivors 0/.test(revoked.out),
    'host B has signed the receipt: the tree is empty, no survivors',
  );
  check((await exited) === 123, 'the session itself ended with 123: revoked');
}

async function ledger(): Promise<void> {
  step(7, 'The ledgers verify; a changed byte does not');
  const sound = await shell('custody ledger verify');
  check(sound.code === 0, 'every chain is sound up to the head that the control plane confirmed');
  const folder = join(data, 'hosts', 'host-a', 'ledger');
  const file = readdirSync(folder).find((name) => name.endsWith('.ledger')) ?? '';
  const copy = join(dir, 'copy.ledger');
  copyFileSync(join(folder, file), copy);
  const bytes = readFileSync(copy);
  const at = bytes.indexOf('"released"', bytes.length / 2);
  bytes.write('"releases"', at);
  writeFileSync(copy, bytes);
  console.log(`  ${dim(`(byte ${at + 8} of a copy of host A's ledger is changed)`)}`);
  const broken = await shell('custody ledger verify --file "$DIR"/copy.ledger');
  check(
    broken.code === 1 && /first bad sequence number \d+/.test(broken.out),
    'verification names the first bad sequence number',
  );
}

async function possession(): Promise<void> {
  step(8, 'Who held the secret, where, in which process tree, from when to when?');
  const { code, out } = await shell('custody ledger query --secret prod/stripe');
  check(
    code === 0 && out.includes('host-a') && out.includes('host-b'),
    'one query, both hosts, every holder',
  );
}

let failed: unknown;
try {
  console.log('Custody: credentials for exactly one process tree, for exactly as long as policy says.');
  await constellation();
  await secretAndPolicy();
  await run();
  await survivor();
  await ceiling();
  await revocation();
  await ledger();
  await possession();
} catch (error) {
  failed = error;
} finally {
  await shell('custody down --data "$DATA"', { quiet: true });
}
if (failed === undefined) {
  console.log(`\nEight steps in ${((performance.now() - started) / 1_000).toFixed(0)} s; everything is down again. Try next:

  npx custody up --detach --hosts 2 && eval "$(npx custody env)"
  printf s3cret | npx custody secret put prod/db --field password=-
  npx custody run --help
`);
} else {
  console.error(`\nthe demo failed: ${failed instanceof Error ? failed.message : 'unknown'}`);
  const logs = join(data, 'log');
  console.error(`its logs are kept under ${logs}`);
  process.exitCode = 1;
}
if (failed === undefined) rmSync(dir, { recursive: true, force: true });
