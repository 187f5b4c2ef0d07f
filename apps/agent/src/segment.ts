// Owns one segment file of the ledger: its lines, and where each stands, so that none is ever searched for.
import { open, readdir, readFile, rm, truncate, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

const newline = 0x0a;
const namePattern = /^(\d{6})-(\d{12})\.ledger$/;

/** Appends come one after the other; a read sees what was durable when it began. */
export class Segment {
  readonly path: string;
  readonly epoch: number;
  readonly firstSeq: number;
  /** Where each entry begins. One number an entry: a full spool costs about 1 % of its size in memory. */
  readonly #starts: number[] = [];
  #bytes = 0;
  #file: FileHandle | undefined;

  private constructor(dir: string, epoch: number, firstSeq: number) {
    this.epoch = epoch;
    this.firstSeq = firstSeq;
    this.path = join(dir, `${String(epoch).padStart(6, '0')}-${String(firstSeq).padStart(12, '0')}.ledger`);
  }

  /** A new file, and its name durable in the folder. */
  static async create(dir: string, epoch: number, firstSeq: number): Promise<Segment> {
    const segment = new Segment(dir, epoch, firstSeq);
    segment.#file = await open(segment.path, 'ax+', 0o600);
    await using folder = await open(dir);
    await folder.sync();
    return segment;
  }

  /** The segments of a folder, oldest first, without their lines. */
  static async list(dir: string): Promise<Segment[]> {
    return (await readdir(dir)).toSorted().flatMap((name) => {
      const [, epoch, firstSeq] = namePattern.exec(name) ?? [];
      return epoch === undefined ? [] : [new Segment(dir, Number(epoch), Number(firstSeq))];
    });
  }

  /** Reads the file and gives its lines. `torn`: whether bytes follow the last line feed; they are not counted. */
  async load(): Promise<{ lines: Uint8Array[]; torn: boolean }> {
    const bytes = await readFile(this.path);
    const lines: Uint8Array[] = [];
    for (let end = bytes.indexOf(newline); end >= 0; end = bytes.indexOf(newline, this.#bytes)) {
      this.#starts.push(this.#bytes);
      lines.push(bytes.subarray(this.#bytes, end));
      this.#bytes = end + 1;
    }
    return { lines, torn: this.#bytes < bytes.byteLength };
  }

  /** Cuts what follows the last line feed. */
  async cut(): Promise<void> {
    await truncate(this.path, this.#bytes);
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Lines with their line feeds: one write, one fdatasync. */
  async append(lines: readonly Uint8Array[]): Promise<void> {
    this.#file ??= await open(this.path, 'a+', 0o600);
    await this.#file.appendFile(Buffer.concat(lines));
    await this.#file.datasync();
    for (const line of lines) {
      this.#starts.push(this.#bytes);
      this.#bytes += line.byteLength;
    }
  }

  /** Lines from `seq` on, with their line feeds: at least one, and no more than either bound allows. */
  async read(
    seq: number,
    { entriesMax, bytesMax }: { readonly entriesMax: number; readonly bytesMax: number },
  ): Promise<{ bytes: Uint8Array; entries: number } | undefined> {
    const first = seq - this.firstSeq;
    const start = this.#starts[first];
    if (start === undefined) return undefined;
    const endOf = (index: number): number => this.#starts[index + 1] ?? this.#bytes;
    let entries = 1;
    while (
      entries < entriesMax &&
      first + entries < this.#starts.length &&
      endOf(first + entries) - start <= bytesMax
    ) {
      entries += 1;
    }
    const bytes = Buffer.alloc(endOf(first + entries - 1) - start);
    this.#file ??= await open(this.path, 'a+', 0o600);
    await this.#file.read(bytes, 0, bytes.byteLength, start);
    return { bytes, entries };
  }

  async remove(): Promise<void> {
    await this.close();
    await rm(this.path, { force: true });
  }

  async close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    await file?.close();
  }
}
