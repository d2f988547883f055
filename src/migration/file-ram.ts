/**
 * The guest's RAM in the file that is made: its blocks as ranges of it, a bitmap of the pages that have data for each, and
 * what the main stream itself says of pages (ZERO and PAGE records).
 *
 * Called on the calling thread, between two sync points. The channels write the same blocks and bitmaps from their threads;
 * no page is on both ways within a phase.
 */
import type { MappedRamWriter } from '../mapped-ram/writer.js';
import { alignedBuffer } from '../ram/aligned.js';
import { DIRECT, makeBlocks, type RAMBlock } from '../ram/block.js';
import { writeDirect } from '../ram/direct-io.js';
import type { Receiver } from '../recv/receiver.js';
import { markPages, unmarkPages } from '../shared/control.js';
import { writeAt } from '../stream/positioned-file.js';
import type { FileHandle } from 'node:fs/promises';

/** Of an OutputFile, or of what is there instead of one. */
export interface FilePair {
  handle: FileHandle;
  direct: FileHandle | undefined;
}

export class FileRam {
  readonly #receiver: Receiver;
  readonly #file: FilePair;
  #byName = new Map<string, RAMBlock>();
  /** A page of the main stream on its way to `direct`. */
  #page: Buffer | undefined;

  constructor(receiver: Receiver, file: FilePair) {
    this.#receiver = receiver;
    this.#file = file;
  }

  /** The file is laid out: every block is a range of it. */
  begin(writer: MappedRamWriter, pageSize: number): void {
    const laidOut = writer.blocks ?? [];
    const blocks = makeBlocks(
      laidOut.map((block) => ({
        name: block.name,
        file: this.#file.handle,
        [DIRECT]: this.#file.direct,
        offset: block.pagesOffset,
        size: block.usedLength,
      })),
      pageSize,
    );
    this.#byName = new Map(blocks.map((block) => [block.name, block]));
    this.#receiver.setBlocks(blocks, pageSize);
  }

  /** Bitmap words of the block's pages that have data. */
  present(name: string): Int32Array {
    return this.#receiver.presentWords(this.#block(name));
  }

  #block(name: string): RAMBlock {
    return this.#byName.get(name) as RAMBlock;
  }

  zero(name: string, offsets: readonly number[]): void {
    const words = this.present(name);
    for (const offset of offsets) unmarkPages(words, offset / this.#receiver.pageBytes, 1);
  }

  async page(name: string, offset: number, data: Buffer): Promise<void> {
    await this.#write(data, this.#block(name).base + offset);
    markPages(this.present(name), offset / this.#receiver.pageBytes, 1);
  }

  async #write(data: Buffer, position: number): Promise<void> {
    const { handle, direct } = this.#file;
    if (direct === undefined) return writeAt(handle, data, position);
    // As the channels do it: a page that one of them writes next is in no cache then.
    this.#page ??= alignedBuffer(this.#receiver.pageBytes);
    data.copy(this.#page);
    await writeDirect(direct, this.#page, data.length, position);
  }
}
