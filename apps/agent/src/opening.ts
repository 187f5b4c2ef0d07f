// Owns the opening of what the control plane sealed: the values of one grant, each with its way to the run.
import { createHash } from 'node:crypto';
import { CustodyError } from '@custody/core/errors';
import type { Delivery } from '@custody/core/policy';
import type { SealingKey } from '@custody/crypto/keys';
import { decodeFields } from '@custody/crypto/payload';
import type { GrantClaims } from '@custody/wire/messages';
import type { Ask } from './delivery.ts';

export interface Opened {
  readonly deliver: Delivery;
  readonly name: string;
  readonly value: Uint8Array;
}

/** Values in the order they were asked for; the caller wipes them. Throws where they are not those of the grant. */
export function openValues(
  sealingKey: SealingKey,
  sealed: Uint8Array,
  claims: GrantClaims,
  ask: Ask,
): Opened[] {
  if (createHash('sha256').update(sealed).digest('hex') !== claims.sealedSha256) {
    throw new CustodyError('internal', 'the sealed values are not those that the grant was signed for');
  }
  const plaintext = sealingKey.open(sealed);
  try {
    const values = decodeFields(plaintext);
    return ask.wanted.map(({ name, path, field, deliver = 'env' }) => {
      const value = values.get(name);
      if (
        value === undefined ||
        !claims.credentials.some((each) => each.name === name && each.path === path)
      ) {
        throw new CustodyError('internal', `the control plane sent no value for ${name}`);
      }
      if (deliver === 'env' && value.includes(0)) {
        throw new CustodyError(
          'run_unacceptable',
          `${path}/${field} holds a NUL byte: no environment variable can`,
          {
            next: 'deliver it by --file, --fifo or --fd, or store it in another encoding, such as base64',
          },
        );
      }
      return { deliver, name, value: Uint8Array.from(value) };
    });
  } finally {
    plaintext.fill(0);
  }
}
