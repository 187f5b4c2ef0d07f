// Owns the route of events: a stream in place of one answer.
import { Controller, Get, Inject, Req, Res } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { CustodyError } from '@custody/core/errors';
import { eventStallMs } from '@custody/core/limits';
import { allowed, asked } from '../http.ts';
import { PARTS, type Parts } from '../parts.ts';

@Controller('v1/events')
export class EventRoutes {
  readonly #parts: Parts;

  constructor(@Inject(PARTS) parts: Parts) {
    this.#parts = parts;
  }

  @Get()
  async follow(@Req() request: FastifyRequest, @Res() reply: FastifyReply): Promise<void> {
    const { query } = asked('events.follow', request);
    allowed('events.follow', request);
    const since = resumed(request) ?? query.since;
    const { events } = this.#parts;
    using _place = events.admit();
    const gone = new AbortController();
    reply.raw.on('close', () => gone.abort());
    reply.hijack();
    reply.raw.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-store',
      'x-accel-buffering': 'no',
    });
    reply.raw.flushHeaders();
    try {
      await events.write({ since, follow: query.follow ?? true, last: query.last }, reply.raw, gone.signal);
    } finally {
      reply.raw.end();
      // What a reader does not take in its time is dropped with the connection.
      if (!reply.raw.writableFinished) reply.raw.setTimeout(eventStallMs, () => reply.raw.destroy());
    }
  }
}

/** A reader that comes back says by this header what it saw last: the last word, over the address. */
function resumed(request: FastifyRequest): number | undefined {
  const header = request.headers['last-event-id'];
  if (header === undefined || header === '') return undefined;
  if (typeof header === 'string' && /^\d{1,15}$/.test(header)) return Number(header);
  throw new CustodyError('bad_request', 'events.follow: Last-Event-ID is not the id of an event');
}
