/**
 * Page bitmaps: one bit a page, in 32-bit words.
 *
 * A peer may claim 4 TiB of RAM, a bitmap of 128 MiB, and send next to none of it. So nothing here goes over all the words
 * one by one, and nothing writes where no bit was: the memory of a part that was never written is not there. What goes
 * over a bitmap on the calling thread goes in parts (PART_WORDS), which are compared as a whole first.
 *
 * `PageBitmap` is of the calling thread alone (what was queued, what is deferred). A received-bitmap is shared by
 * the receive channels, which set bits in it at the same time: those go through `Control` (src/shared), the only
 * place that uses Atomics, and `ReceivedBitmap` reads them.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';

/** 16 KiB: 512 MiB of pages of 4 KiB. */
const PART_SHIFT = 12;
const PART_WORDS = 2 ** PART_SHIFT;
/** 1 MiB, which takes less than a millisecond to count. */
const TURN_WORDS = 2 ** 18;
const ZEROES = Buffer.alloc(4 * PART_WORDS);
const ONES = Buffer.alloc(4 * PART_WORDS, 0xff);

export class PageBitmap {
  readonly words: Int32Array;
  readonly pageCount: number;
  /** Of each part: may it have a bit that is set? */
  readonly #touched: Uint8Array;

  constructor(pageCount: number) {
    this.pageCount = pageCount;
    this.words = new Int32Array(Math.ceil(pageCount / 32));
    this.#touched = new Uint8Array(Math.ceil(this.words.length / PART_WORDS));
  }

  has(page: number): boolean {
    return (this.words[page >>> 5] & (1 << (page & 31))) !== 0;
  }

  /** Sets the bit; says whether it was set before. */
  testAndSet(page: number): boolean {
    const word = page >>> 5;
    const mask = 1 << (page & 31);
    const before = this.words[word];
    this.#touched[word >>> PART_SHIFT] = 1;
    this.words[word] = before | mask;
    return (before & mask) !== 0;
  }

  /** Is any of `count` bits from `page` on set? */
  hasAny(page: number, count: number): boolean {
    for (let at = page, end = page + count; at < end;) {
      const bits = Math.min(32 - (at & 31), end - at);
      if ((this.words[at >>> 5] & maskOf(at, bits)) !== 0) return true;
      at += bits;
    }
    return false;
  }

  /** Sets `count` bits from `page` on. */
  setRange(page: number, count: number): void {
    for (let at = page, end = page + count; at < end;) {
      const bits = Math.min(32 - (at & 31), end - at);
      this.#touched[at >>> (5 + PART_SHIFT)] = 1;
      this.words[at >>> 5] |= maskOf(at, bits);
      at += bits;
    }
  }

  /** Sets those of the 32 bits from page 32 * `word` on that are set in `bits`. */
  setWord(word: number, bits: number): void {
    this.#touched[word >>> PART_SHIFT] = 1;
    this.words[word] |= bits;
  }

  delete(page: number): void {
    this.words[page >>> 5] &= ~(1 << (page & 31));
  }

  clear(): void {
    const steps = this.clearing();
    while (steps.next().done !== true);
  }

  /** The same in steps: there is a next one as long as there may be bits left. */
  *clearing(): Generator<void, void, undefined> {
    for (let part = this.#touched.indexOf(1); part >= 0; part = this.#touched.indexOf(1, part)) {
      this.words.fill(0, part * PART_WORDS, (part + 1) * PART_WORDS);
      this.#touched[part] = 0;
      yield;
    }
  }

  /** Pages whose bit is set, ascending, as runs. */
  *runs(): Generator<{ page: number; count: number }> {
    yield* runsOf(this.words, this.pageCount, (part) => this.#touched[part] === 0);
  }

  /** The first page from `from` on whose bit is set; -1 if there is none. For who goes over many short runs: runs() makes an object of each. */
  next(from: number): number {
    let word = from >>> 5;
    if (word >= this.words.length) return -1;
    let bits = this.words[word] & (-1 << (from & 31));
    while (bits === 0) {
      if (++word >= this.words.length) return -1;
      if ((word & (PART_WORDS - 1)) === 0) {
        const part = this.#touched.indexOf(1, word >>> PART_SHIFT);
        if (part < 0) return -1;
        word = part << PART_SHIFT;
      }
      bits = this.words[word];
    }
    const page = 32 * word + lowestBit(bits);
    return page < this.pageCount ? page : -1;
  }

  /** How many bits from that of `page` on are set, `limit` at most. */
  runLength(page: number, limit: number): number {
    const end = Math.min(page + limit, this.pageCount);
    let at = page;
    while (at < end) {
      const clear = ~this.words[at >>> 5] & (-1 << (at & 31));
      if (clear !== 0) return Math.min(end, (at & ~31) + lowestBit(clear)) - page;
      at = (at | 31) + 1;
    }
    return end - page;
  }
}

function lowestBit(bits: number): number {
  return 31 - Math.clz32(bits & -bits);
}

/** Which pages of a block have come in since the receiver was opened. */
export class ReceivedBitmap {
  readonly #words: Int32Array;
  readonly #pageSize: number;
  readonly #pageCount: number;

  constructor(words: Int32Array, pageSize: number, pageCount: number) {
    this.#words = words;
    this.#pageSize = pageSize;
    this.#pageCount = pageCount;
  }

  /** Has the page at byte `offset` come in, as a normal or as a zero page? */
  has(offset: number): boolean {
    const page = Math.floor(offset / this.#pageSize);
    if (!(page >= 0 && page < this.#pageCount)) return false;
    return (this.#words[page >>> 5] & (1 << (page & 31))) !== 0;
  }

  /** Number of pages that have come in. */
  count(): number {
    return countWords(this.#words);
  }

  /** Byte ranges that have come in, ascending. */
  *ranges(): Generator<{ offset: number; length: number }> {
    for (const { page, count } of runsOf(this.#words, this.#pageCount)) {
      yield { offset: page * this.#pageSize, length: count * this.#pageSize };
    }
  }
}

/** `bits` bits of a word, 1 to 32, from that of `page` on; they end within the word. */
export function maskOf(page: number, bits: number): number {
  return bits === 32 ? -1 : ((1 << bits) - 1) << (page & 31);
}

/** Set bits of words `from` to `to`. */
export function countWords(words: Int32Array, from = 0, to = words.length): number {
  let count = 0;
  for (let first = from; first < to; first += PART_WORDS) {
    const end = Math.min(first + PART_WORDS, to);
    const all = valueOfAll(words, first, end);
    if (all !== undefined) count += all === 0 ? 0 : 32 * (end - first);
    else {
      for (let i = first; i < end; i++) {
        const word = words[i];
        let bits = word - ((word >>> 1) & 0x55555555);
        bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
        count += Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
      }
    }
  }
  return count;
}

/** The same, with turns of the event loop in between where there are many. */
export async function countWordsInTurns(words: Int32Array): Promise<number> {
  let count = 0;
  for (let from = 0; from < words.length; from += TURN_WORDS) {
    if (from > 0) await yieldToLoop();
    count += countWords(words, from, Math.min(from + TURN_WORDS, words.length));
  }
  return count;
}

/** Bitmaps of several blocks in one memory that threads share: a thread is handed one, and not one for each block. */
export function sharedBitmaps(pageCounts: readonly number[]): SharedArrayBuffer {
  return new SharedArrayBuffer(4 * pageCounts.reduce((sum, count) => sum + wordsOf(count), 0));
}

/** The words of each block's. */
export function viewBitmaps(shared: SharedArrayBuffer, pageCounts: readonly number[]): Int32Array[] {
  let offset = 0;
  return pageCounts.map((count) => {
    const view = new Int32Array(shared, offset, Math.ceil(count / 32));
    offset += 4 * wordsOf(count);
    return view;
  });
}

/** Whole lines of 64 bytes. */
function wordsOf(pageCount: number): number {
  return 16 * Math.ceil(pageCount / (16 * 32));
}

function* runsOf(
  words: Int32Array,
  pageCount: number,
  isUntouched: (part: number) => boolean = () => false,
): Generator<{ page: number; count: number }> {
  let start = -1;
  for (let first = 0; first < words.length; first += PART_WORDS) {
    const end = Math.min(first + PART_WORDS, words.length);
    const all = isUntouched(first / PART_WORDS) ? 0 : valueOfAll(words, first, end);
    // A part, or a word, of equal bits is one step.
    for (let i = first; i < end; i += all === undefined ? 1 : PART_WORDS) {
      const word = all ?? words[i];
      if (start >= 0 ? word === -1 : word === 0) continue;
      for (let bit = 0; bit < 32; bit++) {
        const page = 32 * i + bit;
        const set = (word & (1 << bit)) !== 0 && page < pageCount;
        if (set && start < 0) start = page;
        if (set || start < 0) continue;
        yield { page: start, count: page - start };
        start = -1;
      }
    }
  }
  if (start >= 0) yield { page: start, count: pageCount - start };
}

/** Have all of these words the value 0, or all -1? */
function valueOfAll(words: Int32Array, from: number, to: number): 0 | -1 | undefined {
  const first = words[from];
  if (first !== 0 && first !== -1) return undefined;
  const bytes = Buffer.from(words.buffer, words.byteOffset + 4 * from, 4 * (to - from));
  const same = first === 0 ? ZEROES : ONES;
  return bytes.compare(same, 0, bytes.length) === 0 ? first : undefined;
}
