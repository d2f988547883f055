/**
 * Turns of the event loop, on the calling thread, which is the embedder's. Queueing that never has to wait, since the
 * channels are fast, would keep it from turning; so whoever works on asks isDue() between two steps, and take()s a turn.
 *
 * A wait in which the thread really slept counts as a turn too: taken().
 */
import { performance } from 'node:perf_hooks';
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { STOP_RUN } from '../shared/control.js';
import type { SessionAccess } from './session-access.js';

const YIELD_MS = 2;
/** Queued without a wait between two looks at the clock. */
const QUICK_PAGES = 64;

export class Turns {
  readonly #session: Pick<SessionAccess, 'control' | 'check'>;
  #last = performance.now();
  #quickPages = 0;

  constructor(session: Pick<SessionAccess, 'control' | 'check'>) {
    this.#session = session;
  }

  isDue(): boolean {
    return performance.now() - this.#last > YIELD_MS;
  }

  /** The same after `pages` more, for calls that may be of one page each: looks at the clock now and then only. */
  isDueAfter(pages: number): boolean {
    this.#quickPages += pages;
    if (this.#quickPages < QUICK_PAGES) return false;
    this.#quickPages = 0;
    return this.isDue();
  }

  /** @throws MultifdError the session's error, if it has stopped meanwhile */
  async take(): Promise<void> {
    await yieldToLoop();
    this.taken();
    if (this.#session.control.stopped !== STOP_RUN) await this.#session.check();
  }

  /** The event loop has just turned. */
  taken(): void {
    this.#last = performance.now();
  }
}
