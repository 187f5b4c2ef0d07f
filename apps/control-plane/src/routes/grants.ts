// Owns the routes of grants and of their revocation.
import { Controller, Get, HttpCode, Inject, Post, Req } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { waitForReceiptMsDefault } from '@custody/core/limits';
import type { ReplyOf } from '@custody/wire/http';
import { allowed, asked, handled, rendered } from '../http.ts';
import { PARTS, type Parts } from '../parts.ts';

@Controller('v1')
export class GrantRoutes {
  readonly #parts: Parts;

  constructor(@Inject(PARTS) parts: Parts) {
    this.#parts = parts;
  }

  @Get('grants')
  list(@Req() request: FastifyRequest): Promise<ReplyOf<'grant.list'>> {
    return handled('grant.list', request, async () => {
      const { query } = asked('grant.list', request);
      allowed('grant.list', request);
      const grants = await this.#parts.grants.list(query);
      return rendered('grant.list', { grants });
    });
  }

  @Get('grants/:grantId')
  get(@Req() request: FastifyRequest): Promise<ReplyOf<'grant.get'>> {
    return handled('grant.get', request, async () => {
      const { params } = asked('grant.get', request);
      allowed('grant.get', request);
      const grant = await this.#parts.grants.get(params.grantId);
      return rendered('grant.get', grant);
    });
  }

  @Post('revocations')
  @HttpCode(200)
  revoke(@Req() request: FastifyRequest): Promise<ReplyOf<'revocation.create'>> {
    return handled('revocation.create', request, async () => {
      const { body } = asked('revocation.create', request);
      const { subject } = allowed('revocation.create', request);
      const { revocations } = this.#parts;
      const made = body.dryRun
        ? await revocations.preview(body.target)
        : await revocations.revoke(subject, body.target, body.reason);
      return rendered('revocation.create', made);
    });
  }

  @Post('revocations/lift')
  @HttpCode(200)
  lift(@Req() request: FastifyRequest): Promise<ReplyOf<'revocation.lift'>> {
    return handled('revocation.lift', request, async () => {
      const { body } = asked('revocation.lift', request);
      const { subject } = allowed('revocation.lift', request);
      const lifted = await this.#parts.revocations.lift(subject, body.what, body.reason);
      return rendered('revocation.lift', { lifted });
    });
  }

  @Get('revocations')
  revocations(@Req() request: FastifyRequest): Promise<ReplyOf<'revocation.list'>> {
    return handled('revocation.list', request, async () => {
      const { query } = asked('revocation.list', request);
      allowed('revocation.list', request);
      const revocations = await this.#parts.revocations.list(query.standing ?? false);
      return rendered('revocation.list', { revocations });
    });
  }

  @Get('revocations/:epoch')
  revocation(@Req() request: FastifyRequest): Promise<ReplyOf<'revocation.get'>> {
    return handled('revocation.get', request, async () => {
      const { params, query } = asked('revocation.get', request);
      allowed('revocation.get', request);
      const waitMs = Math.min(query.waitMs ?? 0, waitForReceiptMsDefault);
      const revocation = await this.#parts.revocations.get(params.epoch, waitMs);
      return rendered('revocation.get', revocation);
    });
  }
}
