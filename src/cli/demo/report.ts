/** Tells what the demo does, to people and to machines; the records that it tells are in report-records.ts. */
import { paintFor } from '../terminal/colour.js';
import { columnsOf } from '../terminal/columns.js';
import type { Output } from '../terminal/output.js';
import { progressText } from '../terminal/progress-line.js';
import { formatResult } from './report-table.js';
import type { DemoProgress, DemoResult, DemoStart } from './report-records.js';

export interface Reporter {
  /** What is under way before and after the clock. */
  note(text: string): void;
  start(start: DemoStart): void;
  progress(progress: DemoProgress): void;
  /** The end; `error` if the blocks are not equal. */
  result(result: DemoResult, error?: Error): void;
  /** The end of a run that has no result. */
  failed(error: unknown): void;
}

/** A run that fails before the channels are up has no `start`. */
export function reportTo(output: Output): Reporter {
  return {
    note: (text) => output.note(text),
    start: (start) => output.said('start', start),
    progress: (progress) => output.progress(progress, (columns) => progressText(progress, columns)),
    result: (result, error) => {
      const paint = paintFor(process.stdout, process.env);
      output.result(result, () => formatResult(result, paint, columnsOf(process.stdout)), error);
    },
    failed: (error) => output.failed(error),
  };
}
