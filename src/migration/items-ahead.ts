/**
 * The items of a main stream, one after the other; and while a sync point is waited for, those behind it that are here
 * already.
 *
 *     items        during(sync)                                       next()
 *     EOS, sync    waits for the channels                             gives it
 *     footer         read meanwhile, kept                             gives it, after the wait
 *     PAGE           of a source without multifd: refused
 *     START vfio     refused: the wait is over, with that error
 *
 * A sync point waits for threads that load and for bytes on all channels. A source without return path knows nothing of
 * that: when it has written all it takes its migration as completed and gives its guest up. So what will be refused
 * should be refused as soon as it is here.
 *
 * Bounds: MAX_AHEAD items of 64 KiB, nothing behind the next sync point, and nothing behind RAM, unless no channel has
 * come in: then up to MAX_ZEROS_AHEAD items, ZERO records among them, as far as a PAGE.
 */
import { MultifdError } from '../errors.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import type { MainStreamReader } from '../stream/main-stream.js';
import type { MainItem, TailItem } from '../stream/records.js';
import { multifdIsOff } from './blame.js';

const MAX_AHEAD = 16;
/** While no channel has come in: as read from a socket these are the ZERO records of some gigabytes. */
const MAX_ZEROS_AHEAD = 128;

type Next = MainItem | undefined;

export class ItemsAhead {
  readonly #stream: Pick<MainStreamReader, 'next'>;
  readonly #items: Next[] = [];
  /** A read that is under way, as the stream takes one at a time; or the one that failed, after which there is none. */
  #reading: Promise<void> | undefined;

  constructor(stream: Pick<MainStreamReader, 'next'>) {
    this.#stream = stream;
  }

  /** As MainStreamReader.next(). */
  async next(): Promise<Next> {
    if (this.#items.length === 0) await this.#readOne();
    return this.#items.shift();
  }

  /**
   * @param hasChannels whether the source has connected a channel; see blame.ts
   * @returns what `wait` gives
   * @throws what `wait` throws; MultifdError STREAM_ERRORS.format and the like for an item that is refused meanwhile
   */
  async during<T>(wait: Promise<T>, hasChannels: () => boolean = () => true): Promise<T> {
    const refused = new Promise<never>((_, reject) => {
      this.#readOn(wait, hasChannels).catch((error: unknown) => {
        // An end, or a connection that broke: the wait itself says better what is missing, and next() says the rest.
        if (error instanceof MultifdError && error.code === STREAM_ERRORS.unsupported) reject(error);
      });
    });
    return Promise.race([wait, refused]);
  }

  async #readOn(wait: Promise<unknown>, hasChannels: () => boolean): Promise<void> {
    let over = false;
    const end = (): void => void (over = true);
    wait.then(end, end);
    while (!over && this.#items.length < (hasChannels() ? MAX_AHEAD : MAX_ZEROS_AHEAD)) {
      await this.#readOne();
      const item = this.#items.at(-1);
      if (item?.kind === 'page' && !hasChannels()) throw multifdIsOff();
      if (item?.kind === 'zero' && !hasChannels()) continue;
      if (item === undefined || isLast(item)) return;
    }
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

/** Nothing is read behind RAM, the tail or the next sync point. */
function isLast(item: MainItem): boolean {
  switch (item.kind) {
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
