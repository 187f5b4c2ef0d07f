// Owns the proof that the OpenAPI document is one, says every endpoint once, and changes only on purpose.
import { errorCodes } from '@custody/core/errors';
import { readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { endpoints } from '../src/http.ts';
import { openApi } from '../src/openapi.ts';

type Json = Record<string, unknown>;
interface Operation {
  readonly operationId: string;
  readonly summary: string;
  readonly parameters: readonly { name: string; in: string; required: boolean; schema: Json }[];
  readonly responses: Record<string, { description: string; content: Record<string, { schema: Json }> }>;
  readonly requestBody?: { required: boolean; content: Record<string, { schema: Json }> };
  readonly security?: readonly Json[];
}

const document = openApi('0.0.0');
const paths = document['paths'] as Record<string, Record<string, Operation>>;
const operations = Object.entries(paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
);

/** Every schema within a value, with where it stands. */
function* schemasIn(value: unknown, at: string): Generator<[string, Json]> {
  if (Array.isArray(value))
    for (const [index, each] of value.entries()) yield* schemasIn(each, `${at}/${index}`);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return;
  if ('type' in value || '$ref' in value) yield [at, value];
  for (const [key, each] of Object.entries(value)) yield* schemasIn(each, `${at}/${key}`);
}

it('is the golden document (CUSTODY_GOLDEN=write)', () => {
  const golden = new URL('golden/openapi.json', import.meta.url);
  const text = `${JSON.stringify(document, null, 2)}\n`;
  if (process.env['CUSTODY_GOLDEN'] === 'write') writeFileSync(golden, text);
  expect(text).toBe(readFileSync(golden, 'utf8'));
});

describe('OpenAPI 3.1', () => {
  it('has its head, its licence and its security', () => {
    expect(document).toMatchObject({
      openapi: expect.stringMatching(/^3\.1\.\d$/),
      info: { title: expect.any(String), version: '0.0.0', license: { identifier: 'Apache-2.0' } },
      components: { securitySchemes: { bearer: { type: 'http', scheme: 'bearer' } } },
      security: [{ bearer: [] }],
    });
  });

  it('survives JSON, byte for byte', () => {
    expect(JSON.parse(JSON.stringify(document))).toEqual(document);
  });

  it('has each endpoint exactly once', () => {
    expect(operations.map(({ operation }) => operation.operationId).toSorted()).toEqual(
      Object.keys(endpoints).toSorted(),
    );
    const places = Object.values(endpoints).map(({ method, path }) => `${method} ${path}`);
    expect(new Set(places).size).toBe(places.length);
    expect(operations).toHaveLength(places.length);
  });

  it('no two paths are one, whatever their parameters are called', () => {
    const shapes = Object.keys(paths).map((path) => path.replaceAll(/\{\w+\}/g, '{}'));
    expect(new Set(shapes).size).toBe(shapes.length);
  });

  it.each(operations.map((each) => [each.operation.operationId, each] as const))(
    '%s is well formed',
    (_, { path, operation }) => {
      expect(path).toMatch(/^\/v1(\/([a-z-]+|\{\w+\}))+$/);
      expect(operation.summary).toMatch(/^[A-Z`].*[^.]$/);
      const templated = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name ?? '').toSorted();
      const declared = operation.parameters.filter((each) => each.in === 'path');
      expect(declared.map(({ name }) => name).toSorted()).toEqual(templated);
      expect(declared.every(({ required }) => required)).toBe(true);
      expect(new Set(operation.parameters.map((each) => `${each.in} ${each.name}`)).size).toBe(
        operation.parameters.length,
      );
      expect(Object.keys(operation.responses)).toEqual(['200', 'default']);
      const type = operation.operationId === 'events.follow' ? 'text/event-stream' : 'application/json';
      expect(operation.responses['200']?.content[type]?.schema).toBeTypeOf('object');
      const refused = operation.responses['default'];
      expect(refused?.content['application/problem+json']?.schema).toEqual({
        $ref: '#/components/schemas/Problem',
      });
      for (const code of errorCodes) expect(refused?.description).toContain(code);
    },
  );

  it('only enrolment is without a bearer token', () => {
    const open = operations.filter(({ operation }) => operation.security !== undefined);
    expect(open.map(({ operation }) => operation.operationId)).toEqual(['enroll']);
    expect(open[0]?.operation.security).toEqual([]);
  });

  it('every schema is one that JSON Schema knows, and every reference leads somewhere', () => {
    const known = ['string', 'number', 'integer', 'boolean', 'object', 'array', 'null', 'http'];
    const found = [...schemasIn(document, '#')];
    expect(found.length).toBeGreaterThan(100);
    for (const [at, schema] of found) {
      const { type, $ref } = schema;
      if (typeof type === 'string' && !at.endsWith('/properties'))
        expect([at, known.includes(type)]).toEqual([at, true]);
      if (typeof $ref === 'string') {
        const target = $ref
          .slice(2)
          .split('/')
          .reduce<unknown>((at_, key) => (at_ as Json)[key], document);
        expect(target).toBeTypeOf('object');
      }
      expect(schema).not.toHaveProperty('$schema');
    }
  });

  it('a body may leave out what has a default; an answer may not', () => {
    const revoke = operations.find(
      ({ operation }) => operation.operationId === 'revocation.create',
    )?.operation;
    const body = revoke?.requestBody?.content['application/json']?.schema as { required: string[] };
    expect(body.required).toEqual(['target', 'reason']);
  });
});
