// Owns the routes of hosts and of their enrolment.
import { Controller, Get, HttpCode, Inject, Post, Req } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import type { ReplyOf } from '@custody/wire/http';
import { allowed, asked, handled, rendered } from '../http.ts';
import { PARTS, type Parts } from '../parts.ts';

@Controller('v1')
export class HostRoutes {
  readonly #parts: Parts;

  constructor(@Inject(PARTS) parts: Parts) {
    this.#parts = parts;
  }

  /** The one route without a bearer token: the join token in the body is the authority. */
  @Post('enroll')
  @HttpCode(200)
  enroll(@Req() request: FastifyRequest): Promise<ReplyOf<'enroll'>> {
    return handled('enroll', request, async () => {
      const { body } = asked('enroll', request);
      const enrolled = await this.#parts.hosts.enroll(body);
      return rendered('enroll', enrolled);
    });
  }

  @Post('join-tokens')
  @HttpCode(200)
  token(@Req() request: FastifyRequest): Promise<ReplyOf<'host.token'>> {
    return handled('host.token', request, async () => {
      const { body } = asked('host.token', request);
      const { subject } = allowed('host.token', request);
      const token = await this.#parts.hosts.createToken(subject, body);
      return rendered('host.token', token);
    });
  }

  @Post('hosts/:name/ban')
  @HttpCode(200)
  ban(@Req() request: FastifyRequest): Promise<ReplyOf<'host.ban'>> {
    return handled('host.ban', request, async () => {
      const { params, body } = asked('host.ban', request);
      const { subject } = allowed('host.ban', request);
      const revocation = await this.#parts.revocations.ban(subject, params.name, body.reason);
      return rendered('host.ban', revocation);
    });
  }

  @Get('hosts')
  list(@Req() request: FastifyRequest): Promise<ReplyOf<'host.list'>> {
    return handled('host.list', request, async () => {
      allowed('host.list', request);
      const hosts = await this.#parts.hosts.list();
      return rendered('host.list', { hosts });
    });
  }

  @Get('hosts/:name')
  get(@Req() request: FastifyRequest): Promise<ReplyOf<'host.get'>> {
    return handled('host.get', request, async () => {
      const { params } = asked('host.get', request);
      allowed('host.get', request);
      const host = await this.#parts.hosts.get(params.name);
      return rendered('host.get', host);
    });
  }
}
