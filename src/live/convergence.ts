/**
 * When a source may switch over, and what it does while it may not: numbers in, a judgement out; nothing here waits.
 *
 * QEMU's rule: what is left to send, at the rate of the last round, fits into the downtime that is allowed.
 *
 *     remaining <= bytesPerMs * downtimeLimitMs     fits: the guest may be stopped
 *     else                                          another round, as far as `maxRounds`
 *
 * The rate is that of pages in place, a round trip included, since a round is over when the destination has said that it has all
 * of it; so what a round costs however few its pages are is in it. The first pass is followed by two rounds at least, unless nothing
 * is left: its pages lie side by side and pass several times as fast as those that a guest writes to, and the code that sends and
 * takes those is new in the second round, and slow. So the third one's rate is the first that tells what the last will take.
 *
 * That code goes on to be compiled for some rounds more, by threads that take the processor from those that move pages. Where a
 * round is so short that this is much of it, the switch-over waits for that too: the last round, and the downtime, are short then.
 *
 * The rate is that of page bytes. Of the first round only those pages count that had data: most of a guest is zero, and zero
 * pages pass much faster than what the guest writes to.
 *
 * Without dirty tracking nobody knows what is left. Then a round is what the downtime would be: it reads all pages, and sends
 * those that were dirtied while the round before it ran, which has taken as long or longer.
 *
 * Auto-converge, with QEMU's numbers: where the guest dirties in a round more than half of what that round has sent, twice in
 * a row, it is to be slowed down: by 20 percent at first, by 10 more each time, up to 99.
 */

/** QEMU: throttle-trigger-threshold, in percent. */
const TRIGGER_PERCENT = 50;
const TIMES_IN_A_ROW = 2;
/** QEMU: cpu-throttle-initial, cpu-throttle-increment, max-cpu-throttle. */
const INITIAL_PERCENT = 20;
const INCREMENT_PERCENT = 10;
const MAX_PERCENT = 99;

/** The first pass, whose rate tells nothing of pages that lie apart; one of such pages; and one whose rate is that of the last. */
const FEWEST_ROUNDS = 3;
/** By measurement: on two cores downtime fell from 7.4 to 4.8 ms with 8 rounds, and no further with 16. */
const FEWEST_SHORT_ROUNDS = 8;
const SHORT_ROUND_MS = 20;

/** What a round has sent. */
export interface SentRound {
  /** Page bytes; zero pages included, and without them. */
  pageBytes: number;
  normalBytes: number;
  ms: number;
}

export type Judgement = 'fits' | 'another-round' | 'exhausted';

export class Convergence {
  readonly #maxRounds: number;
  #rounds = 0;
  #bytesPerMs = 0;
  #sentBytes = 0;
  #ms = 0;
  #timesHigh = 0;
  /** By how much the guest is slowed down. */
  #percent = 0;

  constructor(maxRounds: number) {
    this.#maxRounds = maxRounds;
  }

  /** Rounds that were sent. */
  get rounds(): number {
    return this.#rounds;
  }

  get bytesPerMs(): number {
    return this.#bytesPerMs;
  }

  sent({ pageBytes, normalBytes, ms }: SentRound): void {
    this.#rounds++;
    this.#sentBytes = pageBytes;
    this.#ms = ms;
    const counted = this.#rounds === 1 && normalBytes > 0 ? normalBytes : pageBytes;
    // A round without a page tells nothing.
    if (counted > 0) this.#bytesPerMs = counted / Math.max(ms, 0.001);
  }

  /** Milliseconds for so many bytes; infinite before anything has been sent. */
  expectedDowntimeMs(remaining: number): number {
    return remaining === 0 ? 0 : remaining / this.#bytesPerMs;
  }

  /** @param remaining bytes of the pages that are dirty now */
  judge(remaining: number, downtimeLimitMs: number): Judgement {
    const fewest = this.#ms < SHORT_ROUND_MS ? FEWEST_SHORT_ROUNDS : FEWEST_ROUNDS;
    if (this.#rounds < fewest && remaining > 0 && this.#rounds < this.#maxRounds) return 'another-round';
    return this.judgeBy(this.expectedDowntimeMs(remaining), downtimeLimitMs);
  }

  /** @param expectedMs what the downtime would be now */
  judgeBy(expectedMs: number, downtimeLimitMs: number): Judgement {
    if (expectedMs <= downtimeLimitMs) return 'fits';
    return this.#rounds < this.#maxRounds ? 'another-round' : 'exhausted';
  }

  /**
   * After a round that does not fit.
   *
   * @param dirtied bytes of the pages that were dirtied while `sent` bytes were sent
   * @returns by how many percent the guest is to be slowed down from now on; undefined: as it is
   */
  throttle(dirtied: number, sent = this.#sentBytes): number | undefined {
    const isHigh = dirtied * 100 > sent * TRIGGER_PERCENT;
    this.#timesHigh = isHigh ? this.#timesHigh + 1 : 0;
    if (this.#timesHigh < TIMES_IN_A_ROW || this.#percent === MAX_PERCENT) return undefined;
    this.#timesHigh = 0;
    const raised = this.#percent === 0 ? INITIAL_PERCENT : this.#percent + INCREMENT_PERCENT;
    this.#percent = Math.min(raised, MAX_PERCENT);
    return this.#percent;
  }
}
