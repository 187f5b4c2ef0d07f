// Owns the proof of invariant 4: whoever holds one host's real credentials can do nothing on the bus but be that host.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { connectBus } from '@custody/bus/nats-bus';
import { mintControlPlaneUser, type Trust } from '@custody/bus/trust';
import { signJws } from '@custody/crypto/jws';
import { readKeyFile } from '@custody/crypto/keyfiles';
import { signingKeyFromSeed } from '@custody/crypto/keys';
import { appendEntry } from '@custody/ledger/chain';
import { parseLine } from '@custody/ledger/entry';
import { alive, exited, openPolicy, until, withConstellation } from '@custody/testkit/constellation';
import { signedTypes } from '@custody/wire/messages';
import { beforeAll, describe, expect, test } from 'vitest';
import { BareClient } from './bare-client.ts';

const kit = withConstellation({ hosts: 2 });
const holds = ['KEY=custody://prod/stripe/api_key'];
const mark = 'from the thief';

interface Identity {
  readonly hostId: string;
  readonly busJwt: string;
}

interface HostView {
  readonly name: string;
  readonly ledger: { readonly seq: number; readonly hash: string; readonly forked: boolean };
}

/** What a thief finds in a host's data folder. */
function stolen(name: string): Identity & { jwt: string; seed: string; dir: string } {
  const dir = kit.constellation.layout.hostDir(name);
  const identity = JSON.parse(fs.readFileSync(path.join(dir, 'identity.json'), 'utf8')) as Identity;
  const [seed = ''] = fs.readFileSync(path.join(dir, 'keys', 'bus.nkey'), 'ascii').split('\n');
  return { ...identity, jwt: identity.busJwt, seed, dir };
}

function linesOf(name: string): string[] {
  const dir = path.join(kit.constellation.layout.hostDir(name), 'ledger');
  return fs
    .readdirSync(dir)
    .filter((each) => each.endsWith('.ledger'))
    .flatMap((each) => fs.readFileSync(path.join(dir, each), 'utf8').trimEnd().split('\n'));
}

function thief(): Promise<BareClient> {
  return BareClient.open(busPort(), stolen('host-a'));
}

/** Somebody with the control plane's rights, who hears everything of the account. */
async function witness(): Promise<BareClient> {
  const trustFile = path.join(kit.constellation.layout.keys, 'trust.json');
  const trust = JSON.parse(fs.readFileSync(trustFile, 'utf8')) as Trust;
  const client = await BareClient.open(busPort(), await mintControlPlaneUser(trust));
  expect(await client.subscribe('>')).toEqual([]);
  return client;
}

function busPort(): number {
  return Number(new URL(kit.constellation.busUrl).port);
}

async function confirmed(host: string): Promise<HostView> {
  await until(async () => {
    const status = await kit.json<{ ledger_unconfirmed: string }>(['agent', 'status'], { host });
    return status.ledger_unconfirmed === '0';
  }, `every entry of ${host} confirmed`);
  return kit.json<HostView>(['host', 'show', host]);
}

beforeAll(async () => {
  const policy = path.join(kit.scratch, 'policy.cedar');
  fs.writeFileSync(policy, openPolicy);
  exited(0, await kit.custody(['policy', 'apply', policy]));
  exited(0, await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=v1']));
  for (const host of ['host-a', 'host-b']) exited(0, await kit.run(['true'], { host, holds }));
});

describe('with the credentials of host-a', () => {
  test('nothing can be published but to its own subjects towards the control plane', async () => {
    using client = await thief();
    using everything = await witness();
    const [a, b] = [stolen('host-a').hostId, stolen('host-b').hostId];
    const forbidden = [
      ...['grant', 'revocations', 'policy', 'ledger'].map((what) => `custody.v1.host.${b}.up.${what}`),
      `custody.v1.host.${b}.down.ledger`,
      `custody.v1.host.${a}.down.ledger`,
      'custody.v1.fleet.revocation',
      'custody.v1.fleet.beacon',
      'custody.v1.fleet.policy',
      `_INBOX_${b}.x`,
      `_INBOX_${a}.x`,
      '_INBOX.x',
      '$JS.API.INFO',
      '$JS.API.STREAM.LIST',
      '$JS.API.STREAM.INFO.CUSTODY_LEDGER',
      '$JS.API.STREAM.PURGE.CUSTODY_LEDGER',
      '$JS.API.STREAM.DELETE.CUSTODY_LEDGER',
      '$JS.API.STREAM.MSG.GET.CUSTODY_LEDGER',
      '$JS.API.CONSUMER.MSG.NEXT.CUSTODY_LEDGER.control-plane',
      '$JS.API.CONSUMER.DELETE.CUSTODY_LEDGER.control-plane',
      '$JS.ACK.CUSTODY_LEDGER.control-plane.1.1.1.1.0',
      '$SYS.REQ.CLAIMS.UPDATE',
      '$SYS.REQ.SERVER.PING',
      '$SYS.ACCOUNT.x.DISCONNECT',
      'anything.else',
    ];
    for (const subject of forbidden) {
      const said = await client.publish(subject, mark);
      expect(said).toEqual([`-ERR 'Permissions Violation for Publish to "${subject}"'`]);
    }
    // What is its own arrives: the witness does hear.
    expect(await client.publish(`custody.v1.host.${a}.up.policy`, mark, `_INBOX_${a}.mine`)).toEqual([]);
    await everything.flush();
    const heard = everything.heard.filter(({ text }) => text.includes(mark)).map(({ subject }) => subject);
    expect(heard).toEqual([`custody.v1.host.${a}.up.policy`]);
  });

  test('nothing can be heard but its own subjects and the broadcasts', async () => {
    using client = await thief();
    const [a, b] = [stolen('host-a').hostId, stolen('host-b').hostId];
    const forbidden = [
      ...['>', '*', 'custody.>', 'custody.v1.>', 'custody.v1.host.>', 'custody.v1.host.*.down.ledger'],
      ...[`custody.v1.host.${b}.>`, `custody.v1.host.${b}.down.>`, `custody.v1.host.${b}.down.ledger`],
      ...[
        `custody.v1.host.${b}.up.grant`,
        `custody.v1.host.${a}.up.grant`,
        'custody.v1.host.*.up.grant custody',
      ],
      ...[`_INBOX_${b}.>`, `_INBOX_${b}.*`, '_INBOX.>', '*.>', '$JS.>', '$JS.API.>', '$JS.EVENT.>', '$SYS.>'],
    ];
    for (const subject of forbidden) {
      const said = await client.subscribe(subject);
      expect(said).toHaveLength(1);
      expect(said[0]).toContain(`Permissions Violation for Subscription to "${subject.split(' ')[0]}"`);
    }
    for (const own of [`custody.v1.host.${a}.down.>`, 'custody.v1.fleet.>', `_INBOX_${a}.>`]) {
      expect(await client.subscribe(own)).toEqual([]);
    }
    // While the other host is at work, none of it is heard.
    exited(0, await kit.run(['true'], { host: 'host-b', holds }));
    await confirmed('host-b');
    await client.flush();
    expect(client.heard.filter(({ subject }) => subject.includes(b))).toEqual([]);
  });

  test('a reply cannot be sent to the other host, nor its subject be written through a reply', async () => {
    using client = await thief();
    using everything = await witness();
    const [a, b] = [stolen('host-a').hostId, stolen('host-b').hostId];
    const before = await confirmed('host-b');
    for (const what of ['grant', 'revocations', 'policy']) {
      await client.publish(
        `custody.v1.host.${a}.up.${what}`,
        '{"have":0}',
        `_INBOX_${b}.${mark.replaceAll(' ', '-')}`,
      );
    }
    // JetStream acknowledges wherever it is told to; what it writes there is nobody's word.
    await client.publish(`custody.v1.host.${a}.up.ledger`, mark, `custody.v1.host.${b}.up.ledger`);
    exited(0, await kit.run(['true'], { host: 'host-b', holds }));
    const after = await confirmed('host-b');
    expect(after.ledger.seq).toBe(before.ledger.seq + 3);
    await everything.flush();
    expect(everything.heard.filter(({ subject }) => subject.startsWith(`_INBOX_${b}.from`))).toEqual([]);
  });

  test('a ledger line of the other host enters no chain, forged or replayed', async () => {
    const [a, b] = [stolen('host-a'), stolen('host-b')];
    const heads = [await confirmed('host-a'), await confirmed('host-b')];
    await using bus = await connectBus({
      servers: [kit.constellation.busUrl],
      jwt: a.jwt,
      seed: new TextEncoder().encode(a.seed),
      inboxPrefix: `_INBOX_${a.hostId}`,
      name: 'thief',
    });
    const key = signingKeyFromSeed(await readKeyFile(path.join(a.dir, 'keys', 'signing.seed')));
    const last = linesOf('host-b').at(-1) ?? '';
    const { entry, hash } = parseLine(last);
    const head = { epoch: entry.epoch, seq: entry.seq, hash };
    const next = { host: b.hostId, at: entry.at, boot_ms: entry.boot_ms, kind: entry.kind, body: entry.body };
    const forged = appendEntry(head, next, key).line;
    const refusals = (): number =>
      fs
        .readFileSync(kit.constellation.layout.log('control-plane'), 'utf8')
        .split('a ledger batch was refused').length;
    const before = refusals();
    const own = `custody.v1.host.${a.hostId}.up.ledger`;
    const offered = [Buffer.from(`${last}\n`), forged, Buffer.from(`${mark}\n`)];
    for (const batch of offered) {
      await bus.publishDurable(own, batch, { timeoutMs: 5_000 });
      await expect(
        bus.publishDurable(`custody.v1.host.${b.hostId}.up.ledger`, batch, { timeoutMs: 5_000 }),
      ).rejects.toMatchObject({ code: 'refused' });
    }
    await until(() => refusals() === before + offered.length, 'each refused by the control plane');
    expect([await confirmed('host-a'), await confirmed('host-b')]).toMatchObject(
      heads.map(({ name, ledger }) => ({ name, ledger })),
    );
    for (const host of ['host-a', 'host-b']) exited(0, await kit.run(['true'], { host, holds }));
    await confirmed('host-a');
    await confirmed('host-b');
    exited(0, await kit.custody(['ledger', 'verify']));
  });

  test('a request that lies about its host gets nothing of the other', async () => {
    const [a, b] = [stolen('host-a'), stolen('host-b')];
    await using bus = await connectBus({
      servers: [kit.constellation.busUrl],
      jwt: a.jwt,
      seed: new TextEncoder().encode(a.seed),
      inboxPrefix: `_INBOX_${a.hostId}`,
      name: 'thief',
    });
    const ask = async (what: string, body: unknown): Promise<string> => {
      const bytes = new TextEncoder().encode(JSON.stringify(body));
      const { data } = await bus.request(`custody.v1.host.${a.hostId}.up.${what}`, bytes, {
        timeoutMs: 5_000,
      });
      return Buffer.from(data).toString('utf8');
    };
    const request = {
      ...{ version: 1, requestId: 'q_00000000', runId: 'r_00000000', uid: 0, gid: 0, pid: 1 },
      ...{ command: [mark], cwd: '/', containment: 'subreaper' },
      credentials: [{ name: 'KEY', path: 'prod/stripe', field: 'api_key' }],
    };
    for (const lie of [{ hostId: b.hostId }, { host: 'host-b' }, { subject: 'host-b/0' }]) {
      expect(JSON.parse(await ask('grant', { ...request, ...lie }))).toMatchObject({
        ok: false,
        error: { code: 'bad_request' },
      });
    }
    // Not in the shadow of the other's run either.
    const other = kit.startRun(['sh', '-c', 'echo "$CUSTODY_GRANT"; exec sleep 60'], {
      host: 'host-b',
      holds,
    });
    const parent = { grantId: await other.line(1), remainingMs: 60_000 };
    const nested = JSON.parse(await ask('grant', { ...request, parent })) as { ok: boolean };
    expect(nested.ok).toBe(false);
    other.kill('SIGTERM');
    await other.outcome;
    // Told the truth, it is granted what is host-a's, under host-a's name.
    const honest = JSON.parse(await ask('grant', request)) as { ok: boolean; grant: string };
    expect(honest.ok).toBe(true);
    const claims = JSON.parse(
      Buffer.from(honest.grant.split('.')[1] ?? '', 'base64url').toString(),
    ) as object;
    expect(claims).toMatchObject({ hostId: a.hostId, subject: 'host-a/0' });
    const { signed } = JSON.parse(await ask('policy', { have: 0 })) as { signed: string };
    const copy = JSON.parse(Buffer.from(signed.split('.')[1] ?? '', 'base64url').toString()) as object;
    expect(copy).toMatchObject({ hostId: a.hostId });
  });
});

describe('a broadcast that the control plane does not send now', () => {
  const words = { revocation: 'custody.v1.fleet.revocation', beacon: 'custody.v1.fleet.beacon' } as const;

  /** What was broadcast so far, without its headers. */
  const broadcast = (everything: BareClient, what: keyof typeof words): string[] =>
    everything.heard
      .filter(({ subject }) => subject === words[what])
      .map(({ text }) => text.slice(text.indexOf('\r\n\r\n') + 4));
  const claimsIn = (token: string): Record<string, unknown> =>
    JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString()) as Record<string, unknown>;
  const status = (): Promise<Record<string, string>> => kit.json(['agent', 'status'], { host: 'host-b' });

  test('is refused to a host’s credentials and on record; sent by anybody else it changes nothing at a host', async () => {
    using everything = await witness();
    for (const prefix of ['none/one', 'none/two'])
      exited(0, await kit.custody(['revoke', '--prefix', prefix, '--reason', 'to be heard']));
    await until(() => broadcast(everything, 'revocation').length === 2, 'two revocations on the bus');
    await until(() => broadcast(everything, 'beacon').length > 0, 'a beacon on the bus');
    const [first = '', second = ''] = broadcast(everything, 'revocation');
    const [old = ''] = broadcast(everything, 'beacon');
    const run = kit.startRun(['sh', '-c', 'echo $$; exec sleep 60'], { host: 'host-b', holds });
    const pid = Number(await run.line(1));
    const { revocation_epoch: head = '' } = await status();
    expect(claimsIn((JSON.parse(second) as { entry: string }).entry)).toMatchObject({ epoch: Number(head) });

    const own = await readKeyFile(path.join(kit.constellation.layout.keys, 'signing.seed'));
    const stranger = new Uint8Array(32).fill(7);
    const entry = async (seed: Uint8Array, ahead: number): Promise<string> => {
      const claims = {
        epoch: Number(head) + ahead,
        target: { kind: 'all' },
        reason: mark,
        at: new Date().toISOString(),
      };
      return JSON.stringify({ entry: await signJws(seed, signedTypes.revocation, claims) });
    };
    const beaconNow = claimsIn((JSON.parse(old) as { beacon: string }).beacon);
    const beacon = async (seed: Uint8Array, more: object): Promise<string> =>
      JSON.stringify({ beacon: await signJws(seed, signedTypes.beacon, { ...beaconNow, ...more }) });
    const inAnHour = new Date(Date.now() + 3_600_000).toISOString();
    const sent: [subject: string, text: string][] = [
      [words.revocation, await entry(stranger, 1)], // forged
      [words.revocation, second.replace(/.(?="\})/, (last) => (last === 'A' ? 'B' : 'A'))], // changed
      [words.revocation, second], // out of order, and again
      [words.revocation, first],
      [words.revocation, await entry(own, 5)], // a gap that the log does not fill
      [words.beacon, await beacon(stranger, {})],
      [words.beacon, old],
      [words.beacon, await beacon(own, { at: inAnHour })],
      [words.beacon, await beacon(own, { log: 'log_00000009' })],
      [words.beacon, await beacon(own, { epoch: Number(head) + 7 })],
    ];

    using client = await thief();
    for (const [subject, text] of sent)
      expect(await client.publish(subject, text)).toEqual([
        `-ERR 'Permissions Violation for Publish to "${subject}"'`,
      ]);
    const violations = (subject: string): number =>
      fs
        .readFileSync(path.join(kit.constellation.layout.nats, 'nats.log'), 'utf8')
        .split(`Subject "${subject}"`).length - 1;
    for (const subject of Object.values(words)) expect(violations(subject)).toBeGreaterThanOrEqual(5);

    for (const [subject, text] of sent) expect(await everything.publish(subject, text)).toEqual([]);
    const recorded = (line: string): boolean =>
      fs.readFileSync(kit.constellation.layout.log('host-b'), 'utf8').includes(line);
    await until(() => recorded('a revocation was refused'), 'the refused revocation in the agent’s log');
    for (const verdict of ['refused', 'future', 'other_log'])
      await until(() => recorded(`"verdict":"${verdict}"`), `a beacon that is ${verdict} in the agent’s log`);
    const beacons = broadcast(everything, 'beacon').length;
    await until(() => broadcast(everything, 'beacon').length > beacons, 'an honest beacon after them');
    await until(async () => (await status())['link'] === 'ready', 'the link ready');
    expect(await status()).toMatchObject({ revocation_epoch: head });
    expect(alive(pid)).toBe(true);
    exited(0, await kit.run(['true'], { host: 'host-b', holds }));
    exited(0, await kit.custody(['revoke', '--prefix', 'prod', '--reason', 'the real one', '--wait']));
    expect(alive(pid)).toBe(false);
    exited(123, await run.outcome);
  }, 60_000);
});
