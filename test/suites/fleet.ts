// Owns a fleet under faults: trees that end by force alone, revocations of them, and what must be true of both in the end.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { openDatabase, type Database } from '@custody/store/database';
import {
  alive,
  exited,
  openPolicy,
  processesWithMarker,
  until,
  type StartedRun,
  type TestConstellation,
} from '@custody/testkit/constellation';
import { call } from '@custody/wire/client';
import { expect } from 'vitest';

export const holds = ['KEY=custody://prod/stripe/api_key'];
const provenMsMax = 30_000;

/** A run whose root, and a daemon of its own session beside it, ignore TERM. */
export interface Tree {
  readonly host: string;
  readonly run: StartedRun;
  readonly grantId: string;
  readonly pids: readonly number[];
}

export interface Revoked {
  readonly epoch: number;
  readonly tree: Tree;
  readonly atMs: number;
}

export class Fleet {
  readonly #kit: TestConstellation;
  /** Since the fleet was last found sound. */
  #trees: Tree[] = [];
  /** What was acknowledged since then. */
  #revoked: Revoked[] = [];

  constructor(kit: TestConstellation) {
    this.#kit = kit;
  }

  async begin(): Promise<void> {
    const policy = path.join(this.#kit.scratch, 'policy.cedar');
    fs.writeFileSync(policy, openPolicy);
    exited(0, await this.#kit.custody(['policy', 'apply', policy]));
    exited(0, await this.#kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1']));
  }

  get #api(): { url: string; token: string } {
    const { api, token } = this.#kit.constellation;
    return { url: api, token };
  }

  /** Resolves when the run is on record at the control plane as running. */
  async hold(host: string, flags: readonly string[] = []): Promise<Tree> {
    const quiet = `trap "" TERM; echo $$; exec >&- 2>&-; exec sleep 300`;
    const script = `trap "" TERM; echo "$CUSTODY_GRANT $$"; (setsid sh -c '${quiet}' &); exec sleep 300`;
    const run = this.#kit.startRun(['sh', '-c', script], { host, holds, flags });
    const [grantId = '', root = ''] = (await run.line(1)).split(' ');
    const tree: Tree = { host, run, grantId, pids: [Number(root), Number(await run.line(2))] };
    expect(tree.pids.map(alive)).toEqual([true, true]);
    this.#trees.push(tree);
    await until(
      async () => (await call(this.#api, 'grant.get', { params: { grantId } })).root !== undefined,
      `the start of ${grantId} on record`,
    );
    return tree;
  }

  holdSome(host: string, count: number): Promise<Tree[]> {
    return Promise.all(Array.from({ length: count }, () => this.hold(host)));
  }

  /** Resolves when the revocation is acknowledged; rejects when it is not. */
  async revoke(tree: Tree, reason: string, api = this.#api.url): Promise<Revoked> {
    const { token } = this.#kit.constellation;
    const body = { target: { kind: 'grant', id: tree.grantId }, reason } as const;
    const made = await call({ url: api, token }, 'revocation.create', { body });
    if ('dryRun' in made) throw new Error('it was to be revoked');
    const revoked = { epoch: made.epoch, tree, atMs: performance.now() };
    this.#revoked.push(revoked);
    return revoked;
  }

  async isProven({ epoch }: Revoked, api = this.#api.url): Promise<boolean> {
    const { token } = this.#kit.constellation;
    return (await call({ url: api, token }, 'revocation.get', { params: { epoch: String(epoch) } })).proven;
  }

  /**
   * Waits for the receipts, whatever is up meanwhile. When one is known nothing of its tree may live.
   * Answers with the longest time from acknowledgement to proof.
   */
  async proven(revoked: readonly Revoked[], msMax = provenMsMax, api = this.#api.url): Promise<number> {
    const waited = revoked.map(async (each) => {
      const what = `epoch ${each.epoch} proven by ${each.tree.host}`;
      await until(() => this.isProven(each, api).catch(() => false), what, msMax);
      expect(each.tree.pids.filter(alive), `alive after the receipt of ${each.tree.grantId}`).toEqual([]);
      return performance.now() - each.atMs;
    });
    const longestMs = Math.max(...(await Promise.all(waited)));
    for (const tree of new Set(revoked.map((each) => each.tree)))
      expect(living(tree), `alive after the receipt of ${tree.grantId}`).toEqual([]);
    return longestMs;
  }

  /** Every host is caught up, and all that it wrote is confirmed. */
  async #settled(): Promise<void> {
    for (const { name: host } of this.#kit.constellation.hosts) {
      const settled = async (): Promise<boolean> => {
        const { stdout } = await this.#kit.custody(['agent', 'status', '--json'], { host });
        if (stdout === '') return false; // it is on its way up
        const status = JSON.parse(stdout) as { link: string; ledger_unconfirmed: string };
        return status.link === 'ready' && status.ledger_unconfirmed === '0';
      };
      await until(settled, `${host} caught up and confirmed`, provenMsMax);
    }
  }

  /**
   * Nothing acknowledged is lost and nothing is there twice; every chain verifies; every run is closed; no run began
   * after its revocation; nothing waits to be told. `ran`: grants of runs that ended by themselves.
   */
  async sound(ran: Iterable<string> = []): Promise<void> {
    await this.proven(this.#revoked);
    for (const tree of this.#trees) if (this.#ends(tree)) await tree.run.outcome;
    await this.#settled();
    exited(0, await this.#kit.custody(['ledger', 'verify']));
    await using database = await this.database();
    await until(async () => (await rows(database, 'SELECT id FROM outbox')).length === 0, 'an empty outbox');
    expect(await rows(database, forkedOrGapped), 'chains with a gap or a fork').toEqual([]);
    expect(await rows(database, notClosedOnce), 'runs that are not closed exactly once').toEqual([]);
    expect(await rows(database, begunAfterReceipt), 'runs begun after their receipt').toEqual([]);
    expect(await rows(database, notTogether), 'revocations without their one ledger entry').toEqual([]);
    expect(await rows(database, receivedTwice), 'receipts given twice').toEqual([]);
    expect(await rows(database, outOfOrder), 'grants out of order with revocations').toEqual([]);
    const closed = await rows<{ grant_id: string }>(
      database,
      `SELECT grant_id FROM ledger_entries WHERE kind = 'ended'`,
    );
    const lost = new Set(ran).difference(new Set(closed.map((row) => row.grant_id)));
    expect([...lost], 'runs that are on no record').toEqual([]);
    const epochs = await rows<{ epoch: number; target: string }>(
      database,
      'SELECT epoch::int, target FROM revocations ORDER BY epoch',
    );
    expect(epochs.map(({ epoch }) => epoch)).toEqual(epochs.map((_, index) => index + 1));
    for (const { epoch, tree } of this.#revoked) expect(epochs[epoch - 1]?.target).toBe(tree.grantId);
    this.#trees = [];
    this.#revoked = [];
  }

  database(): Promise<Database> {
    return openDatabase({ connectionString: this.#kit.constellation.databaseUrl, poolMax: 1 });
  }

  #ends(tree: Tree): boolean {
    return this.#revoked.some((each) => each.tree === tree) || living(tree).length === 0;
  }
}

/** What is alive of a tree, found by its pids and by its marker. */
export function living({ grantId, pids }: Tree): number[] {
  return [...new Set([...pids, ...processesWithMarker(grantId)])].filter(alive);
}

async function rows<Row>(database: Database, sql: string): Promise<Row[]> {
  return (await database.pool.query(sql)).rows as Row[];
}

const forkedOrGapped = `SELECT author FROM ledger_entries JOIN ledger_heads AS head USING (author)
  GROUP BY author, head.forked_at, head.seq
  HAVING head.forked_at IS NOT NULL OR count(DISTINCT (ledger_entries.chain_epoch, ledger_entries.seq)) <> head.seq`;

// A grant that was never released is closed too, as one that nobody held.
const notClosedOnce = `SELECT grant_id FROM ledger_entries WHERE kind IN ('released', 'started', 'ended') GROUP BY grant_id
  HAVING count(*) FILTER (WHERE kind = 'released') > 1 OR count(*) FILTER (WHERE kind = 'ended') <> 1
      OR count(*) FILTER (WHERE kind = 'started') > count(*) FILTER (WHERE kind = 'released')`;

const begunAfterReceipt = `SELECT late.grant_id FROM ledger_entries AS receipt JOIN ledger_entries AS late
    ON late.author = receipt.author AND late.grant_id = receipt.grant_id AND late.seq > receipt.seq
  WHERE receipt.kind = 'receipt' AND late.kind IN ('released', 'started')`;

const notTogether = `SELECT revocation.epoch FROM revocations AS revocation FULL JOIN ledger_entries AS entry
    ON entry.kind = 'revoked' AND entry.body->>'epoch' = revocation.epoch::text
  WHERE revocation.epoch IS NOT NULL OR entry.kind = 'revoked'
  GROUP BY revocation.epoch HAVING count(entry.kind) <> 1 OR revocation.epoch IS NULL`;

const receivedTwice = `SELECT grant_id FROM ledger_entries WHERE kind = 'receipt'
  GROUP BY grant_id, body->>'epoch' HAVING count(*) > 1`;

// The control plane's own chain is the one order of all.
const outOfOrder = `SELECT id FROM grants JOIN ledger_entries AS entry ON entry.kind = 'granted' AND entry.grant_id = id
  WHERE epoch <> coalesce((SELECT max((body->>'epoch')::int) FROM ledger_entries
    WHERE author = entry.author AND kind = 'revoked' AND seq < entry.seq), 0)`;
