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
const RUN_BATCH = 1024;

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
  for await (const runs of readPageRunBatches(file, block)) yield* runs;
}

/** The same, many at a time: a wait for each run costs more than what is done with it. */
export async function* readPageRunBatches(
  file: ReadableFile,
  block: MappedRamBlock,
): AsyncGenerator<PageRun[], void, undefined> {
  let run: PageRun = { page: 0, count: 0, present: false };
  let batch: PageRun[] = [];
  for await (const { bytes, page } of readBitmap(file, block)) {
    const count = Math.min(block.pageCount - page, 8 * bytes.length);
    for (let i = 0; i < count;) {
      const byte = bytes[i >>> 3];
      // A byte of eight equal bits is one step.
      const step = (i & 7) === 0 && count - i >= 8 && (byte === 0x00 || byte === 0xff) ? 8 : 1;
      const present = (byte & (1 << (i & 7))) !== 0;
      if (present !== run.present) {
        if (run.count > 0) batch.push(run);
        if (batch.length === RUN_BATCH) {
          yield batch;
          batch = [];
        }
        run = { page: page + i, count: 0, present };
      }
      run.count += step;
      i += step;
    }
  }
  if (run.count > 0) batch.push(run);
  if (batch.length > 0) yield batch;
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
