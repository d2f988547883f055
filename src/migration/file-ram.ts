/**
 * The guest's RAM in the file that is made: its blocks as ranges of it, a bitmap of the pages that have data for each, and
 * what the main stream itself says of pages (ZERO and PAGE records).
 *
 * Called on the calling thread, between two sync points. The channels write the same blocks and bitmaps from their threads;
 * no page is on both ways within a phase.
 */
import type { FileHandle } from 'node:fs/promises';
import type { MappedRamWriter } from '../mapped-ram/writer.js';
import { makeBlocks, type RAMBlock } from '../ram/block.js';
import type { Receiver } from '../recv/receiver.js';
import { markPages, unmarkPages } from '../shared/control.js';
import { writeAt } from '../stream/positioned-file.js';

export class FileRam {
  readonly #receiver: Receiver;
  readonly #handle: FileHandle;
  #byName = new Map<string, RAMBlock>();

  constructor(receiver: Receiver, handle: FileHandle) {
    this.#receiver = receiver;
    this.#handle = handle;
  }

  /** The file is laid out: every block is a range of it. */
  begin(writer: MappedRamWriter, pageSize: number): void {
    const laidOut = writer.blocks ?? [];
    const blocks = makeBlocks(
      laidOut.map((block) => ({
        name: block.name,
        file: this.#handle,
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
    await writeAt(this.#handle, data, this.#block(name).base + offset);
    markPages(this.present(name), offset / this.#receiver.pageBytes, 1);
  }
}
