/**
 * The layout of a mapped-ram file (QEMU >= 9.0, `migrate file:PATH`): a main stream in which each page of RAM has a
 * fixed place.
 *
 *     offset   header, configuration (capability mapped-ram), START ram, MEM_SIZE
 *     ...      entry of block 0, its mapped-ram header (28 bytes)
 *     h        bitmap of block 0: 8 * ceil(pages / 64) bytes
 *              hole
 *     1 MiB    pages of block 0, page i at pages_offset + i * page size
 *     ...      entry of block 1, at pages_offset + used_length of block 0
 *     ...
 *     ...      behind the last block's pages: EOS, footer, PARTs and END with EOS alone, then the tail
 *
 * All offsets are absolute, also where the stream begins at an offset. A reader takes them from the headers and never
 * computes them; the rule here (`layOut`) is the writer's.
 *
 * The bitmap is little-endian words of 64 bits: page i is bit i & 7 of byte i >> 3. 1: the page is in the file. 0: it
 * is a zero page, and what lies at its place has no meaning (a page that became zero again leaves its old bytes).
 *
 * Read in read.ts, written in writer.ts.
 */
import { countWords } from '../ram/bitmap.js';
import {
  MAPPED_RAM_HEADER_BYTES,
  MAPPED_RAM_VERSION,
  type MappedRamHeader,
  type StreamBlock,
} from '../stream/block-list.js';

/** Where pages begin, so that they can be read and written with O_DIRECT, and in large pieces. */
export const PAGES_ALIGNMENT = 0x100000;
/** A bitmap's words have 64 bits. */
const PAGES_PER_WORD = 64;

/** A block and its places in the file; all offsets absolute, in bytes. */
export interface MappedRamBlock {
  name: string;
  usedLength: number;
  pageCount: number;
  bitmapOffset: number;
  bitmapBytes: number;
  pagesOffset: number;
}

export function bitmapBytes(pageCount: number): number {
  return 8 * Math.ceil(pageCount / PAGES_PER_WORD);
}

/** A parsed entry with its mapped-ram header, as a block of the file. */
export function mappedBlock(
  block: StreamBlock & { mapped: MappedRamHeader },
  pageSize: number,
): MappedRamBlock {
  const { name, usedLength, mapped } = block;
  const pageCount = usedLength / pageSize;
  const { bitmapOffset, pagesOffset } = mapped;
  return { name, usedLength, pageCount, bitmapOffset, bitmapBytes: bitmapBytes(pageCount), pagesOffset };
}

/**
 * QEMU's rule for one block.
 *
 * @param at the file offset of the block's mapped-ram header
 * @returns the header, and where the next entry goes
 */
export function layOut(
  at: number,
  usedLength: number,
  pageSize: number,
): { header: MappedRamHeader; next: number } {
  const bitmapOffset = at + MAPPED_RAM_HEADER_BYTES;
  const end = bitmapOffset + bitmapBytes(usedLength / pageSize);
  const pagesOffset = Math.ceil(end / PAGES_ALIGNMENT) * PAGES_ALIGNMENT;
  return {
    header: { version: MAPPED_RAM_VERSION, pageSize, bitmapOffset, pagesOffset },
    next: pagesOffset + usedLength,
  };
}

/**
 * A page bitmap (src/ram/bitmap.ts: 32-bit words in this machine's order, which is little-endian) as the file has it; bits
 * behind the last page are cleared.
 */
export function encodeBitmap(words: Int32Array, pageCount: number): Buffer {
  const bytes = Buffer.alloc(bitmapBytes(pageCount));
  const count = Math.ceil(pageCount / 32);
  Buffer.from(words.buffer, words.byteOffset, 4 * count).copy(bytes);
  if (pageCount % 32 !== 0) {
    const last = 4 * (count - 1);
    bytes.writeUInt32LE((bytes.readUInt32LE(last) & ((1 << (pageCount % 32)) - 1)) >>> 0, last);
  }
  return bytes;
}

/** Set bits of the first `pageCount` bits of `bytes`. */
export function countBits(bytes: Uint8Array, pageCount: number): number {
  const whole = pageCount >>> 3;
  // A guest that is resumed waits for this: 4 times as fast as byte by byte.
  const words = bytes.byteOffset % 4 === 0 ? whole >>> 2 : 0;
  let count = words === 0 ? 0 : countWords(new Int32Array(bytes.buffer, bytes.byteOffset, words));
  for (let i = 4 * words; i < whole; i++) count += BITS[bytes[i]];
  if ((pageCount & 7) !== 0) count += BITS[bytes[whole] & ((1 << (pageCount & 7)) - 1)];
  return count;
}

/** Number of bits of each byte. */
const BITS = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) count++;
  return count;
});
