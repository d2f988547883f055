/**
 * What a destination keeps between two tries, and how it says what that is.
 *
 *     completed   the last round whose pages are all in place
 *     arrived     those of the round behind it that are: what it had brought when the connections broke
 *     received    which pages have ever come: all must have by ram's END
 *
 *     START of a try     completed = the rounds that the source has begun so far: it has heard the answer, and what is not here
 *                        it counts among the pages that it is to send (resumption.ts)
 *     a round is whole   completed + 1; none has arrived yet
 *
 * A page has arrived when its bytes are in place, and not before: a thread may be ended in between. Channels that are let go
 * on behind a sync point may be placing pages of the next round when `arrived` is cleared; one that is lost is sent once more.
 */
import { sharedBitmaps, viewBitmaps } from '../ram/bitmap.js';
import type { RAMBlock } from '../ram/block.js';
import type { CarriedPages } from '../recv/receiver.js';
import { takeDirtyWords } from '../shared/dirty-words.js';
import { encodeResumeAnswer, encodeResumePages } from '../stream/resume-section.js';

/** Of one message: 4 KiB. */
const CHUNK_WORDS = 1024;

export class KeptPages {
  #completed = 0;
  #blocks: readonly RAMBlock[] | undefined;
  #pages: CarriedPages | undefined;
  #arrived: readonly Int32Array[] = [];

  get completed(): number {
    return this.#completed;
  }

  /** Undefined before the first block list. */
  get blocks(): readonly RAMBlock[] | undefined {
    return this.#blocks;
  }

  /** The source of a try has said which blocks it has, the same each time. @param rounds begun before it */
  start(blocks: readonly RAMBlock[], rounds: number): CarriedPages {
    const pageCounts = blocks.map(({ pageCount }) => pageCount);
    this.#blocks = blocks;
    this.#pages ??= { received: sharedBitmaps(pageCounts), arrived: sharedBitmaps(pageCounts) };
    this.#arrived = viewBitmaps(this.#pages.arrived, pageCounts);
    this.#next(rounds);
    return this.#pages;
  }

  roundIsWhole(): void {
    this.#next(this.#completed + 1);
  }

  #next(completed: number): void {
    this.#completed = completed;
    for (const words of this.#arrived) takeDirtyWords(words, 0, words.length, () => {});
  }

  /** A try may have written to pages that have not come. */
  touched(): void {
    for (const block of this.#blocks ?? []) block.fresh = false;
  }

  /** What the source of the next try is told. @param key for its channels */
  answer(key: Buffer): Buffer {
    const messages: Buffer[] = [];
    for (const [index, words] of this.#arrived.entries()) {
      const { name } = (this.#blocks as readonly RAMBlock[])[index];
      for (let from = 0; from < words.length; from += CHUNK_WORDS) {
        const chunk = words.subarray(from, from + CHUNK_WORDS);
        if (chunk.some((word) => word !== 0)) messages.push(encodeResumePages(name, from, chunk));
      }
    }
    return Buffer.concat([...messages, encodeResumeAnswer({ completed: this.#completed, key })]);
  }
}
