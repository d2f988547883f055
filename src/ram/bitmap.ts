/**
 * Page bitmaps: one bit a page, in 32-bit words.
 *
 * `PageBitmap` is of the calling thread alone (what was queued, what is deferred). A received-bitmap is shared by
 * the receive channels, which set bits in it at the same time: those go through `Control` (src/shared), the only
 * place that uses Atomics, and `ReceivedBitmap` reads them.
 */
export class PageBitmap {
  readonly words: Int32Array;
  readonly pageCount: number;

  constructor(pageCount: number) {
    this.pageCount = pageCount;
    this.words = new Int32Array(Math.ceil(pageCount / 32));
  }

  has(page: number): boolean {
    return (this.words[page >>> 5] & (1 << (page & 31))) !== 0;
  }

  /** Sets the bit; says whether it was set before. */
  testAndSet(page: number): boolean {
    const word = page >>> 5;
    const mask = 1 << (page & 31);
    const before = this.words[word];
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
      this.words[at >>> 5] |= maskOf(at, bits);
      at += bits;
    }
  }

  delete(page: number): void {
    this.words[page >>> 5] &= ~(1 << (page & 31));
  }

  clear(): void {
    this.words.fill(0);
  }

  /** Pages whose bit is set, ascending, as runs. */
  *runs(): Generator<{ page: number; count: number }> {
    yield* runsOf(this.words, this.pageCount);
  }
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
    let count = 0;
    for (const word of this.#words) {
      let bits = word - ((word >>> 1) & 0x55555555);
      bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
      count += Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
    }
    return count;
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

function* runsOf(words: Int32Array, pageCount: number): Generator<{ page: number; count: number }> {
  let start = -1;
  for (let page = 0; page < pageCount; page++) {
    const word = words[page >>> 5];
    if (start < 0 && word === 0 && (page & 31) === 0) {
      page += 31;
      continue;
    }
    const set = (word & (1 << (page & 31))) !== 0;
    if (set && start < 0) start = page;
    if (!set && start >= 0) {
      yield { page: start, count: page - start };
      start = -1;
    }
  }
  if (start >= 0) yield { page: start, count: pageCount - start };
}
