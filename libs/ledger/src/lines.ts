// Owns the cutting of a file or stream of bytes into ledger lines, bounded, with the place of what cannot be cut.
import { createReadStream } from 'node:fs';
import { ledgerLineBytesMax } from './entry.ts';
import { LedgerError, type LinePosition } from './errors.ts';

/**
 * Every complete line, without its line feed, in order; each a view that stays valid. Holds at most one line and one
 * chunk. Throws `line_too_long` at the first oversized line, and, after the last complete one, `torn_line` when
 * bytes without a line feed are left: a crash in mid write. Cut the file at `error.position.offsetBytes`.
 */
export async function* readLines(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  let rest: Uint8Array = new Uint8Array(0);
  let offsetBytes = 0;
  let lineNumber = 1;
  for await (const chunk of chunks) {
    let bytes = rest.byteLength === 0 ? chunk : Buffer.concat([rest, chunk]);
    let end = bytes.indexOf(0x0a, rest.byteLength);
    while (end >= 0) {
      if (end + 1 > ledgerLineBytesMax) throw tooLong({ lineNumber, offsetBytes });
      yield bytes.subarray(0, end);
      bytes = bytes.subarray(end + 1);
      offsetBytes += end + 1;
      lineNumber += 1;
      end = bytes.indexOf(0x0a);
    }
    if (bytes.byteLength >= ledgerLineBytesMax) throw tooLong({ lineNumber, offsetBytes });
    rest = bytes;
  }
  if (rest.byteLength > 0) throw torn({ lineNumber, offsetBytes }, rest.byteLength);
}

/** `readLines` of a file. Throws what the file system throws, too. */
export async function* readLinesOfFile(path: string): AsyncGenerator<Uint8Array> {
  yield* readLines(createReadStream(path));
}

function tooLong(position: LinePosition): LedgerError {
  return new LedgerError(
    'line_too_long',
    `read ledger: line ${position.lineNumber} at byte ${position.offsetBytes} is longer than ${ledgerLineBytesMax} bytes`,
    { position },
  );
}

function torn(position: LinePosition, lengthBytes: number): LedgerError {
  return new LedgerError(
    'torn_line',
    `read ledger: line ${position.lineNumber} at byte ${position.offsetBytes} was torn after ${lengthBytes} bytes; cut the file there`,
    { position },
  );
}
