// Owns what a run asked for: which variables are references to secrets, which are plain, and how they reach the child.
import { posix } from 'node:path';
import { parseEnv } from 'node:util';
import { keptNames, scrubbedNames } from '@custody/core/ambient';
import { requireDurationMs } from '@custody/core/duration';
import { CustodyError } from '@custody/core/errors';
import {
  patternsMax,
  runArgumentsMax,
  runCommandBytesMax,
  runCredentialsMax,
  ttlMsMax,
  ttlMsMin,
} from '@custody/core/limits';
import { isEnvironmentName, quote } from '@custody/core/names';
import { deliveries, type Delivery, type OnExit } from '@custody/core/policy';
import { isReference, parseReference } from '@custody/core/reference';
import {
  field,
  fieldAll,
  lossyTextOf,
  numberMaybe,
  text,
  textMaybe,
  type Frame,
} from '@custody/keeper/frames';
import { pattern, readManifest, type Manifest, type Section } from '@custody/wire/manifest';
import { onExit, parse, type Wanted } from '@custody/wire/schema';

export interface Ask {
  readonly command: readonly string[];
  readonly cwd: string;
  readonly ttlMs: number | undefined;
  readonly reason: string | undefined;
  readonly parent: string | undefined;
  readonly containment: 'cgroup' | 'subreaper' | 'kqueue';
  readonly traceparent: string | undefined;
  readonly wanted: readonly Wanted[];
  /** Values of an --env-file that are no references. */
  readonly plain: readonly (readonly [string, string])[];
  readonly onExit: OnExit | undefined;
  /** Of the caller's environment only these go on; undefined: all. */
  readonly keep: readonly string[] | undefined;
  /** Of the caller's environment these do not go on; undefined: nothing was asked. */
  readonly drop: readonly string[] | undefined;
  /** Where the keeper can put files, in memory. */
  readonly place: string | undefined;
  /** Where the manifest stands, and the whole of it. */
  readonly manifest: { readonly path: string; readonly content: Manifest } | undefined;
}

interface Variable {
  readonly deliver: Delivery;
  readonly value: string;
}

const strict = new TextDecoder('utf-8', { fatal: true });

/**
 * Reads a keeper's `request`. Of two that name one variable the later counts: manifest, env files, flags.
 * Throws `bad_request`, `bad_reference` or `bad_utf8`, fit for the person at the terminal.
 */
export function readAsk(frame: Frame): Ask {
  const cwd = lossyTextOf(field(frame, 'cwd') ?? new Uint8Array());
  const words = fieldAll(frame, 'arg').map(lossyTextOf);
  const manifest = manifestOf(frame, cwd);
  const needs = manifest === undefined ? [] : sectionsFor(manifest.content, words);
  const variables = new Map<string, Variable>();
  for (const section of needs) {
    for (const deliver of deliveries)
      for (const [name, value] of Object.entries(section[deliver] ?? {}))
        variables.set(name, { deliver, value });
  }
  for (const bytes of fieldAll(frame, 'env_file')) {
    const parsed = parseEnv(utf8(bytes, '--env-file'));
    for (const [name, value] of Object.entries(parsed))
      variables.set(name, { deliver: 'env', value: value ?? '' });
  }
  for (const [key, bytes] of frame.fields) {
    const deliver = deliveries.find((each) => each === key);
    if (deliver !== undefined) variables.set(...flag(deliver, bytes));
  }
  const { wanted, plain } = sorted(variables);
  const place = optionalText(field(frame, 'place'), 'place');
  requirePlace(wanted, place);
  return {
    command: clipped(words),
    cwd,
    ttlMs: readTtl(numberMaybe(frame, 'ttl_ms')) ?? manifestTtl(needs),
    reason: optionalText(field(frame, 'reason'), '--reason') ?? last(needs, ({ reason }) => reason),
    parent: optionalText(field(frame, 'parent'), 'CUSTODY_GRANT'),
    containment: text(frame, 'containment') === 'kqueue' ? 'kqueue' : 'subreaper',
    traceparent: optionalText(field(frame, 'traceparent'), 'TRACEPARENT'),
    wanted,
    plain,
    onExit: askedOnExit(frame) ?? last(needs, (each) => each.onExit),
    ...environmentRules(frame, needs),
    place,
    manifest,
  };
}

function manifestOf(frame: Frame, cwd: string): Ask['manifest'] {
  const bytes = field(frame, 'manifest');
  if (bytes === undefined) return undefined;
  const path = lossyTextOf(field(frame, 'manifest_path') ?? new Uint8Array());
  return { path: posix.resolve('/', cwd, path), content: readManifest(bytes, quote(path).slice(1, -1)) };
}

/** What every command needs, then what those whose words begin this one do, the longest last. */
function sectionsFor(manifest: Manifest, words: readonly string[]): Section[] {
  const command = words.join(' ');
  const fitting = Object.entries(manifest.commands ?? {}).filter(
    ([begin]) => command === begin || command.startsWith(`${begin} `),
  );
  return [manifest, ...fitting.toSorted(([a], [b]) => a.length - b.length).map(([, section]) => section)];
}

function last<Value>(
  sections: readonly Section[],
  of: (section: Section) => Value | undefined,
): Value | undefined {
  return sections.reduce<Value | undefined>((before, section) => of(section) ?? before, undefined);
}

function manifestTtl(sections: readonly Section[]): number | undefined {
  const ttl = last(sections, (section) => section.ttl);
  return ttl === undefined ? undefined : requireDurationMs(ttl, 'ttl of the manifest');
}

function flag(deliver: Delivery, bytes: Uint8Array): [string, Variable] {
  const pair = utf8(bytes, `--${deliver}`);
  const cut = pair.indexOf('=');
  const [name, value] = [pair.slice(0, Math.max(cut, 0)), pair.slice(cut + 1)];
  if (isReference(value)) return [name, { deliver, value }];
  throw new CustodyError('bad_reference', `--${deliver} ${name}: its value is not a reference`, {
    next: 'a reference looks like custody://prod/stripe/api_key; plain values belong in an --env-file',
  });
}

function sorted(variables: ReadonlyMap<string, Variable>): Pick<Ask, 'wanted' | 'plain'> {
  const wanted: Wanted[] = [];
  const plain: (readonly [string, string])[] = [];
  for (const [name, { deliver, value }] of variables) {
    if (!isEnvironmentName(name))
      throw new CustodyError('bad_request', `${quote(name)} is not the name of a variable`);
    if (!isReference(value)) plain.push([name, value]);
    else wanted.push({ name, ...parseReference(value), ...(deliver === 'env' ? {} : { deliver }) });
  }
  if (wanted.length <= runCredentialsMax) return { wanted, plain };
  throw new CustodyError(
    'bad_request',
    `${wanted.length} credentials for one run, more than ${runCredentialsMax}`,
  );
}

/** Never on a disk: a run that wants a file where no file system is memory is refused. */
function requirePlace(wanted: readonly Wanted[], place: string | undefined): void {
  const first = wanted.find(({ deliver }) => deliver === 'file' || deliver === 'fifo');
  if (first === undefined || place !== undefined) return;
  throw new CustodyError(
    'run_unacceptable',
    `${first.name} cannot be delivered by ${first.deliver}: neither $XDG_RUNTIME_DIR nor /dev/shm is a file system in memory that you may write to`,
    { next: 'mount a tmpfs at /dev/shm, or deliver it by --fd or --env' },
  );
}

function askedOnExit(frame: Frame): OnExit | undefined {
  const asked = textMaybe(frame, 'on_exit');
  return asked === undefined ? undefined : parse(onExit, asked, '--on-exit');
}

function environmentRules(frame: Frame, needs: readonly Section[]): Pick<Ask, 'keep' | 'drop'> {
  const keep = [...patternsOf(frame, 'keep', '--keep'), ...needs.flatMap((each) => each.keep ?? [])];
  const drop = [
    ...patternsOf(frame, 'drop', '--scrub-also'),
    ...needs.flatMap((each) => each.scrubAlso ?? []),
  ];
  const clean = field(frame, 'clean') !== undefined || keep.length > 0 || needs.some((each) => each.clean);
  const scrub = field(frame, 'scrub') !== undefined || drop.length > 0 || needs.some((each) => each.scrub);
  return {
    keep: clean ? [...keptNames, ...keep] : undefined,
    drop: scrub ? [...scrubbedNames, ...drop] : undefined,
  };
}

function patternsOf(frame: Frame, key: string, what: string): string[] {
  const values = fieldAll(frame, key);
  if (values.length > patternsMax)
    throw new CustodyError('bad_request', `${what}: ${values.length} of them, more than ${patternsMax}`);
  return values.map((bytes) => parse(pattern, utf8(bytes, what), what));
}

/** The command as it goes on record. A long one is cut, never refused: the child gets every word of it. */
function clipped(words: readonly string[]): string[] {
  const kept: string[] = [];
  let room = runCommandBytesMax - 256;
  for (const word of words.slice(0, runArgumentsMax - 1)) {
    room -= Buffer.byteLength(word);
    if (room < 0) break;
    kept.push(word);
  }
  const left = words.length - kept.length;
  if (left === 0) return kept;
  return [...kept, `… and ${left} more`];
}

function readTtl(ms: number | undefined): number | undefined {
  if (ms === undefined || (ms >= ttlMsMin && ms <= ttlMsMax)) return ms;
  throw new CustodyError(
    'bad_request',
    `--ttl: ${ms} ms is not between ${ttlMsMin} ms and ${ttlMsMax} ms (7d)`,
  );
}

function optionalText(bytes: Uint8Array | undefined, what: string): string | undefined {
  return bytes === undefined || bytes.byteLength === 0 ? undefined : utf8(bytes, what);
}

function utf8(bytes: Uint8Array, what: string): string {
  try {
    return strict.decode(bytes);
  } catch (cause) {
    throw new CustodyError('bad_utf8', `${what}: the bytes are not valid UTF-8`, {
      next: 'save the file as UTF-8 and try again; nothing was asked for',
      cause,
    });
  }
}
