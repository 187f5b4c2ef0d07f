// Owns the routes of the central ledger.
import { Controller, Get, Inject, Req } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { waitForReceiptMsDefault } from '@custody/core/limits';
import type { ReplyOf } from '@custody/wire/http';
import { allowed, asked, handled, rendered } from '../http.ts';
import { PARTS, type Parts } from '../parts.ts';

@Controller('v1/ledger')
export class LedgerRoutes {
  readonly #parts: Parts;

  constructor(@Inject(PARTS) parts: Parts) {
    this.#parts = parts;
  }

  @Get('possession')
  possession(@Req() request: FastifyRequest): Promise<ReplyOf<'ledger.possession'>> {
    return handled('ledger.possession', request, async () => {
      const { query } = asked('ledger.possession', request);
      allowed('ledger.possession', request);
      const rows = await this.#parts.ledgers.possession(query.path, instant(query.from), instant(query.to));
      return rendered('ledger.possession', { rows });
    });
  }

  @Get('authors')
  authors(@Req() request: FastifyRequest): Promise<ReplyOf<'ledger.authors'>> {
    return handled('ledger.authors', request, async () => {
      allowed('ledger.authors', request);
      const authors = await this.#parts.ledgers.authors();
      return rendered('ledger.authors', { authors });
    });
  }

  @Get('lines')
  lines(@Req() request: FastifyRequest): Promise<ReplyOf<'ledger.lines'>> {
    return handled('ledger.lines', request, async () => {
      const { query } = asked('ledger.lines', request);
      allowed('ledger.lines', request);
      const { author, epoch, afterSeq, after, last } = query;
      const { ledgers } = this.#parts;
      if (author !== undefined && epoch !== undefined)
        return rendered('ledger.lines', { lines: await ledgers.chain(author, epoch, afterSeq ?? 0) });
      const waitMs = Math.min(query.waitMs ?? 0, waitForReceiptMsDefault);
      const from = last === true ? undefined : (after ?? 0);
      return rendered('ledger.lines', await ledgers.tail({ author, after: from, waitMs }));
    });
  }
}

function instant(text: string | undefined): Date | undefined {
  return text === undefined ? undefined : new Date(text);
}
