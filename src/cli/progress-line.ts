/**
 * One line on a terminal's stderr that is written over and over and cleared at the end. On anything but a terminal
 * it writes nothing.
 */
import { formatRate, formatRatio, formatShare, formatSize, formatTimeLeft } from './format.js';

/** Back to the first column, and everything behind it away. */
const CLEAR = '\r\x1b[K';

export class ProgressLine {
  readonly #stream: NodeJS.WriteStream;
  readonly #enabled: boolean;
  #shown = false;

  constructor(stream: NodeJS.WriteStream, wanted: boolean, env: NodeJS.ProcessEnv) {
    this.#stream = stream;
    this.#enabled = wanted && stream.isTTY === true && env.TERM !== 'dumb';
  }

  /** @param text made only if somebody sees it */
  show(text: string | (() => string)): void {
    if (!this.#enabled) return;
    const line = typeof text === 'string' ? text : text();
    // A line that wraps could not be cleared.
    this.#stream.write(CLEAR + line.slice(0, Math.max(0, (this.#stream.columns || 80) - 1)));
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

/** Bytes, rate, zero share, ratio, time left. */
export function progressText(progress: Progress): string {
  const { bytes, totalBytes, seconds, normalPages, zeroPages } = progress;
  const parts = [
    totalBytes === undefined ? formatSize(bytes) : `${formatSize(bytes)} of ${formatSize(totalBytes)}`,
    formatRate(progress.bytesPerSecond),
    `zero ${formatShare(zeroPages, normalPages + zeroPages)}`,
    `ratio ${formatRatio(bytes, progress.wireBytes)}`,
  ];
  if (totalBytes !== undefined) {
    const secondsLeft = bytes === 0 ? Infinity : ((totalBytes - bytes) * seconds) / bytes;
    parts.push(`${formatTimeLeft(secondsLeft)} left`);
  }
  return parts.join('  ');
}
