/**
 * The pages that are still to be sent, and where they come from: the embedder's dirty pages, in whichever form he has them.
 *
 *     bitmaps    bits that guest threads set        taken word by word (shared/dirty-words.ts)
 *     function   ranges dirtied since its last call
 *            \        |
 *             collect()     at the begin of a round, before any page of it is read
 *                 v
 *             our own bitmap, a bit a page    --pending()-->  the round   --clear()-->  nothing is left
 *
 * The order is all there is to it. A page's bit is taken before a channel reads the page; who writes to a page sets its bit
 * after that. So a write that a channel has missed, or has seen half, sets a bit that the next round takes. The other way
 * round (the bit first, then the write) the bit could be taken in between, and the write would be lost.
 *
 * On the calling thread. The bitmaps stay the embedder's; his bits are cleared and never set.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { PageBitmap, countWordsInTurns } from '../ram/bitmap.js';
import { BlockStates, checkPageRange, type RAMBlock } from '../ram/block.js';
import { awaitHook } from '../migration/options.js';
import type { Sender } from '../send/sender.js';
import { takeDirtyWords } from '../shared/dirty-words.js';

/** Bit `page & 31` of word `page >> 5` is set for a page that has been written to. */
export type DirtyBitmap = Uint32Array | Int32Array;

/** Both in bytes, multiples of the page size. */
export interface DirtyRange {
  /** The block's name. */
  block: string;
  offset: number;
  length: number;
}

/** What was written to since the last call. */
export type DirtyFunction = () =>
  | Iterable<DirtyRange>
  | AsyncIterable<DirtyRange>
  | Promise<Iterable<DirtyRange> | AsyncIterable<DirtyRange>>;

/** All forms of option `dirty`; bitmaps by the name of their block. */
export type DirtyOption = Readonly<Record<string, DirtyBitmap>> | DirtyFunction;

/** Words, and ranges, between two turns of the event loop: less than a millisecond. */
const TURN_WORDS = 2 ** 16;
const TURN_RANGES = 2 ** 12;

interface BlockPages {
  block: RAMBlock;
  pending: PageBitmap;
  /** Bits that are set, as last counted. */
  count: number;
}

/** Queues its pages. The session ends with the migration, so that this does. */
export type Section = (sender: Sender) => Promise<void>;

/** The pages that are still to be sent, as far as precopy.ts needs them: these, or for a guest that tells none, every-page.ts. */
export interface PendingPages {
  /** Is it known which were written to? Else all are to be read, and what has changed is found by the channels. */
  readonly areKnown: boolean;
  readonly count: number;
  setAll(): void;
  collect(): Promise<void>;
  /** All of them, in parts that are a section each. */
  sections(): Iterable<Section>;
  clear(): void;
}

export class DirtyPages implements PendingPages {
  readonly areKnown = true;
  readonly #pageSize: number;
  readonly #dirty: DirtyOption;
  readonly #states: BlockPages[];
  readonly #byBlock: BlockStates<BlockPages>;
  #isCollecting = false;

  constructor(blocks: readonly RAMBlock[], pageSize: number, dirty: DirtyOption) {
    this.#pageSize = pageSize;
    this.#dirty = dirty;
    this.#states = blocks.map((block) => ({ block, pending: new PageBitmap(block.pageCount), count: 0 }));
    this.#byBlock = new BlockStates(this.#states);
  }

  /** Pages to be sent. */
  get count(): number {
    return this.#states.reduce((sum, { count }) => sum + count, 0);
  }

  /** Every page of every block. */
  setAll(): void {
    for (const state of this.#states) {
      state.pending.setRange(0, state.block.pageCount);
      state.count = state.block.pageCount;
    }
  }

  /**
   * Takes the embedder's dirty pages.
   *
   * @throws MultifdError ERR_MULTIFD_BLOCK, ERR_MULTIFD_RANGE, ERR_MULTIFD_HOOK
   */
  async collect(): Promise<void> {
    this.#isCollecting = true;
    if (typeof this.#dirty === 'function') await this.#takeRanges(await awaitHook('dirty', this.#dirty));
    else for (const state of this.#states) await this.#takeBitmap(state, this.#dirty[state.block.name]);
    this.#isCollecting = false;
    await this.recount();
  }

  /** False when a collect() has failed: what was told by then, and taken away, may not be here. */
  get isWhole(): boolean {
    return !this.#isCollecting;
  }

  async recount(): Promise<void> {
    for (const state of this.#states) state.count = await countWordsInTurns(state.pending.words);
  }

  /** One more page, by its block's index; recount() is to follow. */
  add(index: number, page: number): void {
    this.#states[index].pending.setRange(page, 1);
  }

  /** One that need not be sent any more; likewise. */
  remove(index: number, page: number): void {
    this.#states[index].pending.delete(page);
  }

  /** Those of another, of the same blocks, that were not sent; likewise. */
  adopt(other: DirtyPages): void {
    for (const [index, { pending }] of this.#states.entries()) {
      for (const { page, count } of other.#states[index].pending.runs()) pending.setRange(page, count);
    }
  }

  sections(): [Section] {
    return [
      async (sender) => {
        for (const { block, pending, count } of this.pending())
          await sender.queueBits(block.name, pending, count);
      },
    ];
  }

  /** Of each block that has pages to be sent. */
  pending(): { block: RAMBlock; pending: PageBitmap; count: number }[] {
    return this.#states.filter(({ count }) => count > 0);
  }

  /** The same in runs, ascending in each block. */
  *runs(): Generator<DirtyRange, void, undefined> {
    for (const { block, pending } of this.#states) {
      for (const { page, count } of pending.runs()) {
        yield { block: block.name, offset: page * this.#pageSize, length: count * this.#pageSize };
      }
    }
  }

  /** All of it has been sent. */
  clear(): void {
    for (const state of this.#states) {
      state.pending.clear();
      state.count = 0;
    }
  }

  async #takeBitmap({ block, pending }: BlockPages, bitmap: DirtyBitmap): Promise<void> {
    checkBitmap(block, bitmap);
    const words = new Int32Array(bitmap.buffer, bitmap.byteOffset, bitmap.length);
    const last = pending.words.length - 1;
    // Bits behind the last page mean nothing.
    const lastBits = block.pageCount % 32 === 0 ? -1 : (1 << (block.pageCount % 32)) - 1;
    for (let from = 0; from <= last; from += TURN_WORDS) {
      if (from > 0) await yieldToLoop();
      takeDirtyWords(words, from, Math.min(last + 1, from + TURN_WORDS), (index, bits) =>
        pending.setWord(index, index === last ? bits & lastBits : bits),
      );
    }
  }

  async #takeRanges(ranges: Iterable<DirtyRange> | AsyncIterable<DirtyRange>): Promise<void> {
    if (!isIterable(ranges)) {
      const expected = 'an iterable of { block, offset, length }';
      throw new MultifdError('ERR_MULTIFD_HOOK', receivedExpected('dirty()', typeof ranges, expected));
    }
    let left = TURN_RANGES;
    for await (const range of fromHook(ranges)) {
      const { block, offset, length } = (range ?? {}) as Partial<DirtyRange>;
      const state = this.#byBlock.find(block as string);
      const page = checkPageRange(state.block, this.#pageSize, offset as number, length as number);
      state.pending.setRange(page, (length as number) / this.#pageSize);
      if (--left > 0) continue;
      left = TURN_RANGES;
      await yieldToLoop();
    }
  }
}

/**
 * Has it a bit for each page, still? That of memory which was transferred, or of a WebAssembly.Memory that has grown, has none.
 *
 * @throws MultifdError ERR_MULTIFD_BLOCK
 */
export function checkBitmap(block: RAMBlock, bitmap: DirtyBitmap): void {
  const words = Math.ceil(block.pageCount / 32);
  if (bitmap.length >= words) return;
  const what = `dirty bitmap of RAM block ${JSON.stringify(block.name)}: words of 32 bits`;
  throw new MultifdError('ERR_MULTIFD_BLOCK', receivedExpected(what, bitmap.length, `at least ${words}`));
}

function isIterable(value: unknown): value is Iterable<DirtyRange> | AsyncIterable<DirtyRange> {
  if (typeof value !== 'object' || value === null) return false;
  return Symbol.iterator in value || Symbol.asyncIterator in value;
}

/** What the embedder's iterator throws is a hook's error; what is thrown over its ranges is not. */
async function* fromHook(
  ranges: Iterable<DirtyRange> | AsyncIterable<DirtyRange>,
): AsyncGenerator<DirtyRange> {
  const iterator =
    Symbol.asyncIterator in ranges ? ranges[Symbol.asyncIterator]() : ranges[Symbol.iterator]();
  let isOver = false;
  try {
    for (;;) {
      const next = await awaitHook('dirty', () => iterator.next());
      isOver = next.done === true;
      if (isOver) return;
      yield next.value as DirtyRange;
    }
  } finally {
    if (!isOver) await iterator.return?.();
  }
}
