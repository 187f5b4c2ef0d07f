// Owns the routes of policies.
import { Controller, Get, HttpCode, Inject, Post, Req } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import type { ReplyOf } from '@custody/wire/http';
import { allowed, asked, handled, rendered } from '../http.ts';
import { PARTS, type Parts } from '../parts.ts';

@Controller('v1/policies')
export class PolicyRoutes {
  readonly #parts: Parts;

  constructor(@Inject(PARTS) parts: Parts) {
    this.#parts = parts;
  }

  @Post()
  @HttpCode(200)
  apply(@Req() request: FastifyRequest): Promise<ReplyOf<'policy.apply'>> {
    return handled('policy.apply', request, async () => {
      const { body } = asked('policy.apply', request);
      const { subject } = allowed('policy.apply', request);
      const revision = await this.#parts.policies.apply(subject, body.text);
      return rendered('policy.apply', revision);
    });
  }

  @Post('validate')
  @HttpCode(200)
  validate(@Req() request: FastifyRequest): Promise<ReplyOf<'policy.validate'>> {
    return handled('policy.validate', request, async () => {
      const { body } = asked('policy.validate', request);
      allowed('policy.validate', request);
      const policies = this.#parts.policies.validate(body.text);
      return rendered('policy.validate', { policies });
    });
  }

  @Post('explain')
  @HttpCode(200)
  explain(@Req() request: FastifyRequest): Promise<ReplyOf<'policy.explain'>> {
    return handled('policy.explain', request, async () => {
      const { body } = asked('policy.explain', request);
      allowed('policy.explain', request);
      const explanation = await this.#parts.policies.explainFor(this.#parts.hosts, body);
      return rendered('policy.explain', explanation);
    });
  }

  @Get()
  history(@Req() request: FastifyRequest): Promise<ReplyOf<'policy.history'>> {
    return handled('policy.history', request, async () => {
      allowed('policy.history', request);
      const revisions = await this.#parts.policies.history();
      return rendered('policy.history', { revisions });
    });
  }

  @Get(':revision')
  show(@Req() request: FastifyRequest): Promise<ReplyOf<'policy.show'>> {
    return handled('policy.show', request, async () => {
      const { params } = asked('policy.show', request);
      allowed('policy.show', request);
      const revision = await this.#parts.policies.show(params.revision);
      return rendered('policy.show', revision);
    });
  }
}
