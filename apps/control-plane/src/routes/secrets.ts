// Owns the routes of secrets.
import { Controller, Delete, Get, HttpCode, Inject, Post, Put, Req } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import type { VersionRow } from '@custody/store/secrets';
import type { ReplyOf, SecretSummary } from '@custody/wire/http';
import { allowed, asked, handled, rendered } from '../http.ts';
import { PARTS, type Parts } from '../parts.ts';

@Controller('v1/secrets')
export class SecretRoutes {
  readonly #parts: Parts;

  constructor(@Inject(PARTS) parts: Parts) {
    this.#parts = parts;
  }

  @Get()
  list(@Req() request: FastifyRequest): Promise<ReplyOf<'secret.list'>> {
    return handled('secret.list', request, async () => {
      const { query } = asked('secret.list', request);
      allowed('secret.list', request);
      const rows = await this.#parts.secrets.list(query.prefix ?? '');
      return rendered('secret.list', { secrets: rows.map(summary) });
    });
  }

  @Put(':path')
  put(@Req() request: FastifyRequest): Promise<ReplyOf<'secret.put'>> {
    return handled('secret.put', request, async () => {
      const { params, body } = asked('secret.put', request);
      const { subject } = allowed('secret.put', request);
      const row = await this.#parts.secrets.put(subject, params.path, body.encoding, body.fields);
      return rendered('secret.put', summary(row));
    });
  }

  @Get(':path')
  get(@Req() request: FastifyRequest): Promise<ReplyOf<'secret.get'>> {
    return handled('secret.get', request, async () => {
      const { params } = asked('secret.get', request);
      allowed('secret.get', request);
      const row = await this.#parts.secrets.newest(params.path);
      return rendered('secret.get', summary(row));
    });
  }

  @Get(':path/versions')
  versions(@Req() request: FastifyRequest): Promise<ReplyOf<'secret.versions'>> {
    return handled('secret.versions', request, async () => {
      const { params } = asked('secret.versions', request);
      allowed('secret.versions', request);
      const rows = await this.#parts.secrets.versions(params.path);
      return rendered('secret.versions', { versions: rows.map(summary) });
    });
  }

  @Post(':path/reveal')
  @HttpCode(200)
  reveal(@Req() request: FastifyRequest): Promise<ReplyOf<'secret.reveal'>> {
    return handled('secret.reveal', request, async () => {
      const { params, body } = asked('secret.reveal', request);
      const { subject } = allowed('secret.reveal', request);
      const row = await this.#parts.secrets.reveal(subject, params.path, body.version);
      return rendered('secret.reveal', { ...summary(row), values: row.values });
    });
  }

  @Delete(':path')
  remove(@Req() request: FastifyRequest): Promise<ReplyOf<'secret.remove'>> {
    return handled('secret.remove', request, async () => {
      const { params } = asked('secret.remove', request);
      const { subject } = allowed('secret.remove', request);
      await this.#parts.secrets.remove(subject, params.path);
      return rendered('secret.remove', params);
    });
  }
}

function summary({ path, version, fields, createdAt, createdBy }: VersionRow): SecretSummary {
  return { path, version, fields: [...fields], createdAt: createdAt.toISOString(), createdBy };
}
