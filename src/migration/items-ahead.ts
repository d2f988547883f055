/**
 * The items of a main stream, one after the other; and while a sync point is waited for, those behind it that are here
 * already.
 *
 *     items        during(sync)                                       next()
 *     EOS, sync    waits for the channels                             gives it
 *     footer         read meanwhile, kept                             gives it, after the wait
 *     PAGE           of a source without multifd: refused
 *     START vfio     refused: the wait is over, with that error
 *     the end        of a stream that is not whole: so it is, when the wait has not been over for a while
 *
 * A sync point waits for threads that load and for bytes on all channels. A source without return path knows nothing of
 * that: when it has written all it takes its migration as completed and gives its guest up. So what will be refused
 * should be refused as soon as it is here.
 *
 * A main stream that ends too early makes a failure certain, while a channel that trickles could hold the wait for ever. Yet the
 * wait has a while: a source that gives up ends its channels a moment later, whose error says better what is missing.
 *
 * Bounds: MAX_AHEAD items of 64 KiB, nothing behind the next sync point, and nothing behind RAM, unless no channel has
 * come in: then up to MAX_ZEROS_AHEAD items, ZERO records among them, as far as a PAGE. When the main stream has ended, what is
 * left of it is in memory: up to MAX_BEHIND_END items of whatever kind, to see whether it is whole.
 */
import { MultifdError } from '../errors.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import type { MainStreamReader } from '../stream/main-stream.js';
import type { MainItem, TailItem } from '../stream/records.js';
import { multifdIsOff } from './blame.js';
import { LINGER_MS } from './limits.js';

const MAX_AHEAD = 16;
/** While no channel has come in: as read from a socket these are the ZERO records of some gigabytes. */
const MAX_ZEROS_AHEAD = 128;
/** By choice: 1 MiB of items, and more rounds than a source is ahead by. */
const MAX_BEHIND_END = 4096;

type Next = MainItem | undefined;

/** Of the connection that the items come from. */
export interface StreamEnd {
  /** It has ended, or broken. */
  over: Promise<void>;
  /** The wait is over this long behind an end that came too early, or LINGER_MS, whichever is less. */
  stallTimeoutMs: number;
  /** What is wrong with an end behind these pieces of the tail, if anything is. */
  tailError?(tail: readonly Buffer[]): MultifdError | undefined;
}

export class ItemsAhead {
  readonly #stream: Pick<MainStreamReader, 'next'>;
  readonly #end: StreamEnd;
  readonly #items: Next[] = [];
  /** A read that is under way, as the stream takes one at a time; or the one that failed, after which there is none. */
  #reading: Promise<void> | undefined;
  #isOver = false;
  /** Of the wait that is under way: it is over, or the stream is. */
  #wake: (() => void) | undefined;

  constructor(stream: Pick<MainStreamReader, 'next'>, end: StreamEnd) {
    this.#stream = stream;
    this.#end = end;
    // Once: a reaction for each of many waits would stay with the promise.
    void end.over.then(() => {
      this.#isOver = true;
      this.#wake?.();
    });
  }

  /** As MainStreamReader.next(). */
  async next(): Promise<Next> {
    if (this.#items.length === 0) await this.#readOne();
    return this.#items.shift();
  }

  /**
   * @param hasChannels whether the source has connected a channel; see blame.ts
   * @returns what `wait` gives
   * @throws what `wait` throws; MultifdError STREAM_ERRORS.format and the like for an item that is refused meanwhile, and
   *   ERR_MULTIFD_EOF and the like for an end of the stream before it is whole
   */
  async during<T>(wait: Promise<T>, hasChannels: () => boolean = () => true): Promise<T> {
    let waits = true;
    let timer: NodeJS.Timeout | undefined;
    const failed = new Promise<never>((_, reject) => {
      this.#readOn(() => waits, hasChannels).catch((error: Error) => {
        if (!waits) return;
        if (error instanceof MultifdError && error.code === STREAM_ERRORS.unsupported) reject(error);
        // An end, or a connection that broke: the wait itself says better what is missing, if it does.
        else timer = setTimeout(() => reject(error), Math.min(LINGER_MS, this.#end.stallTimeoutMs));
      });
    });
    try {
      return await Promise.race([wait, failed]);
    } finally {
      waits = false;
      clearTimeout(timer);
      this.#wake?.();
    }
  }

  async #readOn(waits: () => boolean, hasChannels: () => boolean): Promise<void> {
    while (waits()) {
      const last = this.#items.at(-1);
      if (this.#items.length > 0 && last === undefined) return this.#requireWhole();
      const bound = hasChannels() ? MAX_AHEAD : MAX_ZEROS_AHEAD;
      const isEnough = this.#items.length >= bound || (last !== undefined && isLast(last, hasChannels()));
      if (!isEnough || (this.#isOver && this.#items.length < MAX_BEHIND_END)) await this.#readOne();
      else if (this.#isOver) return;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** At the end of the stream. */
  #requireWhole(): void {
    const tail = this.#items.flatMap((item) => (item?.kind === 'tail' ? [item.raw] : []));
    const error = this.#end.tailError?.(tail);
    if (error !== undefined) throw error;
  }

  async #readOne(): Promise<void> {
    this.#reading ??= this.#stream.next().then((item) => {
      this.#items.push(item);
      this.#reading = undefined;
    });
    await this.#reading;
  }
}

/** All that comes behind ram's END, where that has begun to come. */
export async function* tailOf(
  first: TailItem,
  items: Pick<ItemsAhead, 'next'>,
): AsyncGenerator<Buffer, void, undefined> {
  for (let item: Next = first; item !== undefined; item = await items.next()) yield item.raw;
}

/**
 * Nothing is read behind RAM, the tail or the next sync point.
 *
 * @throws MultifdError STREAM_ERRORS.unsupported for a page of a source without multifd
 */
function isLast(item: MainItem, hasChannels: boolean): boolean {
  if (item.kind === 'page' && !hasChannels) throw multifdIsOff();
  switch (item.kind) {
    case 'zero':
      return hasChannels;
    case 'eos':
      return item.sync;
    case 'footer':
    case 'command':
    case 'section':
    case 'other-section':
    case 'other-data':
      return false;
    default:
      return true;
  }
}
