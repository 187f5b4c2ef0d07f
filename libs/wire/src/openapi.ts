// Owns the OpenAPI 3.1 document: derived from the endpoint table, so that it cannot disagree with it.
import { z } from 'zod';
import { errorCodes, statusOf } from '@custody/core/errors';
import { endpoints, problem, type Action } from './http.ts';

type Json = Record<string, unknown>;

const jsonSchema = (schema: z.ZodType, io: 'input' | 'output'): Json => {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any' }) as Json;
  return rest;
};

/** The endpoints that take a join token in the body in place of a bearer token. */
const withoutBearer: ReadonlySet<Action> = new Set(['enroll']);

export function openApi(version: string): Json {
  const paths: Record<string, Json> = {};
  for (const [name, endpoint] of Object.entries(endpoints)) {
    const shape: {
      method: string;
      path: string;
      summary: string;
      params?: z.ZodType;
      query?: z.ZodType;
      body?: z.ZodType;
      reply: z.ZodType;
      stream?: true;
    } = endpoint;
    const operation: Json = {
      operationId: name,
      summary: shape.summary,
      parameters: [...parameters('path', shape.params), ...parameters('query', shape.query)],
      responses: {
        200: {
          description: shape.stream === true ? 'a stream; the data of each event is as described' : 'done',
          content: {
            [shape.stream === true ? 'text/event-stream' : 'application/json']: {
              schema: jsonSchema(shape.reply, 'output'),
            },
          },
        },
        default: {
          description: `refused; status by code: ${errorCodes.map((code) => `${code} ${statusOf(code)}`).join(', ')}`,
          content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
        },
      },
    };
    if (shape.body !== undefined) {
      operation['requestBody'] = {
        required: true,
        content: { 'application/json': { schema: jsonSchema(shape.body, 'input') } },
      };
    }
    if (withoutBearer.has(name as Action)) operation['security'] = [];
    paths[shape.path] = { ...paths[shape.path], [shape.method.toLowerCase()]: operation };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Custody control plane',
      version,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    security: [{ bearer: [] }],
    paths,
    components: {
      securitySchemes: { bearer: { type: 'http', scheme: 'bearer' } },
      schemas: { Problem: jsonSchema(problem, 'output') },
    },
  };
}

function parameters(where: 'path' | 'query', schema: z.ZodType | undefined): Json[] {
  if (schema === undefined) return [];
  const { properties, required } = jsonSchema(schema, 'input') as {
    properties?: Record<string, Json>;
    required?: string[];
  };
  return Object.entries(properties ?? {}).map(([name, property]) => ({
    name,
    in: where,
    required: where === 'path' || (required ?? []).includes(name),
    schema: property,
  }));
}
