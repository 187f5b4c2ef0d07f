// Owns the proof that telemetry is off until asked for, costs no behaviour, and says nothing that an error held.
import { describe, expect, it } from 'vitest';
import { carrier, counter, histogram, startTelemetry, traced } from '../src/telemetry.ts';

describe('without a word about an exporter', () => {
  it.each([
    {},
    { OTEL_SERVICE_NAME: 'x' },
    { OTEL_TRACES_EXPORTER: '' },
    { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9', OTEL_SDK_DISABLED: 'true' },
  ])('nothing is started: %j', async (environment) => {
    await using _telemetry = await startTelemetry('test', environment);
    expect(carrier()).toEqual({});
  });

  it('a span gives back what its work gives, and throws what it throws', async () => {
    expect(await traced('work', { attributes: { a: 1 } }, async () => 7)).toBe(7);
    const error = new Error('sk_live_canary');
    await expect(traced('work', {}, () => Promise.reject(error))).rejects.toBe(error);
  });

  it.each(['', 'garbage', '00-0-0-00', `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`, '\u0000'])(
    'a caller may say any trace context: %j',
    async (traceparent) => {
      expect(await traced('work', { parent: { traceparent } }, async () => carrier())).toEqual({});
    },
  );

  it('counters and histograms take what they are given', () => {
    expect(() => counter('a', 'b').add(1, { code: 'x' })).not.toThrow();
    expect(() => histogram('a', 'b', 'ms').record(1)).not.toThrow();
  });
});
