// Owns the process of the control plane: signals become one orderly stop, errors one line.
import { CustodyError, exitCodeOf } from '@custody/core/errors';
import { startTelemetry } from '@custody/telemetry/telemetry';
import { readCommand } from './config.ts';
import { init } from './init.ts';
import { createLog } from './log.ts';

try {
  const command = await readCommand(process.argv.slice(2), process.env);
  if (command.verb === 'init') {
    await init(command);
  } else if (command.verb === 'renew-log') {
    const { renewRevocationLog } = await import('./start.ts');
    const { reason } = command;
    const { from, to, epoch } = await renewRevocationLog(command.config, { now: () => new Date(), reason });
    process.stdout.write(`the revocation log ${from} is now ${to}, at epoch ${epoch}\n`);
  } else {
    process.on('SIGUSR1', () => {});
    const stop = new AbortController();
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort());
    const stopped = new Promise((resolve) => stop.signal.addEventListener('abort', resolve, { once: true }));
    await using _telemetry = await startTelemetry('custody-control-plane', process.env);
    // Afterwards: an instrument made before the SDK has started measures nothing, for ever.
    const { startControlPlane } = await import('./start.ts');
    const log = createLog(command.config.logLevel);
    await using _controlPlane = await startControlPlane(command.config, { log, now: () => new Date() });
    await stopped;
  }
} catch (error) {
  const known = error instanceof CustodyError ? error : undefined;
  const next = known?.next === undefined ? '' : `; ${known.next}`;
  process.stderr.write(
    `custody: ${known?.publicMessage ?? (error instanceof Error ? error.message : 'failed')}${next}\n`,
  );
  process.exitCode = known === undefined ? 1 : exitCodeOf(known.code);
}
