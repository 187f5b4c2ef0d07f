// Owns `custody up`, `down`, `env` and `status`.
import { fork } from 'node:child_process';
import { mkdir, open, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { Command } from 'commander';
import { CustodyError } from '@custody/core/errors';
import { quote } from '@custody/core/names';
import { findRunning, identityOf, layoutOf, type Running } from '@custody/constellation/layout';
import type { Told } from '@custody/constellation/main';
import { ask, defaultDataDir, note, show, table, type Context } from './context.ts';

const hostsMax = 26;
const downMsMax = 30_000;
const pollMs = 20;

export function upCommands(program: Command, context: Context): void {
  program
    .command('up')
    .description('start a constellation on this machine: PostgreSQL, nats-server, control plane, hosts')
    .option('--data <dir>', "where it keeps everything (default: the user's data folder)")
    .option('--hosts <n>', 'how many hosts', '1')
    .option('--detach', 'leave it running in the background')
    .option('--json', 'answer as JSON (with --detach)')
    .action(async (options: { data?: string; hosts: string; detach?: boolean; json?: boolean }) => {
      const hosts = Number(options.hosts);
      if (!Number.isInteger(hosts) || hosts < 0 || hosts > hostsMax) {
        throw new CustodyError(
          'bad_request',
          `--hosts: ${quote(options.hosts)} is not a number from 0 to ${hostsMax}`,
        );
      }
      const layout = layoutOf(options.data ?? defaultDataDir(context));
      const running = await findRunning(layout);
      if (running !== undefined) {
        note(context, `a constellation is already up under ${layout.dir}`);
        show(context, options.json, running, () => upText(running, options.data));
        return;
      }
      await supervise(context, layout.dir, hosts, options.detach === true);
      const started = await findRunning(layout);
      if (started !== undefined) show(context, options.json, started, () => upText(started, options.data));
    });

  program
    .command('down')
    .description('stop exactly what custody up started')
    .option('--data <dir>', 'the folder given to custody up')
    .action(async (options: { data?: string }) => {
      const layout = layoutOf(options.data ?? defaultDataDir(context));
      const running = await findRunning(layout);
      if (running === undefined) {
        note(context, `no constellation is up under ${layout.dir}`);
        return;
      }
      process.kill(running.pid, 'SIGTERM');
      for (let waitedMs = 0; (await identityOf(running.pid)) === running.identity; waitedMs += pollMs) {
        if (waitedMs > downMsMax)
          throw new CustodyError('internal', `the supervisor, pid ${running.pid}, does not end`);
        await new Promise((resolve) => setTimeout(resolve, pollMs));
      }
      note(context, `down; the data stays under ${layout.dir}`);
    });

  program
    .command('env')
    .description('print export lines for a shell to eval')
    .option('--data <dir>', 'the folder given to custody up')
    .option('--host <name>', 'whose socket (default: the first host)')
    .option('--json', 'answer as JSON')
    .action(async (options: { data?: string; host?: string; json?: boolean }) => {
      const layout = layoutOf(options.data ?? defaultDataDir(context));
      const running = await findRunning(layout);
      if (running === undefined) {
        throw new CustodyError('not_found', `no constellation is up under ${layout.dir}`, {
          next: 'custody up --detach',
        });
      }
      const host =
        options.host === undefined
          ? running.hosts[0]
          : running.hosts.find(({ name }) => name === options.host);
      if (options.host !== undefined && host === undefined) {
        const names = running.hosts.map(({ name }) => name).join(', ');
        throw new CustodyError(
          'not_found',
          `there is no host ${quote(options.host)} here; there are: ${names}`,
        );
      }
      const token = (await readFile(running.tokenFile, 'utf8')).trim();
      const variables = {
        CUSTODY_API: running.api,
        CUSTODY_TOKEN: token,
        CUSTODY_SOCKET: host?.socket ?? '',
      };
      show(
        context,
        options.json,
        variables,
        () =>
          `export ${Object.entries(variables)
            .map(([key, value]) => `${key}=${shellQuote(value)}`)
            .join(' ')}`,
      );
    });

  program
    .command('status')
    .description('how the control plane is')
    .option('--json', 'answer as JSON')
    .action(async (options: { json?: boolean }) => {
      const status = await ask(context, 'status', {});
      show(context, options.json, status, () =>
        table(
          ['FIELD', 'VALUE'],
          Object.entries(status).map(([key, value]) => [key, String(value)]),
        ),
      );
      if (status.postgres === 'down' || status.bus === 'down') process.exitCode = 1;
    });
}

/** Starts the supervisor and follows it until all is ready; in the foreground, until it ends. */
async function supervise(context: Context, dataDir: string, hosts: number, detach: boolean): Promise<void> {
  await mkdir(dataDir, { recursive: true, mode: 0o711 });
  await mkdir(join(dataDir, 'log'), { recursive: true, mode: 0o700 });
  const log = await open(join(dataDir, 'log', 'supervisor.log'), 'a', 0o600);
  const program = join(
    dirname(createRequire(import.meta.url).resolve('@custody/constellation/constellation')),
    'main.js',
  );
  const child = fork(program, ['--data', dataDir, '--hosts', String(hosts)], {
    detached: detach,
    cwd: dataDir,
    stdio: ['ignore', log.fd, log.fd, 'ipc'],
  });
  await log.close();
  const ready = Promise.withResolvers<void>();
  child.on('message', (message) => {
    const told = message as Told;
    if ('ready' in told) ready.resolve();
    else if ('failed' in told)
      ready.reject(
        new CustodyError('unavailable', `the constellation did not come up: ${told.failed}`, {
          next: `the logs are under ${join(dataDir, 'log')}`,
        }),
      );
    else note(context, `  ${told.part} ${told.what} (${told.detail})`);
  });
  child.once('exit', (code) =>
    ready.reject(
      new CustodyError('unavailable', `the supervisor ended with ${code ?? 'a signal'}`, {
        next: `the logs are under ${join(dataDir, 'log')}`,
      }),
    ),
  );
  await ready.promise;
  if (detach) {
    if (child.connected) child.disconnect();
    child.unref();
    return;
  }
  note(context, 'up; Ctrl-C stops it');
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill('SIGTERM'));
  await new Promise((resolve) => child.once('exit', resolve));
}

function upText(running: Running, dataDir: string | undefined): string {
  const data = dataDir === undefined ? '' : ` --data ${shellQuote(dataDir)}`;
  return [
    `control plane  ${running.api}`,
    ...running.hosts.map((host) => `${host.name.padEnd(13)}  ${host.socket}`),
    `next: eval "$(custody env${data})"`,
  ].join('\n');
}

function shellQuote(text: string): string {
  return /^[A-Za-z0-9_./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
