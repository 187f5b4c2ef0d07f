// Owns what a command needs of its surroundings: where the control plane is, who asks, and how answers are shown.
import { homedir } from 'node:os';
import { join } from 'node:path';
import { CustodyError } from '@custody/core/errors';
import { findRunning, layoutOf } from '@custody/constellation/layout';
import { readFile } from 'node:fs/promises';
import { call } from '@custody/wire/client';
import type { Action, ReplyOf } from '@custody/wire/http';

export interface Context {
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly stdout: NodeJS.WritableStream;
  readonly stderr: NodeJS.WritableStream;
  readonly stdin: NodeJS.ReadableStream;
  readonly now: () => Date;
}

/** The folder of `custody up` where none is named. */
export function defaultDataDir({ environment }: Context): string {
  const base = environment['XDG_DATA_HOME'] ?? join(homedir(), '.local', 'share');
  return environment['CUSTODY_DATA'] ?? join(base, 'custody');
}

/** CUSTODY_API and CUSTODY_TOKEN; else the constellation that runs in the default folder. */
export async function controlPlane(context: Context): Promise<{ url: string; token: string }> {
  const { CUSTODY_API: url, CUSTODY_TOKEN: token } = context.environment;
  if (url !== undefined && url !== '' && token !== undefined && token !== '') {
    if (!URL.canParse(url)) throw new CustodyError('bad_request', 'CUSTODY_API is not an address');
    return { url, token };
  }
  const running = await findRunning(layoutOf(defaultDataDir(context)));
  if (running === undefined) {
    throw new CustodyError('unauthenticated', 'CUSTODY_API and CUSTODY_TOKEN are not set', {
      next: 'eval "$(custody env)" sets them for a constellation of your own; custody up starts one',
    });
  }
  return { url: running.api, token: (await readFile(running.tokenFile, 'utf8')).trim() };
}

/** Calls an endpoint as whoever CUSTODY_TOKEN says. */
export async function ask<Name extends Action>(
  context: Context,
  name: Name,
  sent: Parameters<typeof call<Name>>[2],
  timeoutMs?: number,
): Promise<ReplyOf<Name>> {
  const options = await controlPlane(context);
  return call(timeoutMs === undefined ? options : { ...options, timeoutMs }, name, sent);
}

/** One answer: as JSON for programs, or as text for people. */
export function show(context: Context, json: boolean | undefined, value: unknown, text: () => string): void {
  const out = json === true ? JSON.stringify(value, null, 2) : text();
  if (out !== '') context.stdout.write(out.endsWith('\n') ? out : `${out}\n`);
}

/** Rows in aligned columns under their headings. */
export function table(headings: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [headings, ...rows].map((row) => row.map(plain));
  const widths = headings.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length)));
  return all
    .map((row) =>
      row
        .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0)))
        .join('  '),
    )
    .join('\n');
}

/** Text from elsewhere for a terminal: a command, a reason or a name must not move its cursor or clear it. */
export function plain(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, '?');
}

export function note(context: Context, line: string): void {
  context.stderr.write(`${line}\n`);
}
