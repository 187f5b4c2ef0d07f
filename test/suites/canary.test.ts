// Owns the proof of invariant 1: a secret put through every step is nowhere but in the tree that was given it.
import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { openDatabase } from '@custody/store/database';
import {
  exited,
  openPolicy,
  processes,
  shownOf,
  until,
  withConstellation,
  type CommandOptions,
  type Outcome,
  type RunOptions,
} from '@custody/testkit/constellation';
import { expect, onTestFailed, test } from 'vitest';

const kit = withConstellation({ hosts: 2, environment: async () => ({ CUSTODY_LOG: 'debug' }) });

interface Grant {
  readonly grantId: string;
  readonly state: string;
  readonly ended?: { readonly cause: string };
}

/** Every spelling that a program might give to a value by accident. */
function spellingsOf(canary: string): Map<string, Buffer> {
  const bytes = Buffer.from(canary);
  const spellings = new Map([
    ['plain', canary],
    ['reversed', Buffer.from(Array.from(bytes).toReversed()).toString()],
    ['hex', bytes.toString('hex')],
    ['HEX', bytes.toString('hex').toUpperCase()],
    ['url', encodeURIComponent(canary)],
    ['json', JSON.stringify(canary).slice(1, -1)],
  ]);
  // Within a longer text base64 falls into one of three phases; the first and last characters mix with the neighbours.
  for (const phase of [0, 1, 2]) {
    const text = Buffer.concat([Buffer.alloc(phase), bytes]).toString('base64');
    const inner = text.replaceAll('=', '').slice(phase === 0 ? 0 : 4, -2);
    spellings.set(`base64/${phase}`, inner);
    spellings.set(`base64url/${phase}`, inner.replaceAll('+', '-').replaceAll('/', '_'));
  }
  return new Map([...spellings].map(([name, text]) => [name, Buffer.from(text)]));
}

class Sweep {
  readonly #needles: { readonly name: string; readonly bytes: Buffer }[];
  readonly found: string[] = [];
  bytes = 0;
  files = 0;

  constructor(canaries: readonly string[]) {
    this.#needles = canaries.flatMap((canary, index) =>
      [...spellingsOf(canary)].map(([name, bytes]) => ({ name: `canary ${index + 1} (${name})`, bytes })),
    );
  }

  look(where: string, content: Uint8Array): void {
    const bytes = Buffer.from(content.buffer, content.byteOffset, content.byteLength);
    this.bytes += bytes.byteLength;
    for (const needle of this.#needles)
      if (bytes.includes(needle.bytes)) this.found.push(`${needle.name} in ${where}`);
  }

  /** Every byte of every file, without following links out of the folder. */
  folder(dir: string): void {
    for (const entry of fs.readdirSync(dir, { withFileTypes: true })) {
      const file = path.join(dir, entry.name);
      this.look(`the name of ${file}`, Buffer.from(entry.name));
      if (entry.isDirectory()) this.folder(file);
      else if (entry.isSymbolicLink()) this.look(`the link ${file}`, Buffer.from(fs.readlinkSync(file)));
      else if (entry.isFile()) {
        this.files += 1;
        this.look(file, fs.readFileSync(file));
      }
    }
  }
}

/** Looks at every process of the machine until disposed: at arguments always, at environments of our own programs. */
class Watch implements AsyncDisposable {
  readonly #sweep: Sweep;
  readonly #stop = new AbortController();
  readonly #loop: Promise<void>;
  readonly #known = new Map<number, string>();
  samples = 0;
  /** Programs of ours that were seen, by name. */
  readonly seen = new Set<string>();

  constructor(sweep: Sweep) {
    this.#sweep = sweep;
    this.#loop = this.#run();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      this.#sample();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  #sample(): void {
    this.samples += 1;
    for (const pid of processes()) {
      if (pid === process.pid) continue;
      const { arguments: words, environment } = shownOf(pid);
      const key = words.toString('latin1');
      // A process that shows what it showed before has been looked at.
      if (this.#known.get(pid) === key) continue;
      this.#known.set(pid, key);
      const command = key.replaceAll('\0', ' ').slice(0, 120);
      this.#sweep.look(`the arguments of ${pid} (${command})`, words);
      const name = programOf(command);
      // Inside a run everything inherits, a keeper and a terminal too.
      if (name === undefined || environment.includes('CUSTODY_GRANT=')) continue;
      this.seen.add(name);
      this.#sweep.look(`the environment of ${name} ${pid}`, environment);
    }
  }
}

/** Our programs, and none of the children that are meant to hold values. */
function programOf(command: string): string | undefined {
  if (command.includes('apps/agent/dist/main.js')) return 'agent';
  if (command.includes('apps/control-plane/dist/main.js')) return 'control plane';
  if (command.includes('apps/cli/dist/main.js')) return 'terminal';
  if (/(^|\/)custody-keeper /.test(command)) return 'keeper';
  if (/(^|\/)nats-server /.test(command)) return 'nats';
  if (/^postgres|\/bin\/postgres /.test(command)) return 'postgres';
  return undefined;
}

test(
  'a secret put through every step is found nowhere but in the tree that held it',
  { timeout: 120_000 },
  async () => {
    // With characters that URL, JSON and base64 spell in ways of their own.
    const canaries = [1, 2].map((each) => `cnry${each}/+"${randomBytes(18).toString('base64')}`);
    const [first = '', second = ''] = canaries;
    onTestFailed(() => console.error(`canaries: ${canaries.join(' ')}`));
    const { constellation, dir, scratch } = kit;
    const sweep = new Sweep(canaries);

    /** Steps may say anything but the secret. */
    const quiet = (outcome: Outcome, what: string): Outcome => {
      sweep.look(`stdout of ${what}`, Buffer.from(outcome.stdout));
      sweep.look(`stderr of ${what}`, Buffer.from(outcome.stderr));
      return outcome;
    };
    const custody = async (args: readonly string[], options?: CommandOptions): Promise<Outcome> =>
      quiet(await kit.custody(args, options), `custody ${args.join(' ')}`);
    const good = async (args: readonly string[], options?: CommandOptions): Promise<Outcome> => {
      const outcome = await custody(args, options);
      return exited(0, outcome);
    };
    const run = async (code: number, command: readonly string[], options?: RunOptions): Promise<Outcome> => {
      const outcome = quiet(await kit.run(command, options), `a run of ${command.join(' ')}`);
      return exited(code, outcome);
    };
    const ended = (grantId: string): Promise<Grant> =>
      until(async () => {
        const grant = await kit.json<Grant>(['grant', 'show', grantId]);
        return grant.state === 'ended' ? grant : undefined;
      }, `the end of ${grantId} on record`);

    const holds = ['CANARY=custody://prod/canary/value'];
    // Says the grant and whether it holds a value, and never the value.
    const say = 'echo "$CUSTODY_GRANT ${#CANARY}"';
    const held = new RegExp(`^g_[0-9a-f]+ ${second.length}$`);
    const policyFile = path.join(scratch, 'policy.cedar');
    fs.writeFileSync(policyFile, openPolicy);
    const valueFile = path.join(scratch, 'value');
    fs.writeFileSync(valueFile, `${second}\n`, { mode: 0o600 });
    const envFile = path.join(scratch, 'run.env');
    fs.writeFileSync(envFile, 'CANARY=custody://prod/canary/value\nPLAIN=nothing secret\n');

    await using watch = new Watch(sweep);
    // Stored on the first way in, then a second version on the other.
    await good(['secret', 'put', 'prod/canary', '--field', 'value=-'], { input: `${first}\n` });
    await good([
      'secret',
      'put',
      'prod/canary',
      '--field',
      `value=@${valueFile}`,
      '--field',
      'user=nobody',
      '--json',
    ]);
    await good(['policy', 'validate', policyFile, '--json']);
    await good(['policy', 'apply', policyFile, '--json']);
    const revealed = await kit.custody(['secret', 'get', 'prod/canary', '--reveal']);
    expect(revealed.stdout).toContain(second);
    const older = await kit.json<{ values: { value: string } }>([
      ...['secret', 'get', 'prod/canary', '--reveal', '--version', '1'],
    ]);
    expect(Buffer.from(older.values.value, 'base64').toString()).toBe(first);
    for (const { stderr } of [revealed]) sweep.look('stderr of reveal', Buffer.from(stderr));

    // Held on both hosts and on both ways of asking.
    for (const host of ['host-a', 'host-b']) {
      const direct = await run(0, ['sh', '-c', say], { host, holds });
      expect(direct.stdout.trim()).toMatch(held);
      const fromFile = await run(0, ['sh', '-c', say], { host, flags: ['--env-file', envFile] });
      expect(fromFile.stdout.trim()).toMatch(held);
    }
    // The child does have it, and may do with it what it likes.
    const shown = await kit.run(['sh', '-c', 'printf %s "$CANARY"'], { holds });
    expect(shown.stdout).toBe(second);

    const atCeiling = kit.run(['sh', '-c', `trap "" TERM; ${say}; while :; do sleep 1; done`], {
      holds,
      flags: ['--ttl', '300ms'],
    });
    const nested = run(
      0,
      [
        'sh',
        '-c',
        `custody run --env INNER=custody://prod/canary/value -- sh -c 'echo "$CUSTODY_GRANT \${#INNER}"'`,
      ],
      { host: 'host-b', holds },
    );
    const survivors = await run(0, ['sh', '-c', `(setsid sh -c 'exec sleep 300 >&- 2>&-' &) ; ${say}`], {
      holds,
    });
    const refusals = [
      await run(125, ['true'], { holds: ['X=custody://elsewhere/canary/value'] }),
      await run(125, ['true'], { holds: ['X=custody://prod/canary/other'] }),
      await run(125, ['true'], { holds: ['X=custody://prod/unknown/value'] }),
    ];
    expect(refusals.map(({ stdout }) => stdout)).toEqual(['', '', '']);
    expect((await nested).stdout.trim()).toMatch(held);
    expect(quiet(await atCeiling, 'the run at its ceiling').code).toBe(124);

    const revoked = kit.startRun(['sh', '-c', `${say}; exec sleep 300`], { host: 'host-b', holds });
    const revokedGrant = (await revoked.line(1)).split(' ')[0] ?? '';
    await until(
      async () => (await kit.json<Grant>(['grant', 'show', revokedGrant])).state === 'running',
      'the run to be revoked on record',
    );
    await good([
      'revoke',
      '--grant',
      revokedGrant,
      '--reason',
      'seen where it should not be',
      '--wait',
      '--json',
    ]);
    expect(quiet(await revoked.outcome, 'the revoked run').code).toBe(123);

    // The agent dies during a run, comes back, and the run ends under it.
    const go = path.join(scratch, 'go');
    const orphan = kit.startRun(['sh', '-c', `${say}; until [ -e ${go} ]; do sleep 0.05; done`], { holds });
    const orphanGrant = (await orphan.line(1)).split(' ')[0] ?? '';
    const killed = await constellation.part('host-a').kill('SIGKILL');
    await killed.restarted;
    await until(
      async () => (await kit.custody(['agent', 'status'])).code === 0,
      'the agent of host-a ready again',
    );
    fs.writeFileSync(go, '');
    exited(0, quiet(await orphan.outcome, 'the run whose agent died'));
    await ended(orphanGrant);
    await ended(survivors.stdout.split(' ')[0] ?? '');

    const malformed = await fetch(`${constellation.api}/v1/secrets/prod%2Fcanary`, {
      method: 'PUT',
      headers: { authorization: `Bearer ${constellation.token}`, 'content-type': 'application/json' },
      body: `{"fields": {"value": ${JSON.stringify(second)}, }}`,
    });
    expect(malformed.status).toBe(400);
    sweep.look('the answer to broken JSON', Buffer.from(await malformed.text()));
    const wrongShape = await fetch(`${constellation.api}/v1/secrets/prod%2Fcanary`, {
      method: 'PUT',
      headers: { authorization: `Bearer ${constellation.token}`, 'content-type': 'application/json' },
      body: JSON.stringify({ fields: { value: [second] }, encoding: second }),
    });
    expect(wrongShape.status).toBe(400);
    sweep.look('the answer to the wrong shape', Buffer.from(await wrongShape.text()));

    // Every reading command, for people and for programs.
    const reading = [
      ['secret', 'list'],
      ['secret', 'get', 'prod/canary'],
      ['secret', 'versions', 'prod/canary'],
      ['policy', 'show'],
      ['policy', 'history'],
      ['policy', 'explain', '--subject', 'host-a/0', '--secret', 'prod/canary', '--', 'sh'],
      ['host', 'list'],
      ['host', 'show', 'host-a'],
      ['host', 'token', 'create', '--ttl', '1m'],
      ['agent', 'status'],
      ['grant', 'list'],
      ['grant', 'list', '--active'],
      ['grant', 'show', revokedGrant],
      ['grant', 'show', orphanGrant],
      ['ledger', 'verify'],
      ['ledger', 'query', '--secret', 'prod/canary'],
      ['ledger', 'tail'],
      ['status'],
    ];
    const asked = reading.flatMap((args) => {
      const cut = args.includes('--') ? args.indexOf('--') : args.length;
      return [args, [...args.slice(0, cut), '--json', ...args.slice(cut)]];
    });
    while (asked.length > 0) await Promise.all(asked.splice(0, 3).map((args) => good(args)));
    const hostLedger = path.join(constellation.layout.hostDir('host-a'), 'ledger');
    const segment = fs.readdirSync(hostLedger).find((name) => name.endsWith('.ledger')) ?? '';
    await good(['ledger', 'verify', '--file', path.join(hostLedger, segment), '--json']);
    await good(['secret', 'put', 'prod/other', '--field', 'value=-'], { input: first });
    await good(['secret', 'rm', 'prod/other', '--json']);

    // Everything that Postgres holds in memory goes to its files.
    {
      await using database = await openDatabase({ connectionString: constellation.databaseUrl, poolMax: 1 });
      await database.pool.query('CHECKPOINT');
    }
    await watch[Symbol.asyncDispose]();
    expect(watch.samples).toBeGreaterThan(50);
    expect([...watch.seen].toSorted()).toEqual([
      'agent',
      'control plane',
      'keeper',
      'nats',
      'postgres',
      'terminal',
    ]);

    // The sweep proves itself: on every spelling, planted where it looks.
    const planted = path.join(dir, 'log', 'planted');
    for (const [name, bytes] of spellingsOf(second)) {
      fs.writeFileSync(planted, Buffer.concat([Buffer.from('before '), bytes, Buffer.from(' after')]));
      const proof = new Sweep(canaries);
      proof.folder(path.join(dir, 'log'));
      expect(proof.found).toContain(`canary 2 (${name}) in ${planted}`);
    }
    fs.rmSync(planted);

    sweep.folder(dir);
    expect(sweep.found).toEqual([]);
    expect(sweep.files).toBeGreaterThan(500);
  },
);
