// Owns the routes about the control plane itself: health, readiness, status, and its own description.
import { Controller, Get, Inject, Req, Res } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { ReplyOf } from '@custody/wire/http';
import { openApi } from '@custody/wire/openapi';
import { allowed, handled, rendered } from '../http.ts';
import { PARTS, type Parts } from '../parts.ts';
import { controlPlaneVersion } from '../version.ts';

@Controller()
export class StatusRoutes {
  readonly #parts: Parts;
  readonly #openApi = openApi(controlPlaneVersion);

  constructor(@Inject(PARTS) parts: Parts) {
    this.#parts = parts;
  }

  /** The process runs. */
  @Get('healthz')
  healthz(): { ok: true } {
    return { ok: true };
  }

  /** It can serve: database and bus answer. */
  @Get('readyz')
  async readyz(@Res() reply: FastifyReply): Promise<void> {
    const readiness = await this.#parts.health.readiness();
    await reply.status(readiness.ready ? 200 : 503).send(readiness);
  }

  @Get('openapi.json')
  openapi(): Record<string, unknown> {
    return this.#openApi;
  }

  @Get('v1/status')
  status(@Req() request: FastifyRequest): Promise<ReplyOf<'status'>> {
    return handled('status', request, async () => {
      allowed('status', request);
      const status = await this.#parts.health.status();
      return rendered('status', status);
    });
  }
}
