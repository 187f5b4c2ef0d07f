// Owns what a run asked for: which variables are references to secrets, which are plain, and how they reach the child.
import { parseEnv } from 'node:util';
import { CustodyError } from '@custody/core/errors';
import {
  runArgumentsMax,
  runCommandBytesMax,
  runCredentialsMax,
  ttlMsMax,
  ttlMsMin,
} from '@custody/core/limits';
import { isEnvironmentName, quote } from '@custody/core/names';
import { isReference, parseReference } from '@custody/core/reference';
import { field, fieldAll, lossyTextOf, numberMaybe, text, type Frame } from '@custody/keeper/frames';
import type { Wanted } from '@custody/wire/schema';

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
}

const strict = new TextDecoder('utf-8', { fatal: true });

/** Reads a keeper's `request`. Throws `bad_request`, `bad_reference` or `bad_utf8`, fit for the person at the terminal. */
export function readAsk(frame: Frame): Ask {
  const variables = new Map<string, string>();
  for (const bytes of fieldAll(frame, 'env_file')) {
    const parsed = parseEnv(utf8(bytes, '--env-file'));
    for (const [name, value] of Object.entries(parsed)) variables.set(name, value ?? '');
  }
  for (const bytes of fieldAll(frame, 'env')) {
    const pair = utf8(bytes, '--env');
    const cut = pair.indexOf('=');
    const [name, value] = [pair.slice(0, Math.max(cut, 0)), pair.slice(cut + 1)];
    if (!isReference(value)) {
      throw new CustodyError('bad_reference', `--env ${name}: its value is not a reference`, {
        next: 'a reference looks like custody://prod/stripe/api_key; plain values belong in an --env-file',
      });
    }
    variables.set(name, value);
  }
  const wanted: Wanted[] = [];
  const plain: (readonly [string, string])[] = [];
  for (const [name, value] of variables) {
    if (!isEnvironmentName(name))
      throw new CustodyError('bad_request', `${quote(name)} is not the name of a variable`);
    if (isReference(value)) wanted.push({ name, ...parseReference(value) });
    else plain.push([name, value]);
  }
  if (wanted.length > runCredentialsMax) {
    throw new CustodyError(
      'bad_request',
      `${wanted.length} credentials for one run, more than ${runCredentialsMax}`,
    );
  }
  return {
    command: clipped(fieldAll(frame, 'arg').map(lossyTextOf)),
    cwd: lossyTextOf(field(frame, 'cwd') ?? new Uint8Array()),
    ttlMs: readTtl(numberMaybe(frame, 'ttl_ms')),
    reason: optionalText(field(frame, 'reason'), '--reason'),
    parent: optionalText(field(frame, 'parent'), 'CUSTODY_GRANT'),
    containment: text(frame, 'containment') === 'kqueue' ? 'kqueue' : 'subreaper',
    traceparent: optionalText(field(frame, 'traceparent'), 'TRACEPARENT'),
    wanted,
    plain,
  };
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
