// Owns the proof of the stream of events: where it begins, that it stays alive, and that one slow reader costs nobody anything.
import { eventStreamsMax } from '@custody/core/limits';
import { withDatabase } from '@custody/testkit/database';
import { fleetEvent, type FleetEvent } from '@custody/wire/events';
import { PassThrough } from 'node:stream';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { Events } from '../src/events.ts';
import { captureLog, issuePolicy, sceneOf, until, type Scene } from './support.ts';

const t = withDatabase();
let s: Scene;

beforeAll(async () => {
  s = await sceneOf(t.database);
  await s.ledgers.recordStart('0.1.0');
  for (let n = 0; n < 3; n += 1) await s.policies.apply('operator', issuePolicy);
});

const opened = (more: { heartbeatMs?: number; stallMs?: number } = {}): Events =>
  new Events({ db: s.db, news: s.news, log: captureLog().log, ...more });

/** A reader whose buffer holds so many bytes, and what it was sent. */
function reader(events: Events, asked: Partial<Parameters<Events['write']>[0]>, highWaterMark = 1_048_576) {
  const out = new PassThrough({ highWaterMark });
  const abort = new AbortController();
  let text = '';
  const ended = events.write(
    { since: undefined, follow: true, last: undefined, ...asked },
    out,
    abort.signal,
  );
  onTestFinished(() => abort.abort());
  return {
    ...{ abort, ended, out },
    read: () => void out.setEncoding('utf8').on('data', (chunk: string) => (text += chunk)),
    text: () => text,
    events: () =>
      [...text.matchAll(/^data: (.*)$/gm)].map((line): FleetEvent =>
        fleetEvent.parse(JSON.parse(line[1] ?? '')),
      ),
  };
}

describe('a stream', () => {
  it('without an id and without following shows the newest, and ends', async () => {
    const all = reader(opened(), { follow: false });
    all.read();
    await all.ended;
    expect(all.events().map(({ kind }) => kind)).toEqual([
      'control_plane_started',
      ...['policy_applied', 'policy_applied', 'policy_applied'],
    ]);
    expect(all.text()).toMatch(/^id: \d+\nevent: control_plane_started\ndata: \{.*\}\n\nid: /);
    const two = reader(opened(), { follow: false, last: 2 });
    two.read();
    await two.ended;
    expect(two.events()).toEqual(all.events().slice(-2));
    const [first] = all.events();
    const rest = reader(opened(), { follow: false, since: first?.id });
    rest.read();
    await rest.ended;
    expect(rest.events()).toEqual(all.events().slice(1));
  });

  it('that follows begins at the present, and tells what comes', async () => {
    const before = reader(opened(), { follow: false, last: 1 });
    before.read();
    await before.ended;
    const live = reader(opened(), {});
    live.read();
    // Until the stream stands nothing comes; what comes then is later than everything there was.
    await until(async () => {
      await s.policies.apply('operator', issuePolicy);
      return live.events().length > 0;
    });
    live.abort.abort();
    await live.ended;
    for (const { id, kind, name } of live.events()) {
      expect([kind, name]).toEqual(['policy_applied', 'control-plane']);
      expect(id).toBeGreaterThan(before.events()[0]?.id ?? Infinity);
    }
  });

  it('that is quiet says that it is alive', async () => {
    const live = reader(opened({ heartbeatMs: 1 }), {});
    live.read();
    await until(() => live.text().includes(': the line is alive\n\n'));
    live.abort.abort();
    await live.ended;
    expect(live.events()).toEqual([]);
  });

  it('whose reader does not read is told where to go on, and left; what it had is a page at most', async () => {
    const stuck = reader(opened({ stallMs: 50 }), { since: 0 }, 16);
    await stuck.ended;
    stuck.read();
    await until(() => stuck.text().includes('event: slow'));
    const [last] = [...stuck.text().matchAll(/^event: slow\ndata: (.*)$/gm)].map((each) => each[1]);
    const ids = [...stuck.text().matchAll(/^id: (\d+)$/gm)].map((each) => Number(each[1]));
    expect(JSON.parse(last ?? '')).toMatchObject({ since: ids.at(-1) });
  });

  it('whose reader reads late, but in time, misses nothing', async () => {
    const late = reader(opened({ stallMs: 10_000 }), { since: 0, follow: false }, 16);
    await until(() => late.out.writableNeedDrain);
    late.read();
    await late.ended;
    expect(late.text()).not.toContain('event: slow');
    expect(late.events().length).toBeGreaterThanOrEqual(4);
  });
});

it('readers are bounded, and one that goes makes room', () => {
  const events = opened();
  const places = Array.from({ length: eventStreamsMax }, () => events.admit());
  expect(() => events.admit()).toThrow(/readers are connected/);
  places[0]?.[Symbol.dispose]();
  events.admit()[Symbol.dispose]();
});
