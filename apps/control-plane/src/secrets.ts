// Owns secrets in the clear, for as long as one call takes: sealed on the way in, opened on the way to a host or an operator.
import { isReserved } from '@custody/core/canary';
import { CustodyError } from '@custody/core/errors';
import { secretValueBytesMax } from '@custody/core/limits';
import { Secret } from '@custody/core/secret';
import { openVersion, sealVersion } from '@custody/crypto/envelope';
import { decodeFields, encodeFields } from '@custody/crypto/payload';
import type { Database } from '@custody/store/database';
import * as store from '@custody/store/secrets';
import type { Held, Wanted } from '@custody/wire/schema';
import type { Authority } from './authority.ts';

export interface SecretsOptions {
  readonly db: Database;
  readonly authority: Authority;
  readonly kek: Uint8Array;
  readonly now: () => Date;
}

export class Secrets {
  readonly #options: SecretsOptions;

  constructor(options: SecretsOptions) {
    this.#options = options;
  }

  async put(
    by: string,
    path: string,
    encoding: 'utf8' | 'base64',
    given: Record<string, string>,
  ): Promise<store.VersionRow> {
    const { db, authority, kek, now } = this.#options;
    if (isReserved(path)) {
      throw new CustodyError('bad_request', `${path}: what is under custody/ is not for secrets`, {
        next: 'choose another path',
      });
    }
    const createdAt = now();
    const fields = Object.keys(given).toSorted();
    const values = new Map(fields.map((name) => [name, bytesOf(name, given[name] ?? '', encoding)]));
    using plaintext = new Secret(encodeFields(values));
    // Awaited here: the plaintext is wiped when this function is left.
    return await store.putSecret(db, authority.author, {
      path,
      fields,
      createdAt,
      createdBy: by,
      seal: (version) => sealVersion(kek, plaintext, { path, version }),
      entryFor: (version) => authority.entry('secret_put', createdAt, { by, path, version, fields }),
    });
  }

  async list(prefix: string): Promise<store.VersionRow[]> {
    const folder = prefix.replace(/\/$/, '');
    const rows = await store.listSecrets(this.#options.db, folder);
    // The database takes `_` and `%` for wildcards.
    return rows.filter(({ path }) => folder === '' || path === folder || path.startsWith(`${folder}/`));
  }

  async newest(path: string): Promise<store.VersionRow> {
    const { sealed: _, ...version } = await this.#sealed(path, undefined);
    return version;
  }

  async versions(path: string): Promise<store.VersionRow[]> {
    const rows = await store.listVersions(this.#options.db, path);
    if (rows.length === 0) throw unknownSecret(path);
    return rows;
  }

  /** The values for an operator who asked to see them. On record before they are given. */
  async reveal(
    by: string,
    path: string,
    version: number | undefined,
  ): Promise<store.VersionRow & { values: Record<string, string> }> {
    const { db, authority, now } = this.#options;
    const { sealed, ...row } = await this.#sealed(path, version);
    const body = { by, path, version: row.version };
    await store.recordReveal(db, authority.author, authority.entry('secret_revealed', now(), body));
    using opened = this.#open(row, sealed);
    const values = [...decodeFields(opened.reveal())].map(([name, value]) => [
      name,
      Buffer.from(value).toString('base64'),
    ]);
    return { ...row, values: Object.fromEntries(values) as Record<string, string> };
  }

  remove(by: string, path: string): Promise<void> {
    const { db, authority, now } = this.#options;
    const at = now();
    return store.removeSecret(
      db,
      authority.author,
      path,
      at,
      authority.entry('secret_removed', at, { by, path }),
    );
  }

  /**
   * The newest value of each wanted field, by the variable it is for. The caller wipes the bytes.
   * Throws `secret_unknown` or `field_unknown`, before anything is opened.
   */
  async collect(wanted: readonly Wanted[]): Promise<{ held: Held[]; values: Map<string, Uint8Array> }> {
    const rows = await store.newestSealed(this.#options.db, [...new Set(wanted.map(({ path }) => path))]);
    const byPath = new Map(rows.map((row) => [row.path, row]));
    const held = wanted.map(({ name, path, field }): Held => {
      const row = byPath.get(path);
      if (row === undefined) throw unknownSecret(path);
      if (!row.fields.includes(field)) {
        throw new CustodyError('field_unknown', `secret ${path} has no field ${field}`, {
          next: `it has: ${row.fields.join(', ')}`,
        });
      }
      return { name, path, field, version: row.version };
    });
    const values = new Map<string, Uint8Array>();
    for (const { sealed, ...row } of rows) {
      using opened = this.#open(row, sealed);
      const fields = decodeFields(opened.reveal());
      for (const { name, path, field } of wanted) {
        if (path === row.path) values.set(name, Uint8Array.from(fields.get(field) ?? []));
      }
      for (const value of fields.values()) value.fill(0);
    }
    return { held, values };
  }

  async #sealed(path: string, version: number | undefined): Promise<store.SealedVersionRow> {
    const row = await store.sealedVersion(this.#options.db, path, version);
    if (row !== undefined) return row;
    if (version === undefined) throw unknownSecret(path);
    throw new CustodyError('not_found', `secret ${path} has no version ${version}`, {
      next: `custody secret versions ${path} shows them`,
    });
  }

  #open(row: store.VersionRow, sealed: store.SealedBytes): Secret {
    return openVersion(this.#options.kek, sealed, { path: row.path, version: row.version });
  }
}

function bytesOf(field: string, text: string, encoding: 'utf8' | 'base64'): Uint8Array {
  const bytes = Buffer.from(text, encoding);
  if (encoding === 'base64' && bytes.toString('base64') !== text) {
    throw new CustodyError('bad_request', `field ${field}: the value is not base64`);
  }
  if (bytes.byteLength > secretValueBytesMax) {
    throw new CustodyError(
      'too_large',
      `field ${field} has ${bytes.byteLength} bytes, more than ${secretValueBytesMax}`,
    );
  }
  return bytes;
}

function unknownSecret(path: string): CustodyError {
  return new CustodyError('secret_unknown', `there is no secret ${path}`, {
    next: 'custody secret list shows what there is',
  });
}
