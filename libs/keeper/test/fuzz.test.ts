// A hostile agent: mutated, cut and reordered frames to a real keeper, under the sanitizers where there are any.
// Whatever it hears, it does not crash, starts nothing without a grant that it understood, and ends its tree.
import { randomOf } from '@custody/testkit/random';
import { expect, it } from 'vitest';
import { encodeFrame, type FrameToSend } from '../src/frames.ts';
import { bootTimeMs } from '../src/native.ts';
import { strictest } from './builds.ts';
import { alive, FakeAgent, Keeper, until, type Link } from './fake-agent.ts';

const seed = Number(process.env['FUZZ_SEED'] ?? 20_261_122);
const runs = Number(process.env['FUZZ_RUNS'] ?? 96);
const together = 8;

function chance(from: number) {
  const next = randomOf(from);
  const below = (bound: number) => Math.floor(next() * bound);
  return { below, one: <T>(of: readonly T[]): T => of[below(of.length)] as T };
}
type Chance = ReturnType<typeof chance>;

const numbers = [
  '0',
  '1',
  '250',
  '-1',
  '01',
  '',
  '9007199254740991',
  '9007199254740992',
  'x',
  '99999999999999999999',
];

function frameOf(random: Chance, grant: string): Buffer {
  const soon = String(Math.round(bootTimeMs() + random.one([0, 50, 5_000])));
  const number = () => random.one([...numbers, soon]);
  const value = () =>
    random.one([
      'KEY=dmFsdWU=',
      'KEY=',
      '=x',
      'KEY',
      'A/B=eA==',
      'KEY=!!!!',
      `K=${'QUFB'.repeat(random.below(9_000))}`,
      '*',
      'P*_',
    ]);
  const granted: FrameToSend = {
    verb: 'granted',
    fields: [
      ['grant', random.below(8) === 0 ? '../../x' : grant],
      ['ceiling_boot_ms', random.below(4) === 0 ? number() : soon],
      ['grace_ms', random.below(4) === 0 ? number() : '20'],
      ...(random.below(2) === 0 ? [['fresh_until_boot_ms', number()] as const] : []),
      ...Array.from(
        { length: random.below(6) },
        () =>
          [random.one(['env', 'file', 'fifo', 'fd', 'keep', 'drop', 'on_exit', 'unknown']), value()] as const,
      ),
    ],
  };
  const frame = random.one<FrameToSend>([
    granted,
    granted,
    { verb: 'note', fields: [['line', `\x1b[31m${'x'.repeat(random.below(6_000))}`]] },
    {
      verb: 'end',
      fields: [
        ['cause', random.one(['revoked', 'ceiling', 'agent', 'exit', ''])],
        ['grace_ms', number()],
      ],
    },
    { verb: 'fresh', fields: [['until_boot_ms', number()]] },
    { verb: 'adopted', fields: [] },
    {
      verb: 'refused',
      fields: [
        ['exit', number()],
        ['line', 'no'],
      ],
    },
    { verb: random.one(['request', 'started', 'ended', 'status'] as const), fields: [['pid', number()]] },
  ]);
  const bytes = encodeFrame(frame);
  for (let changes = random.below(3) === 0 ? random.below(6) : 0; changes > 0; changes -= 1)
    bytes[random.below(bytes.length)] = random.one([0, 0xff, 0x3d, 0x41, random.below(256)]);
  return random.below(10) === 0 ? bytes.subarray(0, random.below(bytes.length)) : bytes;
}

/** One keeper, and an agent that means harm until its third connection. */
async function attack(index: number): Promise<string> {
  const random = chance(seed + index);
  await using agent = await FakeAgent.start();
  const command = ['sh', '-c', 'trap "" TERM; (setsid sleep 300 &); sleep 300'];
  const flags = random.one([[], ['--file', 'KEY=custody://a/b/c'], ['--on-exit', 'wait']]);
  await using keeper = Keeper.run({ keeper: strictest.keeper, agent, command, flags });
  const grant = `fuzz-${process.pid}-${index}`;
  const roots: number[] = [];
  const answer = async (link: Link, connection: number): Promise<void> => {
    const watch = (async () => {
      for (;;) {
        const { verb, fields } = await link.next();
        const pid = fields.find(([key]) => key === 'pid')?.[1];
        if (verb === 'started' && pid !== undefined) roots.push(Number(pid.toString()));
        // Enough: the third time it hears sense.
        if (verb === 'resume' && connection > 2)
          link.send('end', [
            ['cause', 'revoked'],
            ['grace_ms', 0],
          ]);
      }
    })();
    watch.catch(() => {});
    if (connection > 2) return;
    for (let frames = 1 + random.below(4); frames > 0; frames -= 1) link.sendBytes(frameOf(random, grant));
    if (random.below(2) === 0) link.close();
  };
  const serving = (async () => {
    for (let connection = 1; ; connection += 1) await answer(await agent.link(), connection);
  })();
  serving.catch(() => {});
  // It may rightly wait for a word, or for a ceiling that is far: an operator then asks it to end, twice.
  const patience = setInterval(() => keeper.child.kill('SIGTERM'), 700);
  const last = setTimeout(() => void agent.die(), 3_000);
  try {
    const { code, signal } = await keeper.exit;
    for (const root of roots) await until(() => !alive(root), `the root of ${index} is gone`);
    return `${index}: ${code ?? signal}${/Sanitizer|runtime error/.test(keeper.stderr) ? keeper.stderr : ''}`;
  } finally {
    clearInterval(patience);
    clearTimeout(last);
  }
}

it(`a keeper outlives an agent that means harm (seed ${seed})`, async () => {
  const ends: string[] = [];
  for (let from = 0; from < runs; from += together) {
    const batch = Array.from({ length: Math.min(together, runs - from) }, (_, each) => attack(from + each));
    ends.push(...(await Promise.all(batch)));
  }
  // 0 is no way out: the command never ends by itself.
  const fine = /^\d+: (?:2|12[345]|137|143|SIGTERM|SIGKILL)$/;
  expect(ends.filter((end) => !fine.test(end))).toEqual([]);
}, 120_000);
