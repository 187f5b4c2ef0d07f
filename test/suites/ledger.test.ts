// Owns the proof of invariant 8 over both hosts: what is on record is found, and whoever changes it is found out.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { openDatabase } from '@custody/store/database';
import { parseLine } from '@custody/ledger/entry';
import { exited, openPolicy, until, withConstellation } from '@custody/testkit/constellation';
import { beforeAll, describe, expect, test } from 'vitest';

const kit = withConstellation({ hosts: 2 });
const holds = ['KEY=custody://prod/stripe/api_key'];

interface Verdict {
  readonly name: string;
  readonly ok: boolean;
  readonly entries: number;
  readonly seq: number;
  readonly problem?: string;
}

interface Held {
  readonly grantId: string;
  readonly host: string;
  readonly from: string;
  readonly to?: string;
  readonly cause?: string;
  readonly rootPid?: number;
}

/** The ledger that a host keeps, as one file. */
function copyOf(host: string, name: string): string {
  const dir = path.join(kit.constellation.layout.hostDir(host), 'ledger');
  const segments = fs.readdirSync(dir).filter((each) => each.endsWith('.ledger'));
  const copy = path.join(kit.scratch, name);
  const bytes = segments.toSorted().map((each) => fs.readFileSync(path.join(dir, each)));
  fs.writeFileSync(copy, Buffer.concat(bytes));
  return copy;
}

async function verifyFile(file: string): Promise<Verdict & { code: number; text: string }> {
  const outcome = await kit.custody(['ledger', 'verify', '--file', file, '--json']);
  const [verdict] = JSON.parse(outcome.stdout) as Verdict[];
  if (verdict === undefined) throw new Error('no verdict');
  const { stdout: text } = await kit.custody(['ledger', 'verify', '--file', file]);
  return { ...verdict, code: outcome.code, text };
}

/** By name: the order of authors is that of their ids. */
function outcomes(verdicts: readonly Verdict[]): Record<string, boolean> {
  return Object.fromEntries(verdicts.map(({ name, ok }) => [name, ok]));
}

async function confirmed(): Promise<void> {
  for (const host of ['host-a', 'host-b']) {
    await until(async () => {
      const status = await kit.json<{ ledger_unconfirmed: string }>(['agent', 'status'], { host });
      return status.ledger_unconfirmed === '0';
    }, `every entry of ${host} confirmed`);
  }
}

async function run(host: string, script = 'echo "$CUSTODY_GRANT"'): Promise<string> {
  return exited(0, await kit.run(['sh', '-c', script], { host, holds })).stdout.trim();
}

beforeAll(async () => {
  const policy = path.join(kit.scratch, 'policy.cedar');
  fs.writeFileSync(policy, openPolicy);
  exited(0, await kit.custody(['policy', 'apply', policy]));
  exited(0, await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1']));
  exited(0, await kit.custody(['secret', 'put', 'prod/other', '--field', 'api_key=v1']));
  for (const host of ['host-a', 'host-b', 'host-a', 'host-b']) await run(host);
  await confirmed();
});

test('every chain verifies up to the head that the control plane confirmed', async () => {
  const verdicts = await kit.json<Verdict[]>(['ledger', 'verify']);
  expect(outcomes(verdicts)).toEqual({ 'control-plane': true, 'host-a': true, 'host-b': true });
  const one = await kit.json<Verdict[]>(['ledger', 'verify', '--host', 'host-b']);
  expect(one).toMatchObject([{ name: 'host-b', ok: true }]);
  // A host's own file says the same as the central ledger, entry for entry.
  for (const host of ['host-a', 'host-b']) {
    const own = await verifyFile(copyOf(host, 'own.ledger'));
    expect(own).toMatchObject({ code: 0, ok: true, entries: own.seq });
    expect(verdicts.find(({ name }) => name === host)).toMatchObject({ entries: own.entries, seq: own.seq });
  }
});

describe('in the file of a host', () => {
  test('one changed byte anywhere is found at its own sequence number', async () => {
    const file = copyOf('host-a', 'changed.ledger');
    const bytes = fs.readFileSync(file);
    const lines = bytes.toString('latin1').split('\n').slice(0, -1);
    const middle = Math.floor(lines.length / 2);
    const start = lines.slice(0, middle).reduce((sum, line) => sum + line.length + 1, 0);
    const line = lines[middle] ?? '';
    // In the body, in a number of the frame, and in the signature.
    const places = [line.indexOf('"kind":"') + 9, line.indexOf('"boot_ms":') + 11, line.length - 20];
    for (const place of places) {
      const damaged = Buffer.from(bytes);
      const at = start + place;
      damaged[at] = (damaged[at] ?? 0) === 0x37 ? 0x38 : 0x37;
      fs.writeFileSync(file, damaged);
      const verdict = await verifyFile(file);
      expect(verdict).toMatchObject({ code: 1, ok: false, seq: middle + 1, entries: middle });
      expect(verdict.text).toContain(`first bad sequence number ${middle + 1} (`);
    }
  });

  test('a line taken out, put in twice or swapped is named', async () => {
    const file = copyOf('host-b', 'moved.ledger');
    const lines = fs.readFileSync(file, 'utf8').trimEnd().split('\n');
    const damage = {
      deleted: [lines.filter((_, index) => index !== 2), 3],
      inserted: [[...lines.slice(0, 3), lines[2], ...lines.slice(3)], 4],
      swapped: [[...lines.slice(0, 2), lines[3], lines[2], ...lines.slice(4)], 3],
    } as const;
    for (const [problem, [damaged, seq]] of Object.entries(damage)) {
      fs.writeFileSync(file, `${damaged.join('\n')}\n`);
      expect(await verifyFile(file)).toMatchObject({ code: 1, ok: false, problem, seq });
    }
  });

  test('a line of the other host is named', async () => {
    const file = copyOf('host-a', 'foreign.ledger');
    const [, , third] = fs.readFileSync(copyOf('host-b', 'other.ledger'), 'utf8').split('\n');
    const lines = fs.readFileSync(file, 'utf8').trimEnd().split('\n');
    fs.writeFileSync(file, `${[...lines.slice(0, 2), third, ...lines.slice(3)].join('\n')}\n`);
    expect(await verifyFile(file)).toMatchObject({ code: 1, ok: false, seq: 3 });
  });

  test('a torn last line is told from damage before it', async () => {
    const file = copyOf('host-a', 'torn.ledger');
    const bytes = fs.readFileSync(file);
    const count = bytes.toString('latin1').split('\n').length - 1;
    fs.writeFileSync(file, bytes.subarray(0, -10));
    expect(await verifyFile(file)).toMatchObject({ code: 1, ok: false, problem: 'malformed', seq: count });
  });
});

describe('in the database, by somebody who has it', () => {
  // Each damage is undone: the table is put back from a copy taken before.
  const damaged = async (sql: readonly string[], work: () => Promise<void>): Promise<void> => {
    await using database = await openDatabase({
      connectionString: kit.constellation.databaseUrl,
      poolMax: 1,
    });
    await database.pool.query('CREATE TABLE kept AS TABLE ledger_entries');
    await database.pool.query('CREATE TABLE kept_heads AS TABLE ledger_heads');
    try {
      for (const each of sql) await database.pool.query(each);
      await work();
    } finally {
      await database.pool.query('BEGIN');
      await database.pool.query('TRUNCATE ledger_entries, ledger_heads');
      await database.pool.query('INSERT INTO ledger_entries SELECT * FROM kept');
      await database.pool.query('INSERT INTO ledger_heads SELECT * FROM kept_heads');
      await database.pool.query('COMMIT');
      await database.pool.query('DROP TABLE kept, kept_heads');
    }
  };
  const hostA = `author = (SELECT id FROM hosts WHERE name = 'host-a')`;
  const changes = {
    'a deleted row': { sql: [`DELETE FROM ledger_entries WHERE ${hostA} AND seq = 4`], seq: 4 },
    'an edited entry': {
      sql: [
        `UPDATE ledger_entries SET bytes = convert_to(replace(convert_from(bytes, 'UTF8'), '"cwd":"/', '"cwd":"x'), 'UTF8')
          WHERE ${hostA} AND kind = 'released' AND seq = (SELECT min(seq) FROM ledger_entries WHERE ${hostA} AND kind = 'released')`,
      ],
      seq: 2,
    },
    'two swapped rows': {
      sql: [
        `UPDATE ledger_entries SET seq = 1000 WHERE ${hostA} AND seq = 3`,
        `UPDATE ledger_entries SET seq = 3 WHERE ${hostA} AND seq = 4`,
        `UPDATE ledger_entries SET seq = 4 WHERE ${hostA} AND seq = 1000`,
      ],
      seq: 3,
    },
    'a tail that was cut off': {
      sql: [`DELETE FROM ledger_entries WHERE ${hostA} AND seq > 5`],
      seq: 6,
    },
    'a signature of another entry': {
      sql: [
        `UPDATE ledger_entries SET signature = (SELECT signature FROM ledger_entries WHERE ${hostA} AND seq = 2) WHERE ${hostA} AND seq = 5`,
      ],
      seq: 5,
    },
  };

  test.for(Object.entries(changes))('%s is named', async ([, { sql, seq }]) => {
    await damaged(sql, async () => {
      const outcome = exited(1, await kit.custody(['ledger', 'verify', '--json']));
      const verdicts = JSON.parse(outcome.stdout) as Verdict[];
      expect(outcomes(verdicts)).toEqual({ 'control-plane': true, 'host-a': false, 'host-b': true });
      expect(verdicts.find(({ name }) => name === 'host-a')).toMatchObject({ seq });
    });
    exited(0, await kit.custody(['ledger', 'verify']));
  });

  test('a tail cut off together with its head is a sound shorter chain, which the host’s own file contradicts', async () => {
    const file = copyOf('host-a', 'whole.ledger');
    const last = fs.readFileSync(file, 'utf8').trimEnd().split('\n').at(-1) ?? '';
    const { seq } = parseLine(last).entry;
    const cut = [
      `DELETE FROM ledger_entries WHERE ${hostA} AND seq > 5`,
      `UPDATE ledger_heads SET seq = 5, hash = (SELECT hash FROM ledger_entries WHERE ${hostA} AND seq = 5) WHERE ${hostA}`,
    ];
    await damaged(cut, async () => {
      const central = await kit.json<Verdict[]>(['ledger', 'verify', '--host', 'host-a']);
      expect(central).toMatchObject([{ ok: true, seq: 5 }]);
      expect(await verifyFile(file)).toMatchObject({ ok: true, seq });
    });
  });
});

describe('possession', () => {
  const query = (...more: string[]): Promise<Held[]> =>
    kit.json<Held[]>(['ledger', 'query', '--secret', 'prod/stripe', ...more]);

  test('answers who held it, where, in which tree, from when to when', async () => {
    // The substitution ends when the daemon has closed its output, as its last act before it sleeps.
    const survivor = 'x=$( (setsid sh -c "exec sleep 300 >&- 2>&-" &) ); echo "$CUSTODY_GRANT"';
    const grantId = await run('host-b', survivor);
    await confirmed();
    const row = (await query()).find((each) => each.grantId === grantId);
    expect(row).toMatchObject({
      ...{ path: 'prod/stripe', field: 'api_key', version: 1, name: 'KEY', host: 'host-b', cause: 'exit' },
      processes: [{ how: 'killed:15' }],
    });
    expect(row?.rootPid).toBeGreaterThan(1);
    expect(Date.parse(row?.from ?? '')).toBeLessThanOrEqual(Date.parse(row?.to ?? ''));
    const text = exited(0, await kit.custody(['ledger', 'query', '--secret', 'prod/stripe'])).stdout;
    expect(text).toContain('on host-a');
    expect(text).toContain('on host-b');
    expect(await kit.json(['ledger', 'query', '--secret', 'prod/other'])).toEqual([]);
  });

  test('a window holds what overlaps it and nothing else, to the millisecond', async () => {
    const first = await run('host-a');
    await confirmed();
    const row = (await query()).find((each) => each.grantId === first);
    const [from, to] = [Date.parse(row?.from ?? ''), Date.parse(row?.to ?? '')];
    const at = (ms: number): string => new Date(ms).toISOString();
    const inside = async (...window: string[]): Promise<boolean> =>
      (await query(...window)).some(({ grantId }) => grantId === first);
    expect(await inside('--from', at(from), '--to', at(to))).toBe(true);
    expect(await inside('--from', at(to))).toBe(true);
    expect(await inside('--from', at(to + 1))).toBe(false);
    expect(await inside('--to', at(from))).toBe(true);
    expect(await inside('--to', at(from - 1))).toBe(false);
    expect(await inside('--from', at(from - 60_000), '--to', at(to + 60_000))).toBe(true);
  });

  test('a run that is open holds until now', async () => {
    const open = kit.startRun(['sh', '-c', 'echo "$CUSTODY_GRANT"; exec sleep 300'], { holds });
    const grantId = await open.line(1);
    const row = await until(
      async () => (await query('--from', new Date().toISOString())).find((each) => each.grantId === grantId),
      'the open run on record',
    );
    expect(row.to).toBeUndefined();
    const text = exited(0, await kit.custody(['ledger', 'query', '--secret', 'prod/stripe'])).stdout;
    expect(text).toMatch(new RegExp(`to now; grant ${grantId}`));
    open.kill('SIGTERM');
    await open.outcome;
    const closed = await until(
      async () => (await query()).find((each) => each.grantId === grantId && each.to !== undefined),
      'the end on record',
    );
    expect(closed.cause).toBe('exit');
    // A window that begins after its end does not hold it any more.
    const later = new Date(Date.parse(closed.to ?? '') + 1).toISOString();
    expect((await query('--from', later)).map((each) => each.grantId)).not.toContain(grantId);
  });
});

test('a database that lost its newest entries, as at a failover, gets them again from the hosts that still have them', async () => {
  const hostA = `author = (SELECT id FROM hosts WHERE name = 'host-a')`;
  const entries = async (): Promise<number> => {
    await using database = await openDatabase({
      connectionString: kit.constellation.databaseUrl,
      poolMax: 1,
    });
    const { rows } = await database.pool.query<{ count: number }>(
      `SELECT count(*)::int AS count FROM ledger_entries WHERE ${hostA}`,
    );
    return rows[0]?.count ?? 0;
  };
  await confirmed();
  const before = await entries();
  {
    await using database = await openDatabase({
      connectionString: kit.constellation.databaseUrl,
      poolMax: 1,
    });
    await database.pool.query(`DELETE FROM ledger_entries WHERE ${hostA} AND seq > ${before - 5}`);
    await database.pool.query(
      `UPDATE ledger_heads SET (seq, hash) = (SELECT seq, hash FROM ledger_entries WHERE ${hostA} ORDER BY seq DESC LIMIT 1)
        WHERE ${hostA}`,
    );
  }
  exited(0, await kit.run(['true'], { holds }));
  await confirmed();
  expect(await entries()).toBeGreaterThan(before);
  exited(0, await kit.custody(['ledger', 'verify']));
});
