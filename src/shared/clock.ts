/**
 * How long a channel's thread has waited and worked. What runs at the moment is in shared memory too, as the time when it
 * began, so that a look from another thread sees it grow.
 */
import { performance } from 'node:perf_hooks';
import { STAT_BUSY_MS, STAT_BUSY_SINCE, STAT_IDLE_MS, STAT_IDLE_SINCE } from './layout.js';

/** When this thread's own clock began. */
const ORIGIN_MS = performance.timeOrigin;

/** Milliseconds on a clock that all threads of the process share. */
function sharedNow(): number {
  return ORIGIN_MS + performance.now();
}

export class ChannelClock {
  readonly #stats: Float64Array;

  constructor(stats: Float64Array) {
    this.#stats = stats;
  }

  idle(): void {
    this.#switch(STAT_BUSY_SINCE, STAT_BUSY_MS, STAT_IDLE_SINCE);
  }

  busy(): void {
    this.#switch(STAT_IDLE_SINCE, STAT_IDLE_MS, STAT_BUSY_SINCE);
  }

  /** The channel has ended. */
  stop(): void {
    this.busy();
    this.idle();
    this.#stats[STAT_IDLE_SINCE] = 0;
  }

  #switch(from: number, sum: number, to: number): void {
    // Nothing changes: asked often, and the time is not cheap.
    if (this.#stats[to] > 0) return;
    const now = sharedNow();
    const since = this.#stats[from];
    // Before the sum: a reader in between misses a moment rather than count it twice.
    this.#stats[from] = 0;
    if (since > 0) this.#stats[sum] += now - since;
    this.#stats[to] = now;
  }
}

/** What a channel's counters say now. */
export function readClock(stats: Float64Array): { idleMs: number; busyMs: number } {
  const now = sharedNow();
  const running = (since: number): number => (since > 0 ? Math.max(0, now - since) : 0);
  return {
    idleMs: stats[STAT_IDLE_MS] + running(stats[STAT_IDLE_SINCE]),
    busyMs: stats[STAT_BUSY_MS] + running(stats[STAT_BUSY_SINCE]),
  };
}
