/**
 * Pages of a mapped-ram file on the calling thread, a piece at a time, through the page cache or past it (ram/direct-io.ts).
 *
 * Who owns the bytes: a piece is the consumer's until the next one is read.
 */
import type { FileHandle } from 'node:fs/promises';
import { MultifdError } from '../errors.js';
import { alignedBuffer } from '../ram/aligned.js';
import { readDirect } from '../ram/direct-io.js';
import { quote } from '../printable.js';
import { type ReadableFile, readAt } from '../stream/positioned-file.js';
import type { MappedRamDescription } from './description.js';

export const PIECE_BYTES = 2 ** 20;

export class PageReader {
  readonly #file: ReadableFile;

  constructor(file: ReadableFile) {
    this.#file = file;
  }

  /**
   * As many of `length` bytes, a piece at most, from `position` on as the file has.
   *
   * @throws MultifdError ERR_MULTIFD_IO
   */
  async read(position: number, length: number): Promise<Buffer> {
    return readAt(this.#file, position, length);
  }
}

/** The same of a file that was opened with O_DIRECT. */
export class DirectPageReader {
  readonly #file: FileHandle;
  readonly #room = alignedBuffer(PIECE_BYTES);

  constructor(file: FileHandle) {
    this.#file = file;
  }

  /** As PageReader's. */
  async read(position: number, length: number): Promise<Buffer> {
    return this.#room.subarray(0, await readDirect(this.#file, this.#room, length, position));
  }
}

/**
 * A page of each block: files that others have laid out may have pages where O_DIRECT cannot read them.
 *
 * @throws MultifdError ERR_MULTIFD_IO
 */
export async function tryDirectReads(
  file: FileHandle,
  { blocks, pageSize }: Pick<MappedRamDescription, 'blocks' | 'pageSize'>,
): Promise<void> {
  const reader = new DirectPageReader(file);
  for (const { name, pagesOffset, presentPages } of blocks) {
    if (presentPages === 0) continue;
    try {
      await reader.read(pagesOffset, pageSize);
    } catch (error) {
      const { message, code } = MultifdError.wrap(error, 'ERR_MULTIFD_IO', 'read');
      throw new MultifdError(code, `pages of ${quote(name)}: ${message}`, { cause: error });
    }
  }
}
