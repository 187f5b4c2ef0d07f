// Owns a terminal for the tests: what is typed, what it shows, and how the command on it ended.
import { spawn, type ChildProcess } from 'node:child_process';
import { ptyRun } from './builds.ts';

/** For a machine under load; what is waited for is otherwise there at once. */
const patienceMs = 10_000;

export class Terminal implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly ended: Promise<string>;
  #shown = '';
  /** Where the next `shows` begins to look. */
  #seen = 0;
  #closed = false;
  #heard: (() => void)[] = [];

  constructor(command: readonly string[], env: Record<string, string | undefined>) {
    this.#child = spawn(ptyRun, command, { env, stdio: ['pipe', 'pipe', 'pipe'] });
    let told = '';
    const wake = () => {
      for (const heard of this.#heard.splice(0)) heard();
    };
    this.#child.stdout?.on('data', (chunk: Buffer) => {
      this.#shown += chunk.toString('latin1');
      wake();
    });
    this.#child.stdin?.on('error', () => {}); // typed after the command has gone
    this.#child.stderr?.on('data', (chunk: Buffer) => (told += chunk.toString('latin1')));
    this.ended = new Promise((resolve) =>
      this.#child.once('close', () => {
        this.#closed = true;
        wake();
        resolve(told.trim());
      }),
    );
  }

  type(text: string): void {
    this.#child.stdin?.write(`s ${Buffer.from(text, 'latin1').toString('hex')}\n`);
  }

  resize(rows: number, columns: number): void {
    this.#child.stdin?.write(`w ${rows} ${columns}\n`);
  }

  hangUp(): void {
    this.#child.stdin?.write('h\n');
  }

  get shown(): string {
    return this.#shown;
  }

  /** Waits until the terminal shows that, after what was waited for before. */
  async shows(pattern: RegExp): Promise<RegExpExecArray> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      for (const heard of this.#heard.splice(0)) heard();
    }, patienceMs);
    using _ = { [Symbol.dispose]: () => clearTimeout(timer) };
    for (;;) {
      const found = pattern.exec(this.#shown.slice(this.#seen));
      if (found !== null) {
        this.#seen += found.index + found[0].length;
        return found;
      }
      if (this.#closed || late) {
        const rest = JSON.stringify(this.#shown.slice(this.#seen));
        throw new Error(`the terminal ${late ? 'shows no' : 'closed without'} ${String(pattern)} in ${rest}`);
      }
      await new Promise<void>((resolve) => this.#heard.push(resolve));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL'); // the master closes: the kernel hangs up on the session
    await this.ended;
  }
}
