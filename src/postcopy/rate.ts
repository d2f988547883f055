/**
 * maxBandwidth of postcopy: how long the next background piece has to wait. What was asked for never waits, and is counted
 * all the same.
 */
import { performance } from 'node:perf_hooks';

/** As in src/send/bandwidth.ts: how much may go out at once after a pause, in milliseconds of the rate. */
const BURST_MS = 100;

export class Rate {
  readonly #now: () => number;
  #limit: number;
  /** When what has gone out will have been due. */
  #due = -Infinity;

  /** @param limit bytes a second; 0 for no limit */
  constructor(limit: number, now = (): number => performance.now()) {
    this.#limit = limit;
    this.#now = now;
  }

  get limit(): number {
    return this.#limit;
  }

  set limit(bytesPerSecond: number) {
    this.#limit = bytesPerSecond;
    this.#due = -Infinity;
  }

  /** `bytes` have gone out. */
  add(bytes: number): void {
    if (this.#limit === 0) return;
    this.#due = Math.max(this.#due, this.#now() - BURST_MS) + (1000 * bytes) / this.#limit;
  }

  /** Milliseconds until more may go out. */
  get waitMs(): number {
    return this.#limit === 0 ? 0 : Math.max(0, this.#due - this.#now());
  }
}
