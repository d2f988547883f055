/**
 * NDJSON on stdout: one `start`, any number of `progress`, and as the last line one `result`, whatever happened. A
 * run that fails before the channels are up has no `start`.
 */
import { describeFailure } from './cli-error.js';
import type { ProgressLine } from './progress-line.js';
import type { DemoProgress, DemoResult, DemoStart, Reporter } from './report.js';

export class JsonReporter implements Reporter {
  readonly #out: NodeJS.WritableStream;
  readonly #line: ProgressLine;
  readonly #wantsProgress: boolean;

  constructor(out: NodeJS.WritableStream, line: ProgressLine, wantsProgress: boolean) {
    this.#out = out;
    this.#line = line;
    this.#wantsProgress = wantsProgress;
  }

  note(text: string): void {
    this.#line.show(text);
  }

  start(start: DemoStart): void {
    this.#write({ type: 'start', ...start });
  }

  progress(progress: DemoProgress): void {
    if (this.#wantsProgress) this.#write({ type: 'progress', ...progress });
    this.#line.progress(progress);
  }

  result(result: DemoResult, error?: Error): void {
    this.#line.clear();
    if (error === undefined) this.#write({ type: 'result', ok: true, ...result });
    else this.#write({ type: 'result', ok: false, error: describeFailure(error), ...result });
  }

  failed(error: unknown): void {
    this.#line.clear();
    this.#write({ type: 'result', ok: false, error: describeFailure(error) });
  }

  #write(record: object): void {
    this.#out.write(`${JSON.stringify(record)}\n`);
  }
}
