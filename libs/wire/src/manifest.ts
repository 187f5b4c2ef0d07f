// Owns the manifest, custody.json: what the commands of a project need, without a value in it.
import { z } from 'zod';
import { durationMs } from '@custody/core/duration';
import { CustodyError } from '@custody/core/errors';
import {
  manifestBytesMax,
  manifestCommandsMax,
  patternBytesMax,
  patternsMax,
  runCredentialsMax,
  ttlMsMax,
  ttlMsMin,
} from '@custody/core/limits';
import { isReference, parseReference } from '@custody/core/reference';
import { environmentName, onExit, reason } from './schema.ts';

const reference = z.string().refine(isSound, 'is not a reference such as custody://prod/stripe/api_key');
const references = z
  .record(environmentName, reference)
  .refine((all) => Object.keys(all).length <= runCredentialsMax, `has more than ${runCredentialsMax} names`)
  .optional();
/** A name of a variable in which `*` stands for any letters, digits and underscores. */
export const pattern = z
  .string()
  .regex(/^[A-Za-z0-9_*]+$/, 'is not a name, in which * may stand for anything')
  .max(patternBytesMax);
const patterns = z.array(pattern).max(patternsMax).optional();
const ttl = z
  .string()
  .refine((text) => isTtl(durationMs(text)), 'is not a duration from 100ms to 7d, such as 15m')
  .optional();

const needs = {
  env: references,
  file: references,
  fifo: references,
  fd: references,
  clean: z.boolean().optional(),
  keep: patterns,
  scrub: z.boolean().optional(),
  scrubAlso: patterns,
  ttl,
  reason: reason.optional(),
  onExit: onExit.optional(),
};

/** What one command needs. */
export const section = z.strictObject(needs);
export type Section = z.infer<typeof section>;

export const manifest = z.strictObject({
  $schema: z.string().max(4_096).optional(),
  version: z.literal(1),
  ...needs,
  /** The first words of a command, and what it needs beyond what every command does. */
  commands: z
    .record(z.string().min(1).max(1_024), section)
    .refine((all) => Object.keys(all).length <= manifestCommandsMax, `has more than ${manifestCommandsMax}`)
    .optional(),
});
export type Manifest = z.infer<typeof manifest>;

const utf8 = new TextDecoder('utf-8', { fatal: true });
const placesShown = 3;

/** Reads a manifest. Throws `bad_request` or `bad_utf8`, naming `what` and the place, and never a value. */
export function readManifest(bytes: Uint8Array, what: string): Manifest {
  if (bytes.byteLength > manifestBytesMax) throw refusal(what, `it is larger than ${manifestBytesMax} bytes`);
  const result = manifest.safeParse(jsonOf(bytes, what));
  if (result.success) return result.data;
  const problems = result.error.issues.slice(0, placesShown).map(({ path, message, code, ...rest }) => {
    const keys =
      code === 'unrecognized_keys' && 'keys' in rest ? ` (${rest.keys.map(shown).join(', ')})` : '';
    const place = path.map((step) => shown(String(step))).join('.');
    return `${place === '' ? '' : `${place}: `}${keys === '' ? shown(message) : `unknown key${keys}`}`;
  });
  throw refusal(what, problems.join('; '));
}

function jsonOf(bytes: Uint8Array, what: string): unknown {
  let text: string;
  try {
    text = utf8.decode(bytes);
  } catch (cause) {
    throw new CustodyError('bad_utf8', `${what}: the bytes are not valid UTF-8`, { cause });
  }
  try {
    return JSON.parse(text);
  } catch {
    // The parser's own words quote the file, which may hold a value by mistake.
    const before = text.slice(0, faultIn(text)).split('\n');
    throw refusal(what, `line ${before.length}, column ${(before.at(-1) ?? '').length + 1}: not valid JSON`);
  }
}

const token =
  /[\s]*(?:[{}[\],:]|"(?:[^"\\\p{Cc}]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)/uy;

/** Where a text stops being JSON, as near as its tokens tell: the first that is none, or a comma before an end. */
function faultIn(text: string): number {
  let before = '';
  for (let at = 0; ; at = token.lastIndex) {
    token.lastIndex = at;
    const found = token.exec(text)?.[0].trim();
    const blank = /^\s*/.exec(text.slice(at))?.[0].length ?? 0;
    if (found === undefined || (before === ',' && /^[}\]]/.test(found))) return at + blank;
    before = found;
  }
}

/** Names are the author's: they may be long, and hold what a terminal obeys. */
function shown(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, '?').slice(0, 100);
}

function refusal(what: string, why: string): CustodyError {
  return new CustodyError('bad_request', `${what}: ${why}`, {
    next: 'see docs/delivery.md for what a manifest may say; --no-manifest leaves custody.json alone',
  });
}

function isSound(text: string): boolean {
  if (!isReference(text)) return false;
  try {
    parseReference(text);
    return true;
  } catch {
    return false;
  }
}

function isTtl(ms: number | undefined): boolean {
  return ms !== undefined && ms >= ttlMsMin && ms <= ttlMsMax;
}
