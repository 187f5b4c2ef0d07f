// Owns the small schemas that others are made of, and the one function that turns foreign bytes into a checked value.
import { z } from 'zod';
import { CustodyError } from '@custody/core/errors';
import {
  labelsMax,
  reasonBytesMax,
  runArgumentsMax,
  runCommandBytesMax,
  ttlMsMax,
  ttlMsMin,
} from '@custody/core/limits';
import { containments, deliveries, onExits } from '@custody/core/policy';
import { isEnvironmentName, isFieldName, isHostName, isSecretPath } from '@custody/core/names';

export const id = z
  .string()
  .regex(/^[a-z]{1,8}_[A-Za-z0-9]{8,40}$/)
  .describe('an identifier such as g_…');
export const timestamp = z.iso.datetime({ precision: 3 }).describe('RFC 3339, UTC, milliseconds');
export const secretPath = z.string().refine(isSecretPath, 'is not a secret path such as prod/stripe');
export const fieldName = z.string().refine(isFieldName, 'is not a field name such as api_key');
export const hostName = z
  .string()
  .refine(isHostName, 'is not a host name: lower-case letters, digits, hyphens');
export const environmentName = z
  .string()
  .refine(isEnvironmentName, 'is not the name of an environment variable');
export const subject = z.string().regex(/^[a-z0-9-]{1,63}\/\d{1,10}$/, 'is not HOST/UID');
export const base64Url = z
  .string()
  .regex(/^[A-Za-z0-9_-]+$/)
  .max(4_096);
export const base64 = z.base64().max(2_000_000);
export const jws = z
  .string()
  .regex(/^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/)
  .max(700_000);
/** Without NUL, which no database text, argument or path can hold. */
export const plainText = z.string().refine((value) => !value.includes('\0'), 'holds a NUL');
export const reason = plainText.min(1).max(reasonBytesMax);
export const ttlMs = z.int().min(ttlMsMin).max(ttlMsMax);
export const count = z.int().min(0);
export const labels = z
  .record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/), plainText.max(256))
  .refine((value) => Object.keys(value).length <= labelsMax, `has more than ${labelsMax} labels`);
export const command = z
  .array(plainText)
  .min(1)
  .max(runArgumentsMax)
  .refine((words) => words.reduce((sum, word) => sum + word.length, 0) <= runCommandBytesMax, 'is too long');
export const containment = z.enum(containments);
export const freshness = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('strict'), ms: z.int().positive() }),
  z.strictObject({ kind: z.literal('best_effort') }),
]);

/** One credential of a run: the variable it stands in, and the address of its value. */
export const delivery = z.enum(deliveries);
export const onExit = z.enum(onExits);
export const wanted = z.strictObject({
  name: environmentName,
  path: secretPath,
  field: fieldName,
  /** How the value reaches the run; absent: in its environment. */
  deliver: delivery.optional(),
});
export const held = z.strictObject({ ...wanted.shape, version: z.int().positive() });
export type Wanted = z.infer<typeof wanted>;
export type Held = z.infer<typeof held>;

const problemCharsMax = 200;
const utf8 = new TextDecoder('utf-8', { fatal: true });

/** Checks a value against its schema. Throws `bad_request`, naming the place and never the value. */
export function parse<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  what: string,
): z.output<Schema> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues.slice(0, 3).map((issue) => {
    const place = issue.path.map(String).join('.');
    return bounded(place === '' ? issue.message : `${place}: ${issue.message}`);
  });
  throw new CustodyError('bad_request', `${what}: ${problems.join('; ')}`, {
    next: 'see the schema in /openapi.json',
  });
}

/** Names of members are the sender's: they may be long, and hold what a terminal obeys. */
function bounded(line: string): string {
  const plain = line.replaceAll(/\p{Cc}/gu, '?');
  return plain.length > problemCharsMax ? `${plain.slice(0, problemCharsMax)}…` : plain;
}

/** Decodes JSON bytes strictly: broken UTF-8 is `bad_utf8`, broken JSON `bad_request`. */
export function parseJson<Schema extends z.ZodType>(
  schema: Schema,
  bytes: Uint8Array,
  what: string,
): z.output<Schema> {
  return parse(schema, jsonOf(bytes, what), what);
}

export function jsonOf(bytes: Uint8Array, what: string): unknown {
  let text: string;
  try {
    text = utf8.decode(bytes);
  } catch (cause) {
    throw new CustodyError('bad_utf8', `${what}: the bytes are not valid UTF-8`, { cause });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    // The parser's own message quotes the input, which may be a secret: it stays out of the answer and of `cause`.
    const at = cause instanceof SyntaxError ? /position (\d+)/.exec(cause.message)?.[1] : undefined;
    throw new CustodyError(
      'bad_request',
      `${what}: not valid JSON${at === undefined ? '' : ` at byte ${at}`}`,
    );
  }
}

export function encodeJson(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}
