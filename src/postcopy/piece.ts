/**
 * A piece of the main stream: some pages of one block as records, read from the file into the places where they go out, so
 * that a piece is one read and one write.
 *
 *     room for the first record's head     page      head of the next     page      ...
 *     [ ...... 8 bytes, block's name ]     4096      8 bytes              4096
 *              ^ begins here, or without the name, as is known only when it goes out
 *
 *     absent pages (asked for, or of a host page that has others): ZERO records, 9 bytes each, between the others
 *
 * Pages of the file that lie between those that are wanted are read as well where they are few, into a sink: a system call
 * costs more. A sparse file's holes are read as zeros, and cost next to nothing.
 *
 * Who owns the bytes: the piece, from fill() to the end of the write; then it is filled again.
 */
import type { FileHandle } from 'node:fs/promises';
import { MultifdError } from '../errors.js';
import { alignedBuffer } from '../ram/aligned.js';
import { readDirect } from '../ram/direct-io.js';
import { STREAM_ERRORS, quote } from '../stream/codes.js';
import { encodeName } from '../stream/configuration.js';
import { RAM_SAVE_FLAG_CONTINUE, RAM_SAVE_FLAG_PAGE, RAM_SAVE_FLAG_ZERO } from '../stream/records.js';
import type { PackedFile } from '../packed/packed-file.js';
import type { ReadableFile } from '../stream/positioned-file.js';
import type { PageMap } from './page-map.js';
import { PIECE_BYTES, type Batch } from './schedule.js';

/** Absent pages of 4 KiB between two others that are read with them, by choice. */
const MOST_BETWEEN = 2 ** 16;
/** One read, with what lies between. */
const MOST_AT_ONCE = 2 ** 20;
const RECORD_BYTES = 8;
/** u64, u8 length, name */
const HEAD_ROOM = RECORD_BYTES + 1 + 255;
const TWO_32 = 2 ** 32;

/** The file, plain or packed, and the same again with O_DIRECT where pages are to be read by it in place. */
export interface PageFile {
  content: ReadableFile & Pick<PackedFile, 'readv'>;
  direct: FileHandle | undefined;
}

export class Piece {
  readonly #pageSize: number;
  readonly #bytes: Buffer;
  /** Pages' places in `#bytes`, kept: the same again in almost every piece. */
  readonly #views: Uint8Array[] = [];
  readonly #sink: Buffer;
  /** For O_DIRECT, which reads to no other places. */
  readonly #room: Buffer | undefined;
  /** What is in it; undefined while it is free. */
  batch: Batch | undefined;
  isReady = false;
  /** Does a page of it keep somebody waiting? */
  isUrgent = false;
  #end = HEAD_ROOM;
  /** Of the first record. */
  #offset = 0;
  #flags = 0;

  constructor(pageSize: number, sink: Buffer, isDirect: boolean) {
    const pages = PIECE_BYTES / pageSize;
    this.#pageSize = pageSize;
    this.#bytes = Buffer.allocUnsafeSlow(HEAD_ROOM + pages * (RECORD_BYTES + pageSize));
    this.#sink = sink;
    if (isDirect) this.#room = alignedBuffer(MOST_AT_ONCE);
  }

  /** What lies between pages is thrown away here, by all pieces. */
  static sink(): Buffer {
    return Buffer.allocUnsafeSlow(MOST_BETWEEN);
  }

  /**
   * @throws MultifdError STREAM_ERRORS.io, and .eof for a file that has become shorter
   */
  async fill(batch: Batch, file: PageFile): Promise<void> {
    const { map, pages } = batch;
    const spans: { page: number; views: Uint8Array[] }[] = [];
    let span: Uint8Array[] = [];
    let spanFrom = 0;
    let spanEnd = 0;
    let at = HEAD_ROOM;
    for (let i = 0; i < pages.length; i++) {
      const page = pages[i];
      const isPresent = map.isPresent(page);
      const flags = isPresent ? RAM_SAVE_FLAG_PAGE : RAM_SAVE_FLAG_ZERO;
      if (i === 0) {
        this.#offset = page * this.#pageSize;
        this.#flags = flags;
      } else at = this.#record(at, page * this.#pageSize, flags | RAM_SAVE_FLAG_CONTINUE);
      if (!isPresent) {
        this.#bytes[at++] = 0;
        continue;
      }
      const between = (page - spanEnd) * this.#pageSize;
      if (
        span.length === 0 ||
        between > MOST_BETWEEN ||
        (page + 1 - spanFrom) * this.#pageSize > MOST_AT_ONCE
      ) {
        span = [];
        spans.push({ page, views: span });
        spanFrom = page;
      } else if (between > 0) span.push(this.#sink.subarray(0, between));
      span.push(this.#view(i, at));
      spanEnd = page + 1;
      at += this.#pageSize;
    }
    this.#end = at;
    if (file.direct === undefined)
      await Promise.all(spans.map(({ page, views }) => this.#read(file, map, page, views)));
    // The room is for one.
    else for (const { page, views } of spans) await this.#read(file, map, page, views);
  }

  /** @param continued is the block that of the record before it? */
  bytes(continued: boolean): Buffer {
    const { map } = this.batch as Batch;
    const name = continued ? undefined : encodeName(map.block.name);
    const from = HEAD_ROOM - RECORD_BYTES - (name?.length ?? 0);
    this.#record(from, this.#offset, this.#flags | (continued ? RAM_SAVE_FLAG_CONTINUE : 0));
    name?.copy(this.#bytes, from + RECORD_BYTES);
    return this.#bytes.subarray(from, this.#end);
  }

  #record(at: number, address: number, flags: number): number {
    const high = Math.floor(address / TWO_32);
    this.#bytes.writeUInt32BE(high, at);
    return this.#bytes.writeUInt32BE(address - high * TWO_32 + flags, at + 4);
  }

  #view(index: number, at: number): Uint8Array {
    const known = this.#views[index];
    if (known !== undefined && known.byteOffset - this.#bytes.byteOffset === at) return known;
    return (this.#views[index] = this.#bytes.subarray(at, at + this.#pageSize));
  }

  async #read({ content, direct }: PageFile, map: PageMap, page: number, views: Uint8Array[]): Promise<void> {
    const { block } = map;
    const position = block.pagesOffset + page * this.#pageSize;
    let length = 0;
    for (const view of views) length += view.length;
    const done =
      direct === undefined
        ? await readViews(content, views, length, position)
        : await this.#readDirect(direct, views, length, position);
    if (done === length) return;
    const what = `mapped-ram file: pages of ${quote(block.name)} at byte ${position}`;
    const message = `${what}: received ${done} bytes, expected ${length}: the file has become shorter`;
    throw new MultifdError(STREAM_ERRORS.eof, message);
  }

  /** Past the page cache: into memory that suits, and from there to where the views are. */
  async #readDirect(
    file: FileHandle,
    views: Uint8Array[],
    length: number,
    position: number,
  ): Promise<number> {
    const room = this.#room as Buffer;
    const done = await readDirect(file, room, length, position);
    let at = 0;
    for (const view of views) {
      view.set(room.subarray(at, at + view.length));
      at += view.length;
    }
    return done;
  }
}

/** @returns as many of `length` bytes as the file has there */
async function readViews(
  content: PageFile['content'],
  views: readonly Uint8Array[],
  length: number,
  position: number,
): Promise<number> {
  let done = 0;
  let rest = views;
  try {
    while (done < length) {
      const { bytesRead } = await content.readv(rest, position + done);
      if (bytesRead === 0) break;
      done += bytesRead;
      if (done < length) rest = behind(views, done);
    }
  } catch (error) {
    throw MultifdError.wrap(error, STREAM_ERRORS.io, `read at ${position + done}`);
  }
  return done;
}

/** What is left of the views behind their first `done` bytes. */
function behind(views: readonly Uint8Array[], done: number): Uint8Array[] {
  const rest: Uint8Array[] = [];
  let skip = done;
  for (const view of views) {
    if (skip < view.length) rest.push(view.subarray(skip));
    skip = Math.max(0, skip - view.length);
  }
  return rest;
}
