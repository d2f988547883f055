/**
 * The pages of one block: which of them the file has, and which are on their way or at the destination ("taken").
 *
 *     file  taken
 *      1      0     to be sent, in the end in any case
 *      0      0     absent: ZERO when it is asked for, else never: it reads as zero when the migration has ended
 *      x      1     never again: placing a page twice fails the load
 *
 * QEMU places whole host pages, so they are taken as a whole; where the destination has a block on huge pages, that is many
 * pages of the target at once.
 *
 * Called on the calling thread. Nothing here goes over all pages one by one: 16 million of them are a small VM's.
 */
import type { MappedRamBlockDescription, MappedRamDescription } from '../mapped-ram/description.js';
import { readBitmap } from '../mapped-ram/pages.js';
import { PageBitmap, countWords, maskOf } from '../ram/bitmap.js';
import { refusal, quote } from '../stream/codes.js';
import type { ReadableFile } from '../stream/positioned-file.js';

/** 1024 words, 128 MiB of pages of 4 KiB: passed over in one step where none of them is left. */
const PART_SHIFT = 10;
const PART_WORDS = 2 ** PART_SHIFT;

export class PageMap {
  readonly block: MappedRamBlockDescription;
  /** Of the target, in bytes. */
  readonly pageSize: number;
  /** Pages of the target in a host page of this block at the destination. */
  readonly hostPages: number;
  readonly #present: PageBitmap;
  readonly #taken: PageBitmap;
  /** Of each part: pages in the file that are not taken. */
  readonly #leftIn: Int32Array;
  #left = 0;

  private constructor(block: MappedRamBlockDescription, pageSize: number, hostPageSize: number) {
    this.block = block;
    this.pageSize = pageSize;
    this.hostPages = hostPageSize / pageSize;
    this.#present = new PageBitmap(block.pageCount);
    this.#taken = new PageBitmap(block.pageCount);
    this.#leftIn = new Int32Array(Math.ceil(this.#present.words.length / PART_WORDS));
  }

  /**
   * Of all blocks, in their order.
   *
   * @param hostPageSizes at the destination, by the block's name
   * @throws MultifdError STREAM_ERRORS.io, .eof
   */
  static async readAll(
    file: ReadableFile,
    { blocks, pageSize }: MappedRamDescription,
    hostPageSizes: ReadonlyMap<string, number>,
  ): Promise<PageMap[]> {
    const maps: PageMap[] = [];
    for (const block of blocks)
      maps.push(await PageMap.read(file, block, pageSize, hostPageSizes.get(block.name) as number));
    return maps;
  }

  /** @throws MultifdError STREAM_ERRORS.io, .eof */
  static async read(
    file: ReadableFile,
    block: MappedRamBlockDescription,
    pageSize: number,
    hostPageSize: number,
  ): Promise<PageMap> {
    const map = new PageMap(block, pageSize, hostPageSize);
    for await (const { bytes, page } of readBitmap(file, block)) {
      copyWords(map.#present, bytes, page);
    }
    map.#count();
    return map;
  }

  /** Pages in the file that are not taken. */
  get left(): number {
    return this.#left;
  }

  /** Which pages the file has, as bytes: of 32-bit words, in this machine's order. */
  get presentBytes(): Uint8Array {
    const { words } = this.#present;
    return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
  }

  isPresent(page: number): boolean {
    return this.#present.has(page);
  }

  /** The same for all pages of its host page. */
  isTaken(page: number): boolean {
    return this.#taken.has(page);
  }

  /** Takes whole host pages: `count` pages from `page` on. */
  take(page: number, count: number): void {
    for (let at = page, end = page + count; at < end;) {
      const bits = Math.min(32 - (at & 31), end - at);
      const word = at >>> 5;
      const fresh = this.#present.words[word] & ~this.#taken.words[word] & maskOf(at, bits);
      if (fresh !== 0) {
        const pages = bitsOf(fresh);
        this.#left -= pages;
        this.#leftIn[word >>> PART_SHIFT] -= pages;
      }
      at += bits;
    }
    this.#taken.setRange(page, count);
  }

  /** The first page from `from` on, and below `to`, that the file has and that is not taken; -1 if there is none. */
  next(from: number, to = this.block.pageCount): number {
    if (from >= to) return -1;
    const present = this.#present.words;
    const taken = this.#taken.words;
    const lastWord = (to - 1) >>> 5;
    let word = from >>> 5;
    let bits = present[word] & ~taken[word] & (-1 << (from & 31));
    while (bits === 0) {
      word++;
      while ((word & (PART_WORDS - 1)) === 0 && word <= lastWord && this.#leftIn[word >>> PART_SHIFT] === 0)
        word += PART_WORDS;
      if (word > lastWord) return -1;
      bits = present[word] & ~taken[word];
    }
    const page = 32 * word + 31 - Math.clz32(bits & -bits);
    return page < to ? page : -1;
  }

  /**
   * What the destination has already, after a connection that broke: its bitmap takes the place of ours.
   *
   * @throws MultifdError STREAM_ERRORS.returnPath where a host page is there in part, which cannot be
   */
  setReceived(bytes: Buffer): void {
    this.#taken.clear();
    copyWords(this.#taken, bytes, 0);
    const { pageCount, name } = this.block;
    for (let page = 0; this.hostPages > 1 && page < pageCount; page += this.hostPages) {
      const count = this.#takenIn(page);
      if (count === 0 || count === this.hostPages) continue;
      const what = `received bitmap of ${quote(name)}: pages of the host page at ${page * this.pageSize}`;
      throw refusal('returnPath', what, count, `0 or ${this.hostPages}`);
    }
    this.#count();
  }

  #takenIn(page: number): number {
    const { words } = this.#taken;
    if (this.hostPages >= 32) return countWords(words, page >>> 5, (page + this.hostPages) >>> 5);
    return bitsOf(words[page >>> 5] & maskOf(page, this.hostPages));
  }

  #count(): void {
    const present = this.#present.words;
    const taken = this.#taken.words;
    this.#left = 0;
    for (let part = 0; part < this.#leftIn.length; part++) {
      const from = part * PART_WORDS;
      const to = Math.min(from + PART_WORDS, present.length);
      let count = countWords(present, from, to);
      if (count > 0 && countWords(taken, from, to) > 0) {
        count = 0;
        for (let i = from; i < to; i++) count += bitsOf(present[i] & ~taken[i]);
      }
      this.#leftIn[part] = count;
      this.#left += count;
    }
  }
}

/** Little-endian bytes of a bitmap, from that of `page` on, without what lies behind its last page. */
function copyWords(bitmap: PageBitmap, bytes: Buffer, page: number): void {
  const first = page >>> 5;
  const count = Math.min(bitmap.words.length - first, Math.ceil(bytes.length / 4));
  for (let i = 0; i < count; i++) {
    let bits = bytes.readInt32LE(4 * i);
    const behind = bitmap.pageCount - 32 * (first + i);
    if (behind < 32) bits &= maskOf(0, behind);
    if (bits !== 0) bitmap.setWord(first + i, bits);
  }
}

function bitsOf(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
