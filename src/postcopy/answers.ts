/**
 * What a destination says while and before its guest runs, on the return path. All integers big-endian; the messages' frame is
 * in stream/return-path.ts.
 *
 *     type              data
 *       2  PONG         u32, as in the PING
 *       3  REQ_PAGES_ID u64 start, u32 length, u8 n, n bytes block      one host page of it, as each QEMU asks
 *       4  REQ_PAGES    u64 start, u32 length                           of the block that was asked for last
 *       5  RECV_BITMAP  u8 n, n bytes block; then, in no message: u64 bytes, the bitmap (little-endian, a bit a page of the
 *                       target, bytes a multiple of 8), u64 0123456789abcdef
 *       6  RESUME_ACK   u32 1
 *       1  SHUT         u32 0: all is there; not before PONG 3, or RESUME_ACK
 *
 * The peer is not trusted: an address is held against its block, and a request is one host page and no more, so that a few
 * bytes cost no more than a few steps; what nobody asked for is refused, and nothing is kept but the bitmaps that are waited
 * for, whose sizes are known here.
 */
import { MultifdError, hex32 } from '../errors.js';
import type { ByteReader } from '../stream/byte-reader.js';
import { quote, refusal } from '../stream/codes.js';
import {
  RP_RECV_BITMAP,
  RP_REQ_PAGES,
  RP_REQ_PAGES_ID,
  RP_RESUME_ACK,
  readReturnPath,
} from '../stream/return-path.js';
import type { PageMap } from './page-map.js';
import { PONG_LOADED } from './stream.js';

const RESUME_ACK_VALUE = 1;
const BITMAP_ENDING = 0x0123456789abcdefn;
const BITMAP_CHUNK = 2 ** 16;
const REQ_BYTES = 12;

export interface PostcopyHooks {
  /** @param page of the target: the first of a host page, within the block */
  request: (map: PageMap, page: number) => Promise<void>;
  pong: (value: number) => void;
  /** A block's bitmap of pages that the destination has. */
  bitmap: (map: PageMap, bytes: Buffer) => void;
  resumed: () => void;
}

export class PostcopyAnswers {
  /** The status; rejects if the destination goes without one, or does what is not allowed. */
  readonly shut: Promise<number>;
  readonly #maps: ReadonlyMap<string, PageMap>;
  readonly #hooks: PostcopyHooks;
  readonly #bitmapsDue = new Set<string>();
  /** The block that was asked for last. */
  #last: PageMap | undefined;
  #mayRequest = false;
  #resumeDue = false;
  #shutDue = false;
  /** The devices' package is loaded, now or before a recovery, and the guest told to run. */
  #isLoaded = false;

  constructor(reader: ByteReader, maps: ReadonlyMap<string, PageMap>, hooks: PostcopyHooks) {
    this.#maps = maps;
    this.#hooks = hooks;
    this.shut = this.#read(reader);
    this.shut.catch(() => {});
  }

  /** From here on the destination may ask for pages. */
  expectRequests(): void {
    this.#mayRequest = true;
  }

  /** From here on it may send the bitmap of each block. */
  expectBitmaps(): void {
    for (const name of this.#maps.keys()) this.#bitmapsDue.add(name);
  }

  expectResume(): void {
    this.#resumeDue = true;
    // It begins anew, and names its block.
    this.#last = undefined;
  }

  /** From here on it may come to have all. */
  expectShut(): void {
    this.#shutDue = true;
  }

  async #read(reader: ByteReader): Promise<number> {
    for await (const message of readReturnPath(reader)) {
      if (message.kind === 'pong') {
        if (message.value === PONG_LOADED && this.#mayRequest) this.#isLoaded = true;
        this.#hooks.pong(message.value);
      }
      if (message.kind === 'shut') {
        if (message.status === 0) this.#requireAll();
        return message.status;
      }
      if (message.kind !== 'other') continue;
      const { type, data } = message;
      if (type === RP_REQ_PAGES || type === RP_REQ_PAGES_ID) await this.#request(type, data);
      else if (type === RP_RECV_BITMAP) await this.#bitmap(reader, data);
      else if (type === RP_RESUME_ACK) this.#resumeAck(data);
      else throw refusal('returnPath', 'return path: message', `type ${type}`, 'type 1 to 7');
    }
    throw new MultifdError(
      'ERR_MULTIFD_CONNECTION',
      'the destination closed the main stream before it had all pages',
    );
  }

  /** A guest that has not been told to run, or that lacks a page, is not done. */
  #requireAll(): void {
    const what = "the destination's SHUT 0";
    if (!this.#shutDue) throw refusal('returnPath', what, 'before the last page', 'after it');
    if (!this.#isLoaded) throw refusal('returnPath', what, `before PONG ${PONG_LOADED}`, 'after it');
  }

  async #request(type: number, data: Buffer): Promise<void> {
    const isNamed = type === RP_REQ_PAGES_ID;
    const what = isNamed ? 'REQ_PAGES_ID' : 'REQ_PAGES';
    if (!this.#mayRequest) throw refusal('returnPath', what, 'before POSTCOPY_LISTEN', 'after it');
    const expected = isNamed ? REQ_BYTES + 1 + (data.length > REQ_BYTES ? data[REQ_BYTES] : 0) : REQ_BYTES;
    if (data.length !== expected) throw refusal('returnPath', `bytes of ${what}`, data.length, expected);
    if (isNamed) {
      const name = data.toString('latin1', REQ_BYTES + 1);
      this.#last = this.#maps.get(name);
      if (this.#last === undefined)
        throw refusal('returnPath', `${what}: block`, quote(name), 'one of the block list');
    }
    const map = this.#last;
    if (map === undefined) throw refusal('returnPath', what, 'before any REQ_PAGES_ID', 'after one');
    const start = Number(data.readBigUInt64BE(0));
    const length = data.readUInt32BE(8);
    const { usedLength, name } = map.block;
    const hostPageSize = map.hostPages * map.pageSize;
    if (start % hostPageSize !== 0 || length !== hostPageSize) {
      const received = `${length} bytes from ${start} on`;
      throw refusal(
        'returnPath',
        `${what} of ${quote(name)}`,
        received,
        `one whole page of ${hostPageSize} bytes, as each QEMU asks`,
      );
    }
    if (start + length > usedLength) {
      throw refusal('returnPath', `${what} of ${quote(name)}: end`, start + length, `at most ${usedLength}`);
    }
    await this.#hooks.request(map, start / map.pageSize);
  }

  async #bitmap(reader: ByteReader, data: Buffer): Promise<void> {
    const name = data.toString('latin1', 1);
    const map = this.#maps.get(name);
    if (map === undefined || data[0] !== data.length - 1 || !this.#bitmapsDue.delete(name)) {
      const expected = this.#bitmapsDue.size === 0 ? 'none' : 'one of a block that was asked for';
      throw refusal('returnPath', 'RECV_BITMAP', `that of ${quote(name)}`, expected);
    }
    const size = 8 * Math.ceil(map.block.pageCount / 64);
    const bytes = await reader.u64("a bitmap's size");
    if (bytes !== size) throw refusal('returnPath', `RECV_BITMAP of ${quote(name)}: bytes`, bytes, size);
    const bitmap = Buffer.allocUnsafe(size);
    for (let at = 0; at < size; at += BITMAP_CHUNK) {
      (await reader.exactly(Math.min(BITMAP_CHUNK, size - at), 'a bitmap')).copy(bitmap, at);
    }
    const ending = (await reader.exactly(8, "a bitmap's end")).readBigUInt64BE(0);
    if (ending !== BITMAP_ENDING) {
      const expected = `0x0${BITMAP_ENDING.toString(16)}`;
      throw refusal('returnPath', `RECV_BITMAP of ${quote(name)}: end`, `0x${ending.toString(16)}`, expected);
    }
    this.#hooks.bitmap(map, bitmap);
  }

  #resumeAck(data: Buffer): void {
    if (!this.#resumeDue) throw refusal('returnPath', 'RESUME_ACK', 'one that nobody asked for', 'none');
    this.#resumeDue = false;
    const value = data.length === 4 ? data.readUInt32BE(0) : NaN;
    if (value !== RESUME_ACK_VALUE) {
      throw refusal('returnPath', 'RESUME_ACK', hex32(value), hex32(RESUME_ACK_VALUE));
    }
    this.#isLoaded = true;
    this.#hooks.resumed();
  }
}
