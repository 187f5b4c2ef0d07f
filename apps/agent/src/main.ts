// Owns the process of the agent: signals become one orderly stop, errors one line.
import { CustodyError, exitCodeOf } from '@custody/core/errors';
import { undumpable } from '@custody/keeper/native';
import { startTelemetry } from '@custody/telemetry/telemetry';
import { readConfig } from './config.ts';
import { enroll } from './identity.ts';
import { createLog } from './log.ts';

try {
  const config = readConfig(process.argv.slice(2), process.env);
  if (config.verb === 'enroll') {
    const { agentVersion, strongestContainment } = await import('./start.ts');
    const containment = await strongestContainment(createLog('silent'));
    const { name, hostId } = await enroll({ ...config, containment, version: agentVersion });
    process.stdout.write(
      `enrolled as ${name} (${hostId}); start it with custody agent start --data ${config.dataDir}\n`,
    );
  } else {
    undumpable();
    // SIGUSR1 would open Node's inspector on a local port; the default is taken from it.
    process.on('SIGUSR1', () => {});
    const stop = new AbortController();
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort());
    const stopped = new Promise((resolve) => stop.signal.addEventListener('abort', resolve, { once: true }));
    await using _telemetry = await startTelemetry('custody-agent', process.env);
    // Afterwards: an instrument made before the SDK has started measures nothing, for ever.
    const { startAgent } = await import('./start.ts');
    const log = createLog(config.logLevel);
    await using _agent = await startAgent(config, { log, wallClock: () => new Date() });
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
