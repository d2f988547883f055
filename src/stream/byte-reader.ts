/**
 * Pulls exact numbers of bytes out of a source that gives chunks as they come: a socket, a file, a capture.
 *
 *     source ---chunk---> [ consumed | recorded | unread ] ---exactly(n)---> a view
 *                                    ^ record()  ^ position
 *
 * Who owns the bytes: a chunk is the reader's from the moment the source gives it, and the source must not touch it
 * again. What the reader hands out are views, the consumer's for good: the reader never writes into bytes that it has
 * handed out.
 *
 * Bounds: nothing is read ahead but the chunk that brought the last byte asked for, and no call may ask for more than
 * `maxBytes`, so a peer makes the reader hold `maxBytes` and one chunk, or what is recorded and one chunk; whoever
 * records bounds that (main-stream.ts bounds every count before it reads).
 *
 * Turns: bytes that are here are given out in microtasks, and a megabyte may hold a quarter of a million messages. So whatever
 * reads by calls lets the event loop have its turn each TURN_CALLS of them, wherever the bytes come from.
 *
 * One consumer, one call at a time.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { STREAM_ERRORS, refusal } from './codes.js';

/** What a source is asked for at once. */
export const CHUNK_BYTES = 65536;
/** The largest piece of the main stream that is read at once is a command's data or a page of 64 KiB. */
const MAX_BYTES = 2 ** 20;
/** Some hundred messages or records, a few milliseconds of work; by choice. */
export const TURN_CALLS = 1024;
const TWO_32 = 2 ** 32;
const EMPTY = Buffer.alloc(0);

/** Some bytes, `max` at the most where the source can choose; null at the end. */
export type ReadFunction = (max: number) => Promise<Uint8Array | null>;

export interface ByteSource {
  read: ReadFunction;
  /** Files only: the next read() is from byte `position` on. */
  seek?(position: number): void;
}

export interface ByteReaderOptions {
  /** What is read, for messages (default `main stream`). */
  name?: string;
  /** The position of the source's first byte (default 0). */
  start?: number;
  /** The most that one call may ask for (default 1 MiB). */
  maxBytes?: number;
}

export class ByteReader {
  readonly name: string;
  readonly #source: ByteSource;
  readonly #maxBytes: number;
  /** Valid from 0 to #end; read up to #at. */
  #buffer: Buffer = EMPTY;
  #at = 0;
  #end = 0;
  /** Position of #buffer[0]. */
  #base: number;
  /** Is #buffer the reader's own, with room behind #end, or a chunk of the source? */
  #grown = false;
  #ended = false;
  /** Calls until the next turn. */
  #untilTurn = TURN_CALLS;
  /** Where recording began in #buffer; -1 when nothing is recorded. */
  #mark = -1;
  /** Recorded bytes from before a seek(). */
  #recorded: Buffer[] = [];

  constructor(
    source: AsyncIterable<Uint8Array> | ReadFunction | ByteSource,
    options: ByteReaderOptions = {},
  ) {
    // A stream of Node has a read() of its own, which is another thing.
    if (typeof source === 'function') this.#source = { read: source };
    else this.#source = Symbol.asyncIterator in source ? sourceOf(source) : source;
    this.name = options.name ?? 'main stream';
    this.#base = options.start ?? 0;
    this.#maxBytes = options.maxBytes ?? MAX_BYTES;
  }

  /** Of the next unread byte. */
  get position(): number {
    return this.#base + this.#at;
  }

  get canSeek(): boolean {
    return this.#source.seek !== undefined;
  }

  /** Unread bytes that are here already, without waiting. */
  get buffered(): Buffer {
    return this.#buffer.subarray(this.#at, this.#end);
  }

  /** Takes `count` of the bytes of `buffered`. */
  skipBuffered(count: number): void {
    if (count > this.#end - this.#at) throw new RangeError(`${count} bytes are not buffered`);
    this.#at += count;
  }

  /**
   * @param what what the bytes are, for messages
   * @throws MultifdError STREAM_ERRORS.eof, with the position
   */
  async exactly(count: number, what = 'bytes'): Promise<Buffer> {
    if (--this.#untilTurn === 0) await this.#turn();
    if (this.#end - this.#at < count) await this.#fill(count, what);
    this.#at += count;
    return this.#buffer.subarray(this.#at - count, this.#at);
  }

  async u8(what?: string): Promise<number> {
    return (await this.exactly(1, what))[0];
  }

  async u16(what?: string): Promise<number> {
    return (await this.exactly(2, what)).readUInt16BE(0);
  }

  async u32(what?: string): Promise<number> {
    return (await this.exactly(4, what)).readUInt32BE(0);
  }

  /** @throws MultifdError STREAM_ERRORS.limit above 2^53 - 1 */
  async u64(what = 'a number'): Promise<number> {
    const at = this.position;
    const bytes = await this.exactly(8, what);
    const value = bytes.readUInt32BE(0) * TWO_32 + bytes.readUInt32BE(4);
    if (value > Number.MAX_SAFE_INTEGER) {
      throw refusal(
        'limit',
        `${this.name} at byte ${at}: ${what}`,
        `0x${bytes.toString('hex')}`,
        'at most 2^53 - 1',
      );
    }
    return value;
  }

  /** The next `count` bytes, fewer only at the end, without taking them. */
  async peek(count: number): Promise<Buffer> {
    if (--this.#untilTurn === 0) await this.#turn();
    if (this.#end - this.#at < count) await this.#pull(count);
    return this.#buffer.subarray(this.#at, Math.min(this.#end, this.#at + count));
  }

  /** Chunk by chunk to the end. */
  async *rest(): AsyncGenerator<Buffer, void, undefined> {
    for (;;) {
      if (this.#at === this.#end) await this.#pull(1);
      if (this.#at === this.#end) return;
      const chunk = this.buffered;
      this.#at = this.#end;
      yield chunk;
    }
  }

  /** From here on all bytes that are taken are kept, until recorded() gives them. */
  record(): void {
    this.#mark = this.#at;
    this.#recorded = [];
  }

  /** All bytes taken since record(); without the bytes that seek() passed over. */
  recorded(): Buffer {
    if (this.#mark < 0) return EMPTY;
    const last = this.#buffer.subarray(this.#mark, this.#at);
    const pieces = this.#recorded;
    this.#mark = -1;
    this.#recorded = [];
    return pieces.length === 0 ? last : Buffer.concat([...pieces, last]);
  }

  /**
   * Goes on at `position`, which must not lie before the present one: whoever follows offsets of a file that it does
   * not trust ends.
   */
  seek(position: number): void {
    if (position < this.position) {
      throw refusal('format', `${this.name}: position to go on at`, position, `at least ${this.position}`);
    }
    if (position - this.#base <= this.#end && this.#mark < 0) {
      this.#at = position - this.#base;
      return;
    }
    if (this.#source.seek === undefined) {
      throw new MultifdError(STREAM_ERRORS.unsupported, `${this.name}: cannot seek to byte ${position}`);
    }
    if (this.#mark >= 0) this.#recorded.push(this.#buffer.subarray(this.#mark, this.#at));
    this.#source.seek(position);
    this.#ended = false;
    this.#adopt(EMPTY, position);
  }

  async #turn(): Promise<void> {
    this.#untilTurn = TURN_CALLS;
    await yieldToLoop();
  }

  async #fill(count: number, what: string): Promise<void> {
    await this.#pull(count);
    const have = this.#end - this.#at;
    if (have >= count) return;
    throw new MultifdError(
      STREAM_ERRORS.eof,
      receivedExpected(`${this.name} ended at byte ${this.position + have}, in ${what}`, have, count),
    );
  }

  /** Reads until `count` bytes are unread, or the source has ended. */
  async #pull(count: number): Promise<void> {
    if (count > this.#maxBytes) throw refusal('limit', `${this.name}: bytes at once`, count, this.#maxBytes);
    while (this.#end - this.#at < count && !this.#ended) {
      const chunk = await this.#source.read(CHUNK_BYTES);
      if (chunk === null) this.#ended = true;
      else if (chunk.length > 0) this.#append(asBuffer(chunk));
    }
  }

  #append(chunk: Buffer): void {
    const from = this.#mark >= 0 ? this.#mark : this.#at;
    const kept = this.#end - from;
    if (kept === 0) {
      this.#adopt(chunk, this.position);
      return;
    }
    if (!this.#grown || this.#buffer.length - this.#end < chunk.length) {
      // Doubled, so that a peer that sends byte by byte costs each byte twice at the most.
      const grown = Buffer.allocUnsafe(Math.max(2 * (kept + chunk.length), 1024));
      this.#buffer.copy(grown, 0, from, this.#end);
      this.#buffer = grown;
      this.#grown = true;
      this.#base += from;
      this.#at -= from;
      this.#end = kept;
      if (this.#mark >= 0) this.#mark = 0;
    }
    chunk.copy(this.#buffer, this.#end);
    this.#end += chunk.length;
  }

  #adopt(chunk: Buffer, position: number): void {
    this.#buffer = chunk;
    this.#grown = false;
    this.#base = position;
    this.#at = 0;
    this.#end = chunk.length;
    if (this.#mark >= 0) this.#mark = 0;
  }
}

/** A source out of anything that can be iterated: a socket, a stream, a generator. */
export function sourceOf(chunks: AsyncIterable<Uint8Array>): ByteSource {
  const iterator = chunks[Symbol.asyncIterator]();
  return {
    read: async () => {
      const result = await iterator.next();
      return result.done === true ? null : result.value;
    },
  };
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
