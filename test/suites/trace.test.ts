// Owns the proof that a run can be followed from its caller to Postgres, and that nothing is sent where nobody asked.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { createServer, type Server } from 'node:http';
import * as path from 'node:path';
import { buffer } from 'node:stream/consumers';
import {
  exited,
  openPolicy,
  until,
  withConstellation,
  type TestConstellation,
} from '@custody/testkit/constellation';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

interface Attribute {
  readonly key: string;
}

interface Resource {
  readonly attributes: readonly { readonly key: string; readonly value: { readonly stringValue?: string } }[];
}

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly attributes: readonly Attribute[];
  readonly status: { readonly code: number; readonly message?: string };
}

interface Point {
  readonly asInt?: string | number;
  readonly asDouble?: number;
  readonly count?: string | number;
}

interface Metric {
  readonly name: string;
  readonly sum?: { readonly dataPoints: readonly Point[] };
  readonly histogram?: { readonly dataPoints: readonly Point[] };
}

interface Exported {
  readonly resourceSpans?: readonly {
    resource: Resource;
    scopeSpans: readonly { spans: readonly Span[] }[];
  }[];
  readonly resourceMetrics?: readonly {
    resource: Resource;
    scopeMetrics: readonly { metrics: readonly Metric[] }[];
  }[];
}

/** A receiver of OTLP over HTTP with JSON bodies: https://opentelemetry.io/docs/specs/otlp/#otlphttp. */
class Receiver {
  readonly bodies: string[] = [];
  readonly spans: (Span & { readonly service: string })[] = [];
  readonly metrics: Metric[] = [];
  readonly #server: Server;

  constructor() {
    this.#server = createServer((request, response) => {
      void buffer(request).then((body) => {
        this.#take(body.toString('utf8'));
        response.setHeader('content-type', 'application/json').end('{}');
      });
    });
  }

  async listen(): Promise<number> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('the receiver has no port');
    return address.port;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  #take(body: string): void {
    this.bodies.push(body);
    const exported = JSON.parse(body) as Exported;
    for (const { resource, scopeSpans } of exported.resourceSpans ?? []) {
      const service = resource.attributes.find(({ key }) => key === 'service.name')?.value.stringValue ?? '';
      for (const { spans } of scopeSpans) this.spans.push(...spans.map((span) => ({ ...span, service })));
    }
    for (const { scopeMetrics } of exported.resourceMetrics ?? []) {
      for (const { metrics } of scopeMetrics) this.metrics.push(...metrics);
    }
  }
}

async function begin(kit: TestConstellation, value: string): Promise<void> {
  const policy = path.join(kit.scratch, 'policy.cedar');
  fs.writeFileSync(policy, openPolicy);
  exited(0, await kit.custody(['policy', 'apply', policy]));
  exited(0, await kit.custody(['secret', 'put', 'prod/stripe', '--field', 'api_key=-'], { input: value }));
}

const holds = ['KEY=custody://prod/stripe/api_key'];

describe('with an exporter', () => {
  const receiver = new Receiver();
  // Runs last: programs that stop send what is left.
  afterAll(() => receiver.close());
  const canary = `cnry${randomBytes(18).toString('hex')}`;
  const kit = withConstellation({
    hosts: 1,
    environment: async () => ({
      OTEL_TRACES_EXPORTER: 'otlp',
      OTEL_METRICS_EXPORTER: 'otlp',
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${await receiver.listen()}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json',
      OTEL_BSP_SCHEDULE_DELAY: '50',
      OTEL_METRIC_EXPORT_INTERVAL: '200',
      OTEL_METRIC_EXPORT_TIMEOUT: '200',
    }),
  });
  beforeAll(() => begin(kit, canary));

  const spanOf = (traceId: string, name: string): Promise<Span & { readonly service: string }> =>
    until(
      () => receiver.spans.find((span) => span.traceId === traceId && span.name === name),
      `the span ${name} of the caller's trace`,
    );

  test('a run is one trace, from its caller through agent and control plane to the transaction', async () => {
    const [traceId, caller] = [randomBytes(16).toString('hex'), randomBytes(8).toString('hex')];
    exited(0, await kit.run(['true'], { holds, env: { TRACEPARENT: `00-${traceId}-${caller}-01` } }));
    const spans = [
      ['agent.admit', 'custody-agent'],
      ['agent.request_grant', 'custody-agent'],
      ['desk.grant', 'custody-control-plane'],
      ['store.issue_grant', 'custody-control-plane'],
    ] as const;
    let parent = caller;
    for (const [name, service] of spans) {
      const span = await spanOf(traceId, name);
      expect(span).toMatchObject({ service, parentSpanId: parent });
      expect(span.status.code).not.toBe(2);
      parent = span.spanId;
    }
  });

  test('a refused run is a failed span, with the class of its error and not its words', async () => {
    const [traceId, caller] = [randomBytes(16).toString('hex'), randomBytes(8).toString('hex')];
    const outcome = await kit.run(['true'], {
      holds: ['KEY=custody://prod/none/api_key'],
      env: { TRACEPARENT: `00-${traceId}-${caller}-01` },
    });
    exited(125, outcome);
    const span = await spanOf(traceId, 'agent.admit');
    expect(span.status).toEqual({ code: 2, message: 'CustodyError' });
  });

  test('an HTTP request continues the trace of its caller', async () => {
    const [traceId, caller] = [randomBytes(16).toString('hex'), randomBytes(8).toString('hex')];
    const response = await fetch(`${kit.constellation.api}/v1/status`, {
      headers: {
        authorization: `Bearer ${kit.constellation.token}`,
        traceparent: `00-${traceId}-${caller}-01`,
      },
    });
    expect(response.status).toBe(200);
    expect(await spanOf(traceId, 'http.status')).toMatchObject({ parentSpanId: caller });
  });

  test('a trace context that is none does not stop a run', async () => {
    for (const traceparent of ['nonsense', '00-0-0-00', `00-${'0'.repeat(32)}-${'0'.repeat(16)}-01`]) {
      exited(0, await kit.run(['true'], { holds, env: { TRACEPARENT: traceparent } }));
    }
  });

  test('grants, revocations and the lag of the ledger are measured', async () => {
    const run = kit.startRun(['sh', '-c', 'echo "$CUSTODY_GRANT"; exec sleep 60'], { holds });
    exited(0, await kit.custody(['revoke', '--grant', await run.line(1), '--reason', 'test', '--wait']));
    exited(123, await run.outcome);
    const sum = (name: string): number =>
      Math.max(
        0,
        ...receiver.metrics
          .filter((metric) => metric.name === name)
          .flatMap(({ sum: total, histogram }) => [
            ...(total?.dataPoints ?? []),
            ...(histogram?.dataPoints ?? []),
          ])
          .map(({ asInt, asDouble, count }) => Number(asInt ?? asDouble ?? count ?? 0)),
      );
    const wanted = {
      'custody.grants': 2,
      'custody.denials': 1,
      'custody.revocations': 1,
      'custody.ledger.entries': 4,
      'custody.ledger.ingest_lag': 4,
      'custody.agent.grants': 2,
      'custody.agent.refusals': 1,
      'custody.agent.revoked_to_empty': 1,
    };
    for (const [name, least] of Object.entries(wanted)) {
      await until(() => sum(name) >= least, `${name} at ${least} or more`);
    }
  });

  test('nothing that was exported holds the secret', () => {
    const everything = receiver.bodies.join('\n');
    expect(everything.length).toBeGreaterThan(10_000);
    for (const text of [canary, Buffer.from(canary).toString('base64').slice(0, -4)]) {
      expect(everything.includes(text)).toBe(false);
    }
    // It looks where it would be found.
    expect(everything.includes('store.issue_grant')).toBe(true);
  });
});

describe('without one', () => {
  const kit = withConstellation({ hosts: 1 });
  beforeAll(() => begin(kit, 'v1'));

  test('the agent is connected to its bus and to nobody else', async () => {
    exited(
      0,
      await kit.run(['true'], { holds, env: { TRACEPARENT: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01` } }),
    );
    const { pid } = kit.constellation.part('host-a');
    if (process.getuid?.() !== 0) {
      // The agent shuts its own user out of what the kernel tells of it: that nobody may look is what is left to see.
      expect(() => fs.readdirSync(`/proc/${pid}/fd`)).toThrow('EACCES');
      return;
    }
    const ports = remotePorts(pid);
    expect([...new Set(ports)]).toEqual([Number(new URL(kit.constellation.busUrl).port)]);
  });
});

/** Where the TCP sockets of a process lead (proc_pid_net(5)): those that listen lead nowhere. */
function remotePorts(pid: number): number[] {
  const inodes = fs
    .readdirSync(`/proc/${pid}/fd`)
    .flatMap((fd) => linkMaybe(`/proc/${pid}/fd/${fd}`))
    .flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []);
  return ['tcp', 'tcp6'].flatMap((table) =>
    fs
      .readFileSync(`/proc/${pid}/net/${table}`, 'latin1')
      .split('\n')
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => inodes.includes(fields[9] ?? ''))
      .map((fields) => Number.parseInt(fields[2]?.split(':')[1] ?? '', 16)),
  );
}

/** A descriptor may be closed between the list and the look. */
function linkMaybe(link: string): string[] {
  try {
    return [fs.readlinkSync(link)];
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
