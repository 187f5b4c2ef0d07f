// Owns the bytes of a list of named secret values, as sealed at rest and in transit. Spec: docs/spec/sealing.md.
import { secretValueBytesMax } from '@custody/core/limits';
import { CryptoError } from './errors.ts';

export const payloadFieldsMax = 4_096;
export const payloadNameBytesMax = 512;
export const payloadBytesMax = 8_388_608;

const version = 1;
const headBytes = 3;

/**
 * One list has one encoding, whatever the order of the map. Values may be any bytes. The caller wipes values and
 * answer. Throws `too_large` past a bound and `bad_payload` for a name that is empty or not well-formed text.
 */
export function encodeFields(fields: ReadonlyMap<string, Uint8Array>): Uint8Array {
  if (fields.size > payloadFieldsMax)
    throw tooLarge(`it has ${fields.size} fields, more than ${payloadFieldsMax}`);
  const rows = [...fields].map(([name, value]) => ({ name: encodeName(name), value: bounded(value) }));
  rows.sort((a, b) => Buffer.compare(a.name, b.name));
  const sizeBytes = rows.reduce(
    (sum, row) => sum + 6 + row.name.byteLength + row.value.byteLength,
    headBytes,
  );
  if (sizeBytes > payloadBytesMax) throw tooLarge(`it has ${sizeBytes} bytes, more than ${payloadBytesMax}`);

  const bytes = new Uint8Array(sizeBytes);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, version);
  view.setUint16(1, rows.length);
  let at = headBytes;
  for (const { name, value } of rows) {
    view.setUint16(at, name.byteLength);
    bytes.set(name, at + 2);
    at += 2 + name.byteLength;
    view.setUint32(at, value.byteLength);
    bytes.set(value, at + 4);
    at += 4 + value.byteLength;
  }
  return bytes;
}

/**
 * The fields in order of their names. Every value is a copy that the caller owns and wipes. Throws `bad_payload`
 * for any bytes that `encodeFields` does not write; nothing of the values is in the message.
 */
export function decodeFields(bytes: Uint8Array): Map<string, Uint8Array> {
  if (bytes.byteLength > payloadBytesMax) throw damaged('it is too long');
  if (bytes.byteLength < headBytes) throw damaged('it is too short');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint8(0) !== version) throw damaged('its version is not known');
  const count = view.getUint16(1);
  if (count > payloadFieldsMax) throw damaged('it has too many fields');

  const fields = new Map<string, Uint8Array>();
  let at = headBytes;
  let previous: Uint8Array | undefined;
  const take = (sizeBytes: number): Uint8Array => {
    if (sizeBytes > bytes.byteLength - at) throw damaged('it ends too early');
    at += sizeBytes;
    return bytes.subarray(at - sizeBytes, at);
  };
  for (let index = 0; index < count; index++) {
    take(2);
    const nameBytes = view.getUint16(at - 2);
    if (nameBytes === 0 || nameBytes > payloadNameBytesMax) throw damaged('a name is empty or too long');
    const name = take(nameBytes);
    take(4);
    const valueBytes = view.getUint32(at - 4);
    if (valueBytes > secretValueBytesMax) throw damaged('a value is too long');
    if (previous && Buffer.compare(previous, name) >= 0) throw damaged('its names are out of order');
    fields.set(decodeName(name), take(valueBytes).slice());
    previous = name;
  }
  if (at !== bytes.byteLength) throw damaged('bytes are left over');
  return fields;
}

function encodeName(name: string): Uint8Array {
  if (name.length === 0 || !name.isWellFormed()) {
    throw new CryptoError('bad_payload', 'encode fields: a name is empty or not well-formed text');
  }
  const bytes = new TextEncoder().encode(name);
  if (bytes.byteLength <= payloadNameBytesMax) return bytes;
  throw tooLarge(`a name has ${bytes.byteLength} bytes, more than ${payloadNameBytesMax}`);
}

function decodeName(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw damaged('a name is not UTF-8', cause);
  }
}

function bounded(value: Uint8Array): Uint8Array {
  if (value.byteLength <= secretValueBytesMax) return value;
  throw tooLarge(`a value has ${value.byteLength} bytes, more than ${secretValueBytesMax}`);
}

function tooLarge(why: string): CryptoError {
  return new CryptoError('too_large', `encode fields: ${why}`);
}

function damaged(why: string, cause?: unknown): CryptoError {
  return new CryptoError('bad_payload', `decode fields: ${why}`, { cause });
}
