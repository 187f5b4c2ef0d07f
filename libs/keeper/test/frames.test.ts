// The bytes of frames: the shared vectors and a fuzzer, against the TypeScript and the C parser alike.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { randomOf } from '@custody/testkit/random';
import { describe, expect, it } from 'vitest';
import { KeeperError } from '../src/error.ts';
import {
  encodeFrame,
  field,
  fieldAll,
  FrameReader,
  lossyTextOf,
  number,
  numberMaybe,
  parseProcRow,
  parseUnlisted,
  parseRootStatus,
  text,
  textMaybe,
  verbs,
  type Frame,
} from '../src/frames.ts';
import { builds, strictest } from './builds.ts';

interface Part {
  text?: string;
  hex?: string;
  u32?: number;
  times?: number;
}
interface Vector {
  name: string;
  stream: Part[];
  frames?: [verb: string, fields: [key: string, hex: string][]][];
  fault: string;
}

const { vectors } = JSON.parse(readFileSync(new URL('vectors/frames.json', import.meta.url), 'utf8')) as {
  vectors: Vector[];
};

function bytesOf(part: Part): Buffer {
  const once = Buffer.concat([Buffer.from(part.text ?? '', 'utf8'), Buffer.from(part.hex ?? '', 'hex')]);
  if (part.u32 !== undefined) once.fill(0);
  const head = part.u32 === undefined ? once : Buffer.alloc(4);
  if (part.u32 !== undefined) head.writeUInt32BE(part.u32);
  return Buffer.concat(Array.from({ length: part.times ?? 1 }, () => head));
}

const streamOf = (vector: Vector) => Buffer.concat(vector.stream.map(bytesOf));

const shown = (frames: readonly Frame[]) =>
  frames
    .map(
      ({ verb, fields }) =>
        `${[verb, ...fields.map(([key, value]) => `${key}=${value.toString('hex')}`)].join(' ')}; `,
    )
    .join('');

/** What the TypeScript parser makes of a stream that arrives in chunks of that size. */
function readHere(stream: Buffer, chunkBytes: number): { frames: string; fault: string } {
  const reader = new FrameReader();
  const frames: Frame[] = [];
  try {
    for (let at = 0; at < stream.length; at += chunkBytes) {
      frames.push(...reader.push(stream.subarray(at, at + chunkBytes)));
    }
  } catch (fault) {
    if (fault instanceof KeeperError)
      return { frames: shown(frames), fault: fault.code.replace('frame_', '') };
    throw fault;
  }
  return { frames: shown(frames), fault: reader.pendingBytes === 0 ? 'ok' : 'short' };
}

/** What the C parser makes of each of them. */
function readThere(frameCheck: string, streams: readonly Buffer[]): { frames: string; fault: string }[] {
  const input = Buffer.concat(
    streams.flatMap((stream) => {
      const head = Buffer.alloc(4);
      head.writeUInt32BE(stream.length);
      return [head, stream];
    }),
  );
  const { stdout, stderr, status } = spawnSync(frameCheck, { input, maxBuffer: 256 * 1024 * 1024 });
  if (status !== 0) throw new Error(`frame-check ended with ${status}: ${stderr.toString('utf8')}`);
  const lines = stdout.toString('latin1').split('\n').slice(0, -1);
  return lines.map((line) => {
    const at = line.lastIndexOf('; ');
    return at < 0
      ? { frames: '', fault: line }
      : { frames: line.slice(0, at + 2), fault: line.slice(at + 2) };
  });
}

describe('the vectors', () => {
  it.each(vectors)('TypeScript reads $name', (vector) => {
    const stream = streamOf(vector);
    const whole = readHere(stream, Math.max(stream.length, 1));
    expect(whole.fault).toBe(vector.fault);
    if (vector.frames !== undefined) {
      const wanted = vector.frames.map(([verb, fields]) =>
        [verb, ...fields.map(([k, v]) => `${k}=${v}`)].join(' '),
      );
      expect(whole.frames).toBe(wanted.map((frame) => `${frame}; `).join(''));
    }
    expect(readHere(stream, stream.length > 4096 ? 4093 : 1).fault).toBe(vector.fault);
  });

  it.each(builds)('C reads all of them the same ($name)', ({ frameCheck }) => {
    const streams = vectors.map(streamOf);
    const there = readThere(frameCheck, streams);
    expect(there.length).toBe(vectors.length);
    vectors.forEach((vector, index) => {
      expect({ name: vector.name, fault: there[index]?.fault }).toEqual({
        name: vector.name,
        fault: vector.fault,
      });
      if (vector.frames === undefined) return;
      const wanted = vector.frames.map(([verb, fields]) =>
        [verb, ...fields.map(([k, v]) => `${k}=${v}`)].join(' '),
      );
      expect(there[index]?.frames).toBe(wanted.map((frame) => `${frame}; `).join(''));
    });
  });
});

/** So that a printed seed repeats a failure. */
function belowOf(seed: number): (below: number) => number {
  const next = randomOf(seed);
  return (below) => Math.floor(next() * below);
}

function randomStream(random: (below: number) => number): Buffer {
  const good = Array.from({ length: random(4) }, () =>
    encodeFrame({
      verb: verbs[random(verbs.length)] ?? 'note',
      fields: Array.from({ length: random(6) }, () => [
        ['line', 'env', 'a', 'grace_ms'][random(4)] ?? 'a',
        Buffer.from(Array.from({ length: random(20) }, () => 1 + random(255))),
      ]),
    }),
  );
  const stream = Buffer.concat([
    ...good,
    Buffer.from(Array.from({ length: random(3) * random(9) }, () => random(256))),
  ]);
  for (let edits = random(4); edits > 0 && stream.length > 0; edits--) {
    stream[random(stream.length)] = random(3) === 0 ? 0 : random(256);
  }
  return stream.subarray(0, stream.length - (random(3) === 0 ? random(stream.length + 1) : 0));
}

it('C under the sanitizers and TypeScript agree on broken streams', () => {
  const seed = Number(process.env['SEED'] ?? Math.floor(Math.random() * 2 ** 32));
  const random = belowOf(seed);
  const streams = Array.from({ length: 20_000 }, () => randomStream(random));
  const there = readThere(strictest.frameCheck, streams);
  expect(there.length, `seed ${seed}`).toBe(streams.length);
  streams.forEach((stream, index) => {
    const here = readHere(stream, Math.max(stream.length, 1));
    const other = there[index];
    const agree = here.fault === other?.fault && (here.frames === '' || here.frames === other.frames);
    if (!agree) expect({ seed, hex: stream.toString('hex'), here }).toEqual({ seed, hex: '', here: other });
  });
});

describe('encode', () => {
  it('gives back what a reader takes in, bytes that are not UTF-8 included', () => {
    const odd = Buffer.from([0xff, 0x3d, 0x0a, 0xc3]);
    const frames = new FrameReader().push(
      encodeFrame({
        verb: 'request',
        fields: [
          ['arg', odd],
          ['arg', 'ü'],
          ['ttl_ms', 900_000],
        ],
      }),
    );
    const [frame] = frames;
    if (frame === undefined) throw new Error('no frame');
    expect(fieldAll(frame, 'arg')).toEqual([odd, Buffer.from('ü', 'utf8')]);
    expect(number(frame, 'ttl_ms')).toBe(900_000);
    expect(() => text(frame, 'arg')).toThrow(expect.objectContaining({ code: 'field_text' }));
    expect(lossyTextOf(odd)).toBe('\ufffd=\n\ufffd');
    expect(field(frame, 'reason')).toBeUndefined();
    expect(textMaybe(frame, 'reason')).toBeUndefined();
    expect(() => text(frame, 'reason')).toThrow(expect.objectContaining({ code: 'field_missing' }));
  });

  it.each([
    ['frame_grammar', [['a', 'x\0y']]],
    ['frame_key', [['A', 'x']]],
    ['frame_key', [['', 'x']]],
    ['frame_value', [['a', Buffer.alloc(131_073, 1)]]],
    ['frame_length', Array.from({ length: 9 }, () => ['a', Buffer.alloc(131_072, 1)])],
    ['frame_fields', Array.from({ length: 16_385 }, () => ['a', ''])],
    ['field_number', [['a', -1]]],
    ['field_number', [['a', 1.5]]],
    ['field_text', [['a', '\ud800']]],
  ] as [string, [string, string | number | Buffer][]][])(
    'refuses with %s what no receiver would take',
    (code, fields) => {
      expect(() => encodeFrame({ verb: 'note', fields })).toThrow(expect.objectContaining({ code }));
    },
  );

  it('names no value in an error', () => {
    try {
      encodeFrame({ verb: 'granted', fields: [['env', 'KEY=hunter2\0']] });
    } catch (fault) {
      expect(String(fault)).not.toContain('hunter2');
    }
    expect.assertions(1);
  });
});

describe('fields', () => {
  it.each(['', '00', '01', '-1', '+1', '1e3', ' 1', '9007199254740992', '99999999999999999999'])(
    'takes no number from %j',
    (digits) => {
      const frame: Frame = { verb: 'end', fields: [['grace_ms', Buffer.from(digits)]] };
      expect(() => numberMaybe(frame, 'grace_ms')).toThrow(expect.objectContaining({ code: 'field_number' }));
    },
  );

  it('reads a process row whose name has blanks and broken bytes', () => {
    const row = Buffer.concat([
      Buffer.from('12 1 345678 9000001 survivor killed:9 a b) '),
      Buffer.from([0xff]),
    ]);
    expect(parseProcRow(row)).toEqual({
      pid: 12,
      ppid: 1,
      startTicks: '345678',
      how: { kind: 'killed', number: 9 },
      endedBootUs: 9_000_001,
      survivor: true,
      name: 'a b) \ufffd',
    });
    expect(parseProcRow(Buffer.from('12 1 3 0 - gone:0 -'))).toMatchObject({
      how: { kind: 'gone', number: 0 },
      survivor: false,
      name: '-',
    });
  });

  it('reads the row of a keeper of 0.1.0, which says neither when nor whether it survived', () => {
    expect(parseProcRow(Buffer.from('12 1 3 exit:0 9 survivor exit:1 a'))).toEqual({
      pid: 12,
      ppid: 1,
      startTicks: '3',
      how: { kind: 'exit', number: 0 },
      endedBootUs: undefined,
      survivor: false,
      name: '9 survivor exit:1 a',
    });
  });

  it.each([
    ...['', '12 1 3 killed:9', '0 1 3 exit:0 a', '12 1 3 died:9 a', '12 1 x exit:0 a', '12 1 3 exit: a'],
    ...['12 1 3 4 exit:0 a', '12 1 3 4 other exit:0 a', '12 1 3 -4 - exit:0 a'],
  ])('takes no process row from %j', (row) =>
    expect(() => parseProcRow(Buffer.from(row))).toThrow(expect.objectContaining({ code: 'proc_row' })),
  );

  it('reads how many are without a row', () => {
    expect(parseUnlisted(Buffer.from('exit 944'))).toEqual({ kind: 'exit', count: 944 });
    for (const broken of ['exit', 'exit 0', 'exit -1', 'died 1', 'exit 1 '])
      expect(() => parseUnlisted(Buffer.from(broken))).toThrow(expect.objectContaining({ code: 'proc_row' }));
  });

  it('reads how a root ended', () => {
    expect(parseRootStatus('exit:0')).toEqual({ kind: 'exit', number: 0 });
    expect(parseRootStatus('signal:15')).toEqual({ kind: 'signal', number: 15 });
    expect(() => parseRootStatus('exit:0 ')).toThrow(expect.objectContaining({ code: 'proc_row' }));
  });

  it('a reader that met a violation stays broken', () => {
    const reader = new FrameReader();
    expect(() => reader.push(Buffer.alloc(4))).toThrow(KeeperError);
    expect(() => reader.push(encodeFrame({ verb: 'adopted', fields: [] }))).toThrow(KeeperError);
  });
});
