/**
 * One line on a terminal's stderr that is written over and over and cleared at the end. On anything but a terminal
 * it writes nothing.
 */
import { formatRate, formatRatio, formatShare, formatSize, formatTimeLeft } from './format.js';
import type { DemoProgress } from './report.js';

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

  show(text: string): void {
    if (!this.#enabled) return;
    // A line that wraps could not be cleared.
    this.#stream.write(CLEAR + text.slice(0, Math.max(0, (this.#stream.columns || 80) - 1)));
    this.#shown = true;
  }

  progress(progress: DemoProgress): void {
    if (this.#enabled) this.show(progressText(progress));
  }

  clear(): void {
    if (this.#shown) this.#stream.write(CLEAR);
    this.#shown = false;
  }
}

/** Bytes, rate, zero share, ratio, time left. */
export function progressText(progress: DemoProgress): string {
  const { bytes, totalBytes, seconds, normalPages, zeroPages } = progress;
  const secondsLeft = bytes === 0 ? Infinity : ((totalBytes - bytes) * seconds) / bytes;
  return [
    `${formatSize(bytes)} of ${formatSize(totalBytes)}`,
    formatRate(progress.bytesPerSecond),
    `zero ${formatShare(zeroPages, normalPages + zeroPages)}`,
    `ratio ${formatRatio(bytes, progress.wireBytes)}`,
    `${formatTimeLeft(secondsLeft)} left`,
  ].join('  ');
}
