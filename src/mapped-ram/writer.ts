/**
 * Writes a mapped-ram file out of the items of a socket migration's main stream, as they come. Pages are not its
 * business: the channels write them at pages_offset + offset, at the same time and to the same file.
 *
 *     accept(item)                     the writer                          in the file
 *     header .. START                  gathers, writes 64 KiB at a time    at the begin
 *     mem-size                         lays out all blocks                 all entries, each at its place; the
 *                                                                          file's length up to RAM's end
 *     eos, footer, section, command    gathers again                       behind the last block's pages
 *     tail                             the same                            behind ram's END
 *     finish(bitmaps, scanner)         writes the bitmaps and the rest     bitmaps; the VM description again, with what
 *                                                                          the configuration has got; cut to its end
 *
 * The file must be new or empty: what is never written must read as zero. Until finish() has resolved it is no
 * migration (its bitmaps say that all RAM is zero), so it should not yet be under its name.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import { isZeroRange } from '../ram/zero-page.js';
import { type StreamBlock, encodeBlock, requirePageSize } from '../stream/block-list.js';
import { STREAM_ERRORS, quote, refusal } from '../stream/codes.js';
import { type Configuration, encodeU32 } from '../stream/configuration.js';
import { describeConfiguration } from '../stream/described-configuration.js';
import { DEFAULT_PAGE_SIZE, toldPageSize } from '../stream/machine.js';
import { type MappedRamBlock, encodeBitmap, layOut, mappedBlock } from './layout.js';
import { encodeMemSizeRecord, fileConfiguration, socketBlock, toFileStream } from '../stream/main-writer.js';
import { type WritableFile, writeAt } from '../stream/positioned-file.js';
import type { MainItem, MemSizeItem } from '../stream/records.js';
import type { TailScanner } from '../stream/vm-description.js';

const GATHER_BYTES = 65536;
/** Of a bitmap at once: 1 MiB. */
const BITMAP_PIECE_PAGES = 2 ** 23;
/** What a file system gives a byte that is written, as most do. */
const FILE_BLOCK_BYTES = 4096;
/** Of blocks that are small. */
const BITMAPS_A_TURN = 64;
/** Of the VM description's length, which stands before it. */
const LENGTH_BYTES = 4;

export interface MappedRamWriterOptions {
  /** Where the stream begins in the file, in bytes (default 0). */
  offset?: number;
  /** Target page size where the configuration does not tell it; in bytes, default 4096. */
  pageSize?: number;
}

export class MappedRamWriter {
  readonly #file: WritableFile;
  #pageSize: number;
  #configuration: Configuration | undefined;
  #blocks: MappedRamBlock[] | undefined;
  /** Where the gathered bytes go. */
  #position: number;
  readonly #gathered = Buffer.allocUnsafe(GATHER_BYTES);
  #gatheredBytes = 0;
  #tailOffset: number | undefined;
  #ended = false;
  #finished = false;

  constructor(file: WritableFile, options: MappedRamWriterOptions = {}) {
    const { offset = 0, pageSize = DEFAULT_PAGE_SIZE } = options;
    if (!Number.isSafeInteger(offset) || offset < 0) {
      throw refusal('file', 'offset of a mapped-ram file', offset, 'an integer of 0 or more');
    }
    requirePageSize(pageSize);
    this.#file = file;
    this.#pageSize = pageSize;
    this.#position = offset;
  }

  /** Where each block's pages and bitmap lie; undefined before the block list has been accepted. */
  get blocks(): readonly MappedRamBlock[] | undefined {
    return this.#blocks;
  }

  /** Where the next byte of the stream goes: in the end, the file's length. */
  get position(): number {
    return this.#position + this.#gatheredBytes;
  }

  /**
   * The next item, in the stream's order. ZERO, PAGE and MULTIFD_FLUSH leave no trace: their pages are the caller's.
   *
   * @throws MultifdError STREAM_ERRORS.io, .unsupported, .state
   */
  async accept(item: MainItem): Promise<void> {
    if (this.#finished)
      throw new MultifdError(STREAM_ERRORS.state, `mapped-ram file: ${item.kind} after finish()`);
    if (item.kind === 'mem-size') return this.#layOut(item);
    if (item.kind === 'configuration') {
      this.#configuration = item.configuration;
      this.#pageSize = toldPageSize(item.configuration) ?? this.#pageSize;
    }
    if (item.kind === 'eos' && item.section === 'end') this.#ended = true;
    if (item.kind === 'tail') this.#tailOffset ??= this.position;
    await this.#gather(toFileStream(item));
  }

  /**
   * Writes the bitmaps and what is left, and cuts the file to its length. Syncing, closing and renaming are the
   * caller's.
   *
   * @param bitmapOf the words (src/ram/bitmap.ts) of a block's pages that are in the file
   * @param scanner what has been pushed the same tail: the VM description's place. Without it that stays as it came
   * @returns the file's length in bytes
   * @throws MultifdError STREAM_ERRORS.io; STREAM_ERRORS.state before ram's END
   */
  async finish(bitmapOf: (block: MappedRamBlock) => Int32Array, scanner?: TailScanner): Promise<number> {
    if (this.#finished)
      throw new MultifdError(STREAM_ERRORS.state, 'mapped-ram file: finish() was called before');
    if (this.#blocks === undefined || !this.#ended) {
      throw new MultifdError(STREAM_ERRORS.state, "mapped-ram file: finish() before ram's END");
    }
    if (scanner !== undefined) await this.#describe(scanner);
    return this.keep(bitmapOf);
  }

  /** As finish(), of a stream that breaks off: what there is of it, and which pages are there. */
  async keep(bitmapOf: (block: MappedRamBlock) => Int32Array): Promise<number> {
    this.#finished = true;
    await this.#flush();
    for (const [index, block] of (this.#blocks ?? []).entries()) {
      if (index % BITMAPS_A_TURN === 0) await yieldToLoop();
      const words = bitmapOf(block);
      if (words.length < Math.ceil(block.pageCount / 32)) {
        const expected = Math.ceil(block.pageCount / 32);
        throw refusal('state', `words of the bitmap of ${quote(block.name)}`, words.length, expected);
      }
      await this.#writeBitmap(words, block);
    }
    await this.#truncate(this.#position);
    return this.#position;
  }

  /**
   * In pieces, and of each only those blocks of the file that have a bit; the others stay holes. A bitmap of 4 TiB has 128 MiB,
   * and with a bit here and there it would cost all of them.
   */
  async #writeBitmap(words: Int32Array, { pageCount, bitmapOffset }: MappedRamBlock): Promise<void> {
    for (let page = 0; page < pageCount; page += BITMAP_PIECE_PAGES) {
      if (page > 0) await yieldToLoop();
      const count = Math.min(BITMAP_PIECE_PAGES, pageCount - page);
      const bytes = encodeBitmap(words.subarray(page / 32, Math.ceil((page + count) / 32)), count);
      const position = bitmapOffset + page / 8;
      for (const [from, to] of rangesWithBits(bytes, position)) {
        await writeAt(this.#file, bytes.subarray(from, to), position + from);
      }
    }
  }

  /** The last thing in the stream is written again: nothing behind it moves. */
  async #describe(scanner: TailScanner): Promise<void> {
    const { json, jsonOffset, bytes, configuration, maxBytes } = scanner;
    const { position } = this;
    if (json === undefined || jsonOffset === undefined || position - bytes !== this.#tailOffset) return;
    const described = describeConfiguration(json, fileConfiguration(this.#configuration), configuration);
    if (described === json || described.length > maxBytes) return;
    await this.#flush();
    this.#position = this.#tailOffset + jsonOffset - LENGTH_BYTES;
    await this.#gather(encodeU32(described.length));
    await this.#gather(described);
  }

  async #layOut(item: MemSizeItem): Promise<void> {
    if (this.#blocks !== undefined) {
      throw new MultifdError(STREAM_ERRORS.state, 'mapped-ram file: a second block list');
    }
    // Without a configuration there is no such file.
    fileConfiguration(this.#configuration);
    await this.#gather(encodeMemSizeRecord(item.blocks));
    const blocks: MappedRamBlock[] = [];
    for (const block of item.blocks) blocks.push(await this.#layOutBlock(block));
    // Holes up to here: channels check that their block is within the file.
    await this.#truncate(this.#position);
    this.#blocks = blocks;
  }

  async #layOutBlock(block: StreamBlock): Promise<MappedRamBlock> {
    // Of what a socket migration says of a block, a file has the address; host page sizes go with postcopy.
    const entry = socketBlock(block);
    delete entry.hostPageSize;
    const bytes = encodeBlock(entry);
    const { header, next } = layOut(this.position + bytes.length, block.usedLength, this.#pageSize);
    const mapped = { ...entry, mapped: header };
    await this.#gather(encodeBlock(mapped));
    await this.#flush();
    this.#position = next;
    return mappedBlock(mapped, this.#pageSize);
  }

  /** Copies: an item's bytes are a view of a chunk, which many small items must not keep alive. */
  async #gather(bytes: Buffer): Promise<void> {
    if (this.#gatheredBytes + bytes.length > GATHER_BYTES) await this.#flush();
    if (bytes.length > GATHER_BYTES) {
      await writeAt(this.#file, bytes, this.#position);
      this.#position += bytes.length;
      return;
    }
    this.#gatheredBytes += bytes.copy(this.#gathered, this.#gatheredBytes);
  }

  async #flush(): Promise<void> {
    await writeAt(this.#file, this.#gathered.subarray(0, this.#gatheredBytes), this.#position);
    this.#position += this.#gatheredBytes;
    this.#gatheredBytes = 0;
  }

  async #truncate(length: number): Promise<void> {
    try {
      await this.#file.truncate(length);
    } catch (error) {
      throw MultifdError.wrap(error, STREAM_ERRORS.io, `length ${length} of the mapped-ram file`);
    }
  }
}

/** Runs of the file's blocks that are not all zero. @param position of `bytes` in the file */
function* rangesWithBits(bytes: Buffer, position: number): Generator<[from: number, to: number]> {
  let from = 0;
  let to = 0;
  for (let at = 0, next = 0; at < bytes.length; at = next) {
    next = Math.min(bytes.length, at + FILE_BLOCK_BYTES - ((position + at) % FILE_BLOCK_BYTES));
    if (isZeroRange(bytes, at, next - at)) continue;
    if (at > to) {
      if (to > from) yield [from, to];
      from = at;
    }
    to = next;
  }
  if (to > from) yield [from, to];
}
