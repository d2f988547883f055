/**
 * One line on a terminal's stderr that is written over and over and cleared at the end. On anything but a terminal
 * it writes nothing.
 */
import { printable } from '../../printable.js';
import { columnsOf } from './columns.js';
import { formatRate, formatRatio, formatShare, formatSize, formatTimeLeft } from './format.js';

/** Back to the first column, and everything behind it away. */
const CLEAR = '\r\x1b[K';

/** Makes the line; what does not fit in so many columns is cut off. */
export type ProgressText = (columns: number) => string;

export class ProgressLine {
  readonly #stream: NodeJS.WriteStream;
  readonly #enabled: boolean;
  #shown = false;

  constructor(stream: NodeJS.WriteStream, wanted: boolean, env: NodeJS.ProcessEnv) {
    this.#stream = stream;
    this.#enabled = wanted && stream.isTTY === true && env.TERM !== 'dumb';
  }

  /** @param text made only if somebody sees it */
  show(text: string | ProgressText): void {
    if (!this.#enabled) return;
    // A line that wraps could not be cleared, and one that fills the last column wraps on some terminals.
    const columns = columnsOf(this.#stream) - 1;
    const line = typeof text === 'string' ? text : text(columns);
    // A file's name in it is not to move the cursor either.
    this.#stream.write(CLEAR + printable(line).slice(0, columns));
    this.#shown = true;
  }

  clear(): void {
    if (this.#shown) this.#stream.write(CLEAR);
    this.#shown = false;
  }
}

export interface Progress {
  /** Since the first page. */
  seconds: number;
  /** Guest bytes that travelled, zero pages included. */
  bytes: number;
  /** What will travel, where that is known. */
  totalBytes?: number;
  wireBytes: number;
  normalPages: number;
  zeroPages: number;
  bytesPerSecond: number;
}

/** Bytes, rate, zero share, ratio, time left: as many of them as fit, whole ones, those that say the most first. */
export function progressText(progress: Progress, columns = Infinity): string {
  const { bytes, totalBytes, seconds, normalPages, zeroPages } = progress;
  const size =
    totalBytes === undefined ? formatSize(bytes) : `${formatSize(bytes)} of ${formatSize(totalBytes)}`;
  const rate = formatRate(progress.bytesPerSecond);
  const zero = `zero ${formatShare(zeroPages, normalPages + zeroPages)}`;
  const ratio = `ratio ${formatRatio(bytes, progress.wireBytes)}`;
  const left: string[] = [];
  if (totalBytes !== undefined) {
    const secondsLeft = bytes === 0 ? Infinity : ((totalBytes - bytes) * seconds) / bytes;
    left.push(`${formatTimeLeft(secondsLeft)} left`);
  }
  const lines = [
    [size, rate, zero, ratio, ...left],
    [size, rate, zero, ...left],
    [size, rate, ...left],
    [size, ...left],
    [size],
  ].map((parts) => parts.join('  '));
  return lines.find((line) => line.length <= columns) ?? size;
}
