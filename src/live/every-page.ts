/**
 * The pages of a guest without dirty tracking: every one of them, in each round. A sender that was made with digestTables() reads
 * them all in its channels' threads and sends those that have changed (send/changed-pages.ts).
 *
 * A round that finds nothing sends nothing, and may take long. So it is sent in sections of at most SECTION_BYTES: their heads
 * and SYNC packets show both ends that the other one is there.
 */
import type { RAMBlock } from '../ram/block.js';
import type { PendingPages, Section } from './dirty-pages.js';

/** By choice: read in less than a second, also from a file that has to be fetched from a disk. */
const SECTION_BYTES = 2 ** 30;

export class EveryPage implements PendingPages {
  readonly areKnown = false;
  readonly count: number;
  readonly #blocks: readonly RAMBlock[];

  constructor(blocks: readonly RAMBlock[]) {
    this.#blocks = blocks;
    this.count = blocks.reduce((sum, block) => sum + block.pageCount, 0);
  }

  setAll(): void {}

  async collect(): Promise<void> {}

  *sections(): Generator<Section, void, undefined> {
    for (const { name, size } of this.#blocks) {
      for (let offset = 0; offset < size; offset += SECTION_BYTES)
        yield (sender) => sender.queueRange(name, offset, Math.min(SECTION_BYTES, size - offset));
    }
  }

  clear(): void {}
}
