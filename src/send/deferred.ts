/**
 * The second copies of a phase, on the calling thread. A page's first copy may sit in any channel, and nothing orders two
 * channels but a sync; a second copy on another channel could be overtaken by the first and lose. So a page that is queued
 * again before the next sync is only noted here, and sync() sends its final content once more on *every* channel: whichever
 * channel had the first copy, the final one comes after it.
 *
 *     note(block, page) ... note(block, page)     nothing is copied: the bytes stay the embedder's
 *     sync(): send()     channel 0: all that is noted; channel 1: the same; ...     then nothing is noted any more
 *
 * The content is that of the moment of send(), which is the last one queued or a later one.
 */
import { PageBitmap } from '../ram/bitmap.js';
import type { RAMBlock } from '../ram/block.js';
import { clearInTurns } from './clear-in-turns.js';
import type { RamSlot } from './ram-slot.js';
import type { Turns } from './turns.js';

export class Deferred {
  readonly #blocks: readonly RAMBlock[];
  /** Of each block; made when it is first needed. */
  readonly #pages: (PageBitmap | undefined)[];
  #any = false;

  /** @param blocks of the session, in their order */
  constructor(blocks: readonly RAMBlock[]) {
    this.#blocks = blocks;
    this.#pages = blocks.map(() => undefined);
  }

  get any(): boolean {
    return this.#any;
  }

  note(block: RAMBlock, page: number): void {
    const pages = (this.#pages[block.index] ??= new PageBitmap(block.pageCount));
    pages.testAndSet(page);
    this.#any = true;
  }

  /**
   * Everything that is noted, on each of the channels 0 to `channels` - 1.
   *
   * @param slot empty before and after
   * @param packetPages pages of a packet
   */
  async send(
    slot: Pick<RamSlot, 'num' | 'put' | 'flush'>,
    channels: number,
    packetPages: number,
    turns: Pick<Turns, 'isDue' | 'take'>,
  ): Promise<void> {
    for (let id = 0; id < channels; id++) {
      for (const block of this.#blocks) {
        const pages = this.#pages[block.index];
        if (pages === undefined) continue;
        for (const { page, count } of pages.runs()) {
          for (let i = 0; i < count; i++) {
            slot.put(block, page + i, 1);
            if (slot.num >= packetPages) await slot.flush(id);
          }
        }
        await slot.flush(id);
      }
    }
    await clearInTurns(this.#pages, turns);
    this.#any = false;
  }
}
