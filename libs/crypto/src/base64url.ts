// Owns base64url without padding (RFC 4648 section 5), one spelling per value.

/** 4 characters for 3 bytes, no padding. */
export function toBase64url(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64url');
}

/**
 * The bytes, or undefined when `text` is not the one spelling of them: padding, other alphabets, stray
 * characters and non-zero unused bits are refused, and so is any length but `sizeBytes` where given.
 */
export function fromBase64url(text: string, sizeBytes?: number): Uint8Array | undefined {
  const bytes = Buffer.from(text, 'base64url');
  if (sizeBytes !== undefined && bytes.byteLength !== sizeBytes) return undefined;
  if (bytes.toString('base64url') !== text) return undefined;
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
