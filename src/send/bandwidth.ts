/**
 * maxBandwidth, on the calling thread: a bucket of bytes that fills with the rate and is emptied by what the channels have
 * sent. It holds no pages and delays none that a channel has: throttle() keeps the client that calls it from handing
 * over its next slot, until the bucket is no longer in debt.
 *
 *     filled by     rate x time, up to BURST_MS of it
 *     emptied by    the channels' own counters of bytes on the wire, headers included, so what is in a slot is not seen yet
 */
import { performance } from 'node:perf_hooks';
import { STOP_RUN } from '../shared/control.js';
import type { SessionAccess } from './session-access.js';

/** How much may go out at once after a pause, in milliseconds of the rate. */
export const BURST_MS = 100;
const MAX_SLEEP_MS = 60_000;

export class Bandwidth {
  readonly #session: Pick<SessionAccess, 'control' | 'check' | 'sleep' | 'wireBytes'>;
  readonly #now: () => number;
  #limit: number;
  #tokens = 0;
  #time: number;
  #bytes = 0;

  /** @param now a clock in milliseconds */
  constructor(
    limit: number,
    session: Pick<SessionAccess, 'control' | 'check' | 'sleep' | 'wireBytes'>,
    now = (): number => performance.now(),
  ) {
    this.#limit = limit;
    this.#session = session;
    this.#now = now;
    this.#time = now();
  }

  /** Bytes a second; 0 for no limit. */
  get limit(): number {
    return this.#limit;
  }

  /** An empty bucket from now on. Who sleeps by the old limit has to be woken by whoever sets this. */
  set limit(bytesPerSecond: number) {
    this.#limit = bytesPerSecond;
    this.#tokens = 0;
    this.#time = this.#now();
    this.#bytes = this.#session.wireBytes();
  }

  /**
   * Until more may go out.
   *
   * @throws MultifdError the session's error
   */
  async throttle(): Promise<void> {
    const { control } = this.#session;
    while (this.#limit > 0 && control.stopped === STOP_RUN) {
      const now = this.#now();
      const bytes = this.#session.wireBytes();
      const rate = this.#limit / 1000;
      const filled = this.#tokens + (now - this.#time) * rate;
      this.#tokens = Math.min(filled, BURST_MS * rate) - (bytes - this.#bytes);
      this.#time = now;
      this.#bytes = bytes;
      if (this.#tokens >= 0) return;
      await this.#session.sleep(Math.min(Math.ceil(-this.#tokens / rate), MAX_SLEEP_MS));
    }
    if (control.stopped !== STOP_RUN) await this.#session.check();
  }
}
