/**
 * The book of the sends without a copy: which of them the kernel still reads from. It numbers the calls of a socket from 0
 * on, modulo 2^32, and says of ranges of them that they are done; here the numbers go on beyond that.
 *
 *     calls   0 ... 3 | 4   5   6   7   8 | 9 ...
 *              done   |     d   d         |            d: done before an earlier one
 *                  #low                 #made
 *
 * Ranges come in any order, several in one, and for TCP mostly ascending. One that is done already is let pass: it changes
 * nothing. One that was never made means that the numbers do not fit, and then no memory could be called free: an error.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import type { Completion } from '../native/sockets.js';

/** From `from` to before `to`. */
interface Range {
  from: number;
  to: number;
}

export class ZeroCopyCalls {
  #made = 0;
  /** All before it are done. */
  #low = 0;
  /** Done beyond #low: ascending, apart from each other. */
  #done: Range[] = [];
  /** From #low on: packets that end in this call, and have not been told of as done. */
  #packets: number[] = [];

  /** @param first the number of the first call, for tests of the border at 2^32 */
  constructor(first = 0) {
    this.#made = this.#low = first;
  }

  /** Calls made so far: the number of the next. */
  get made(): number {
    return this.#made;
  }

  /** How many, at the most, are not done: those from the first that is not on. */
  get outstanding(): number {
    return this.#made - this.#low;
  }

  /** A call that took something. @param packets how many have their last page in it */
  make(packets: number): void {
    this.#made++;
    this.#packets.push(packets);
  }

  /** Are all calls before number `made` done? */
  areDone(made: number): boolean {
    return this.#low >= made;
  }

  /**
   * @returns packets that had their last page in one of these calls, each told once
   * @throws MultifdError ERR_MULTIFD_WORKER of calls that were never made
   */
  done({ from, to }: Pick<Completion, 'from' | 'to'>): number {
    // The number of 2^32 that is nearest to those that are due.
    const first = this.#low + ((from - this.#low) | 0);
    const end = first + ((to - from) >>> 0) + 1;
    if (end > this.#made) {
      const made = `none from ${this.#made % 2 ** 32} on`;
      const message = receivedExpected('zeroCopySend: sends that are done', `${from} to ${to}`, made);
      throw new MultifdError('ERR_MULTIFD_WORKER', message);
    }
    const range = { from: Math.max(first, this.#low), to: end };
    if (range.from >= range.to) return 0;
    let packets = 0;
    for (let i = range.from - this.#low; i < range.to - this.#low; i++) {
      packets += this.#packets[i];
      this.#packets[i] = 0;
    }
    this.#insert(range);
    return packets;
  }

  #insert(range: Range): void {
    const apart = this.#done.filter(({ from, to }) => to < range.from || from > range.to);
    const touching = this.#done.filter((other) => !apart.includes(other));
    const joined = {
      from: Math.min(range.from, ...touching.map(({ from }) => from)),
      to: Math.max(range.to, ...touching.map(({ to }) => to)),
    };
    if (joined.from > this.#low) {
      this.#done = [...apart, joined].sort((a, b) => a.from - b.from);
      return;
    }
    this.#done = apart;
    this.#packets.splice(0, joined.to - this.#low);
    this.#low = joined.to;
  }
}
