/**
 * Reads the parts of a mapped-ram file that read.ts has described, a piece at a time: a block's bitmap and the runs of
 * pages in it, the sections of others, the tail. Pages themselves are read by who wants them, at `pagesOffset`.
 *
 * Called on the calling thread by a sender, by the verification, and for the bitmaps by read.ts. The file stays the
 * caller's, open; each piece is a buffer of its own, and the consumer's.
 */
import { MultifdError } from '../errors.js';
import { CHUNK_BYTES } from '../stream/byte-reader.js';
import { STREAM_ERRORS, quote } from '../stream/codes.js';
import { type ReadableFile, readAt } from '../stream/positioned-file.js';
import type { MappedRamDescription, OtherSections } from './description.js';
import type { MappedRamBlock } from './layout.js';

/** A bitmap is read in pieces, each one turn of the event loop: 256 KiB are 2 Mi pages, and as many runs at the worst. */
const BITMAP_CHUNK_BYTES = 2 ** 18;

/**
 * A block's bitmap in pieces.
 *
 * @returns the bytes, and the index of the page that their first bit stands for
 * @throws MultifdError STREAM_ERRORS.io, .eof
 */
export async function* readBitmap(
  file: ReadableFile,
  block: MappedRamBlock,
): AsyncGenerator<{ bytes: Buffer; page: number }, void, undefined> {
  for (let at = 0; at < block.bitmapBytes; at += BITMAP_CHUNK_BYTES) {
    const length = Math.min(BITMAP_CHUNK_BYTES, block.bitmapBytes - at);
    const bytes = await readAt(file, block.bitmapOffset + at, length);
    if (bytes.length < length) {
      throw new MultifdError(
        STREAM_ERRORS.eof,
        `mapped-ram file: bitmap of ${quote(block.name)}: received ${at + bytes.length} bytes, expected ${block.bitmapBytes}`,
      );
    }
    yield { bytes, page: 8 * at };
  }
}

/** Pages of a block, one after another, that are all in the file or all zero pages. */
export interface PageRun {
  page: number;
  count: number;
  present: boolean;
}

/**
 * All pages of a block in runs, ascending, by its bitmap.
 *
 * @throws MultifdError STREAM_ERRORS.io, .eof
 */
export async function* readPageRuns(
  file: ReadableFile,
  block: MappedRamBlock,
): AsyncGenerator<PageRun, void, undefined> {
  let run: PageRun = { page: 0, count: 0, present: false };
  for await (const { edges, num, present } of readPageEdges(file, block)) {
    for (let i = 0; i + 1 < num; i++) {
      const isPresent = (i & 1) === 0 ? present : !present;
      const count = edges[i + 1] - edges[i];
      // The piece before may have ended within it.
      if (isPresent === run.present) run.count += count;
      else {
        if (run.count > 0) yield run;
        run = { page: edges[i], count, present: isPresent };
      }
    }
  }
  if (run.count > 0) yield run;
}

/** Runs of pages side by side, that are in the file and zero pages in turn: run `i` is from `edges[i]` up to `edges[i + 1]`. */
export interface PageEdges {
  /** Page indexes, ascending; the consumer's until it asks for the next ones. */
  edges: Uint32Array;
  /** How many of them there are, one more than runs. */
  num: number;
  /** Are the pages of the first run in the file? */
  present: boolean;
}

/** The same, those of a piece of the bitmap at a time, and without an object for each of them. */
export async function* readPageEdges(
  file: ReadableFile,
  block: MappedRamBlock,
): AsyncGenerator<PageEdges, void, undefined> {
  let words = new Int32Array(0);
  let edges = new Uint32Array(0);
  for await (const { bytes, page } of readBitmap(file, block)) {
    const count = Math.min(block.pageCount - page, 8 * bytes.length);
    const wordCount = Math.ceil(bytes.length / 4);
    if (words.length < wordCount) {
      words = new Int32Array(wordCount);
      // Before the first page, after each, and the end.
      edges = new Uint32Array(32 * wordCount + 2);
    }
    words[wordCount - 1] = 0;
    new Uint8Array(words.buffer).set(bytes);
    edges[0] = page;
    let num = findEdges(words, wordCount, page, edges);
    // Bits behind the last page are nobody's.
    while (num > 1 && edges[num - 1] >= page + count) num--;
    edges[num++] = page + count;
    yield { edges, num, present: (words[0] & 1) !== 0 };
  }
}

/**
 * Where the bits change, from the second one on: a loop over words, not over pages, and small, since it runs once and is
 * never compiled.
 *
 * @returns the number of edges, that at 0 included
 */
function findEdges(words: Int32Array, count: number, page: number, edges: Uint32Array): number {
  let num = 1;
  let before = words[0] & 1;
  for (let i = 0; i < count; i++) {
    const word = words[i];
    let changes = word ^ ((word << 1) | before);
    before = word >>> 31;
    while (changes !== 0) {
      const lowest = changes & -changes;
      edges[num++] = page + 32 * i + 31 - Math.clz32(lowest);
      changes ^= lowest;
    }
  }
  return num;
}

/** Other sections in pieces, each the consumer's. */
export async function* readOtherSections(
  file: ReadableFile,
  sections: readonly OtherSections[],
): AsyncGenerator<Buffer, void, undefined> {
  for (const { offset, bytes } of sections) yield* readRange(file, offset, bytes, 'other sections');
}

/** The file's tail in pieces, each the consumer's. */
export async function* readTail(
  file: ReadableFile,
  description: MappedRamDescription,
): AsyncGenerator<Buffer, void, undefined> {
  const { tailOffset, tailBytes } = description;
  if (tailOffset === undefined || tailBytes === undefined) {
    throw new MultifdError(
      STREAM_ERRORS.file,
      "mapped-ram file: the end of ram's last section was not found",
    );
  }
  yield* readRange(file, tailOffset, tailBytes, 'tail');
}

async function* readRange(
  file: ReadableFile,
  offset: number,
  length: number,
  what: string,
): AsyncGenerator<Buffer, void, undefined> {
  for (let at = 0; at < length;) {
    const bytes = await readAt(file, offset + at, Math.min(CHUNK_BYTES, length - at));
    if (bytes.length === 0) {
      const message = `mapped-ram file: ${what}: received ${at} bytes, expected ${length}`;
      throw new MultifdError(STREAM_ERRORS.eof, message);
    }
    yield bytes;
    at += bytes.length;
  }
}
