/**
 * Partitions the pages of a packet: normal pages first, in queueing order, then zero pages. One object a channel, refilled
 * for every packet.
 *
 * The loops over single pages are functions of their own, a few lines each: they are compiled within the first
 * milliseconds of a migration, while a large function that holds a loop runs interpreted for a tenth of a second and
 * then costs another tenth to compile (bench: none and zero). What is left here runs once for each run of pages.
 */
import { isIncompressible } from '../methods/incompressible.js';
import { fillRange, runLength } from '../ram/page-list.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { pagesPerPacket } from '../wire/packet.js';

export class Partition {
  /** The packet's page list: normal pages first, then zero pages. */
  readonly pages: Uint32Array;
  /** Where the normal pages were queued, for pages that lie in the order of the queue. */
  readonly positions: Uint16Array;
  /** How many normal pages, of those how many (the first ones) are to be compressed, and how many pages in all. */
  normal = 0;
  packed = 0;
  num = 0;
  readonly #pageSize: number;
  readonly #zeroPages: Uint32Array;
  #zeroes = 0;
  /** Of each normal page, whether it is incompressible, and its first word if so; then those pages, and where they are. */
  readonly #isRaw: Uint8Array;
  readonly #words: Int32Array;
  readonly #rawPages: Uint32Array;
  readonly #rawPositions: Uint16Array;

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
    this.pages = new Uint32Array(pagesPerPacket(pageSize));
    this.positions = new Uint16Array(pagesPerPacket(pageSize));
    this.#zeroPages = new Uint32Array(pagesPerPacket(pageSize));
    this.#rawPages = new Uint32Array(pagesPerPacket(pageSize));
    this.#rawPositions = new Uint16Array(pagesPerPacket(pageSize));
    this.#isRaw = new Uint8Array(pagesPerPacket(pageSize));
    this.#words = new Int32Array(pagesPerPacket(pageSize));
  }

  /** All of `queued` is sent as one kind. */
  all(queued: Uint32Array, num: number, kind: 'normal' | 'zero'): void {
    this.pages.set(queued.subarray(0, num));
    this.num = num;
    this.normal = kind === 'normal' ? num : 0;
    if (kind === 'normal') fillRange(this.positions, 0, 0, num);
  }

  /** Looks at pages in shared memory. */
  detect(queued: Uint32Array, num: number, windows: Windows): void {
    this.#begin(num);
    for (let i = 0; i < num;) {
      const offset = queued[i] * this.#pageSize;
      const run = runLength(queued, i, Math.min(num - i, Windows.runLimit(offset) / this.#pageSize));
      this.#look(windows.windowAt(offset), offset % Windows.WINDOW_BYTES, i, queued[i], run);
      i += run;
    }
    this.#end();
  }

  /** Looks at pages that lie in `staging` in the order of the queue. */
  detectStaged(queued: Uint32Array, num: number, staging: Buffer): void {
    this.#begin(num);
    for (let i = 0; i < num;) {
      const run = runLength(queued, i, num - i);
      this.#look(staging, i * this.#pageSize, i, queued[i], run);
      i += run;
    }
    this.#end();
  }

  /**
   * Moves the pages that no codec makes smaller behind the others: in a packet normal pages may come in any order. Pages
   * that begin alike are most likely copies, and all but one of those a codec does make smaller: all of them stay.
   *
   * @param windows where the pages are, unless they lie in `staging`
   */
  sortOut(windows: Windows | undefined, staging: Buffer): void {
    const size = this.#pageSize;
    const { pages, positions, normal } = this;
    const raw = this.#isRaw;
    const words = this.#words;
    for (let i = 0; i < normal; i++) {
      const bytes = windows === undefined ? staging : windows.windowAt(pages[i] * size);
      const at = windows === undefined ? positions[i] * size : (pages[i] * size) % Windows.WINDOW_BYTES;
      raw[i] = isIncompressible(bytes, at, size) ? 1 : 0;
      words[i] = raw[i] === 1 ? bytes.readInt32LE(at) : 0;
    }
    let packed = 0;
    let behind = 0;
    for (let i = 0; i < normal; i++) {
      if (raw[i] === 1 && !hasTwin(raw, words, i, normal)) {
        this.#rawPages[behind] = pages[i];
        this.#rawPositions[behind++] = positions[i];
      } else {
        pages[packed] = pages[i];
        positions[packed++] = positions[i];
      }
    }
    this.packed = packed;
    pages.set(this.#rawPages.subarray(0, behind), packed);
    positions.set(this.#rawPositions.subarray(0, behind), packed);
  }

  #begin(num: number): void {
    this.num = num;
    this.normal = 0;
    this.#zeroes = 0;
  }

  #end(): void {
    this.pages.set(this.#zeroPages.subarray(0, this.#zeroes), this.normal);
  }

  /** `count` pages side by side from byte `at` of `bytes` on: `position` in the queue, `page` of the block. */
  #look(bytes: Buffer, at: number, position: number, page: number, count: number): void {
    const size = this.#pageSize;
    // All-zero packets are the bulk of a fresh guest: one look at all of it, at memory speed.
    if (isZeroRange(bytes, at, count * size)) {
      this.#addZero(page, count);
      return;
    }
    for (let i = 0; i < count;) {
      // A page that is not zero nearly always shows it in its first byte.
      const normal = runOf(bytes, at + i * size, size, count - i, false);
      if (normal > 0) this.#addNormal(position + i, page + i, normal);
      i += normal;
      const candidates = runOf(bytes, at + i * size, size, count - i, true);
      if (candidates === 0) continue;
      if (isZeroRange(bytes, at + i * size, candidates * size)) this.#addZero(page + i, candidates);
      else this.#lookAtEach(bytes, at + i * size, position + i, page + i, candidates);
      i += candidates;
    }
  }

  #lookAtEach(bytes: Buffer, at: number, position: number, page: number, count: number): void {
    const size = this.#pageSize;
    for (let i = 0; i < count; i++) {
      if (isZeroRange(bytes, at + i * size, size)) this.#addZero(page + i, 1);
      else this.#addNormal(position + i, page + i, 1);
    }
  }

  #addNormal(position: number, page: number, count: number): void {
    fillRange(this.pages, this.normal, page, count);
    fillRange(this.positions, this.normal, position, count);
    this.normal += count;
  }

  #addZero(page: number, count: number): void {
    fillRange(this.#zeroPages, this.#zeroes, page, count);
    this.#zeroes += count;
  }
}

/** Does another raw page begin with the same word as page `i`? */
function hasTwin(raw: Uint8Array, words: Int32Array, i: number, count: number): boolean {
  for (let j = 0; j < count; j++) if (words[j] === words[i] && raw[j] === 1 && j !== i) return true;
  return false;
}

/** From byte `at` on, how many of `count` pages are certainly not zero, by their first, middle or last byte. */
export function normalRun(bytes: Buffer, at: number, size: number, count: number): number {
  let run = 0;
  let page = at;
  while (
    run < count &&
    (bytes[page] !== 0 || bytes[page + (size >>> 1)] !== 0 || bytes[page + size - 1] !== 0)
  ) {
    run++;
    page += size;
  }
  return run;
}

/** From byte `at` on, how many of `count` pages begin with a zero byte, or do not. */
function runOf(bytes: Buffer, at: number, size: number, count: number, zero: boolean): number {
  let run = 0;
  while (run < count && (bytes[at + run * size] === 0) === zero) run++;
  return run;
}
