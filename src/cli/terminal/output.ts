/**
 * What a command tells, to people or to machines.
 *
 *                 people                                   --json
 *     note()      the progress line, on a terminal         the same
 *     said()      a line on stderr, if there is one        one record on stdout
 *     progress()  the progress line, on a terminal         one record on stdout
 *     result()    a short text on stdout                   the last record on stdout, ok true or false
 *     failed()    nothing: the error is one line on stderr the last record on stdout, ok false
 */
import { jsonLine, printable, printableLines } from '../../printable.js';
import { describeFailure } from '../cli-error.js';
import { columnsOf, wrap } from './columns.js';
import { ProgressLine, type ProgressText } from './progress-line.js';

export interface OutputFlags {
  json?: true;
  progress: boolean;
  verbose?: true;
}

export interface Output {
  /** What is under way. */
  note(text: string): void;
  /** Something that happened once, such as `listening`. */
  said(type: string, record: object, text?: string): void;
  progress(record: object, text: ProgressText): void;
  /** The end, with what is known; `error` if it is a bad one all the same. */
  result(record: object, text: () => string, error?: Error): void;
  /** The end of a run that has no result. */
  failed(error: unknown): void;
}

export function outputFor(flags: OutputFlags): Output {
  // With both on one terminal the records are the progress.
  const wantsLine = flags.progress && !(flags.json === true && process.stdout.isTTY);
  const line = new ProgressLine(process.stderr, wantsLine, process.env);
  return flags.json === true ? new JsonOutput(line, flags.progress) : new TextOutput(line);
}

class JsonOutput implements Output {
  readonly #line: ProgressLine;
  readonly #wantsProgress: boolean;

  constructor(line: ProgressLine, wantsProgress: boolean) {
    this.#line = line;
    this.#wantsProgress = wantsProgress;
  }

  note(text: string): void {
    this.#line.show(text);
  }

  said(type: string, record: object): void {
    this.#write({ type, ...record });
  }

  progress(record: object, text: ProgressText): void {
    if (this.#wantsProgress) this.#write({ type: 'progress', ...record });
    this.#line.show(text);
  }

  result(record: object, _text: () => string, error?: Error): void {
    this.#line.clear();
    if (error === undefined) this.#write({ type: 'result', ok: true, ...record });
    else this.#write({ type: 'result', ok: false, error: describeFailure(error), ...record });
  }

  failed(error: unknown): void {
    this.#line.clear();
    this.#write({ type: 'result', ok: false, error: describeFailure(error) });
  }

  #write(record: object): void {
    for (const piece of jsonLine(record)) process.stdout.write(piece);
  }
}

class TextOutput implements Output {
  readonly #line: ProgressLine;

  constructor(line: ProgressLine) {
    this.#line = line;
  }

  note(text: string): void {
    this.#line.show(text);
  }

  said(_type: string, _record: object, text?: string): void {
    if (text === undefined) return;
    this.#line.clear();
    process.stderr.write(`${printableLines(text)}\n`);
  }

  progress(_record: object, text: ProgressText): void {
    this.#line.show(text);
  }

  result(_record: object, text: () => string): void {
    this.#line.clear();
    // In one write, so that `| head` gets its lines before the pipe is gone.
    process.stdout.write(text());
  }

  failed(): void {
    this.#line.clear();
  }
}

/** Rows of a name and a value; on a terminal a value that does not fit goes on below itself. */
export function table(
  rows: readonly (readonly [string, string])[],
  columns = columnsOf(process.stdout),
): string {
  const width = Math.max(...rows.map(([name]) => name.length)) + 2;
  const lines = rows.flatMap(([name, value]) =>
    wrap(printable(value), columns - width).map((line, i) => (i === 0 ? name : '').padEnd(width) + line),
  );
  return lines.map((line) => `${line}\n`).join('');
}
