// Owns traces and metrics: spans that follow a run from keeper to Postgres, counters, and whether anything is exported.
import {
  context,
  metrics,
  propagation,
  ROOT_CONTEXT,
  SpanStatusCode,
  trace,
  type Attributes,
  type Counter,
  type Histogram,
} from '@opentelemetry/api';

const scope = 'custody';
const shutdownMsMax = 2_000;

/** W3C trace context in flight: `traceparent`, perhaps `tracestate`. */
export type Carrier = Record<string, string>;

const askedFor = [
  'OTEL_TRACES_EXPORTER',
  'OTEL_METRICS_EXPORTER',
  'OTEL_EXPORTER_OTLP_ENDPOINT',
  'OTEL_EXPORTER_OTLP_TRACES_ENDPOINT',
  'OTEL_EXPORTER_OTLP_METRICS_ENDPOINT',
] as const;

/**
 * Starts the OpenTelemetry SDK when one of the standard variables asks for an exporter; otherwise loads
 * nothing and every span and counter below costs a few nanoseconds.
 */
export async function startTelemetry(
  service: string,
  environment: Readonly<Record<string, string | undefined>>,
): Promise<AsyncDisposable> {
  const wanted = askedFor.some((key) => (environment[key] ?? '') !== '');
  if (!wanted || environment['OTEL_SDK_DISABLED'] === 'true')
    return { [Symbol.asyncDispose]: async () => {} };
  const { NodeSDK } = await import('@opentelemetry/sdk-node');
  const sdk = new NodeSDK({
    serviceName: environment['OTEL_SERVICE_NAME'] ?? service,
    instrumentations: [],
    ...(environment['OTEL_LOGS_EXPORTER'] === undefined ? { logRecordProcessors: [] } : {}),
  });
  sdk.start();
  // A collector that does not answer must not keep a program from ending.
  return {
    [Symbol.asyncDispose]: async () => {
      const bound = Promise.withResolvers<void>();
      const timer = setTimeout(bound.resolve, shutdownMsMax);
      await Promise.race([sdk.shutdown().catch(() => {}), bound.promise]);
      clearTimeout(timer);
    },
  };
}

/**
 * Runs `work` in a span. `parent`: the context that came over the wire; absent: the current one. Errors end the
 * span as failed.
 */
export function traced<Result>(
  name: string,
  options: { readonly parent?: Carrier | undefined; readonly attributes?: Attributes },
  work: () => Promise<Result>,
): Promise<Result> {
  const parent =
    options.parent === undefined ? context.active() : propagation.extract(ROOT_CONTEXT, options.parent);
  return trace
    .getTracer(scope)
    .startActiveSpan(name, { attributes: options.attributes ?? {} }, parent, async (span) => {
      try {
        return await work();
      } catch (error) {
        // Only the class of the error: a message may carry what a trace must not.
        span.setStatus({
          code: SpanStatusCode.ERROR,
          message: error instanceof Error ? error.name : 'error',
        });
        throw error;
      } finally {
        span.end();
      }
    });
}

/** The current trace context, to send along. Empty when telemetry is off. */
export function carrier(): Carrier {
  const headers: Carrier = {};
  propagation.inject(context.active(), headers);
  return headers;
}

export function counter(name: string, description: string): Counter {
  return metrics.getMeter(scope).createCounter(name, { description });
}

export function histogram(name: string, description: string, unit: string): Histogram {
  return metrics.getMeter(scope).createHistogram(name, { description, unit });
}
