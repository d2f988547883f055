/**
 * The outside of zstd frames (RFC 8878): enough to tell where a frame ends and what it promises, without decoding.
 *
 *     frame   28 b5 2f fd | descriptor | [window] | [dictionary id] | [content size] | blocks | [checksum, 4]
 *     block   3 bytes little-endian: size << 3 | type << 1 | last      type 0 raw, 1 RLE (1 byte), 2 compressed
 *
 * A real QEMU's frame begins in a channel's first payload and never ends; every other payload is bare blocks. The
 * walker therefore keeps its place from payload to payload.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { inBlocks } from './incompressible.js';

const ZSTD_MAGIC = 0xfd2fb528;
/**
 * QEMU's highest level, 20, has this window. Its decoder takes 2^27, libzstd's default; here the window is memory as soon
 * as a peer names it, on every channel.
 */
const MAX_WINDOW_BYTES = 2 ** 25;
const MAX_BLOCK_BYTES = 2 ** 17;
const RAW_WINDOW_LOG = 19;
const BLOCK_TYPE_RAW = 0;
const BLOCK_TYPE_RLE = 1;
const BLOCK_TYPE_COMPRESSED = 2;
const BLOCK_TYPE_RESERVED = 3;

/** A stretch of a payload that lies in one frame. */
export interface FramePart {
  start: number;
  end: number;
  /** Does the frame begin at `start`? */
  begins: boolean;
  /** Where the blocks start: after the header, if the frame begins here. */
  blocks: number;
  /** Does the frame end at `end`? */
  ends: boolean;
  /** Content size that the frame's header gives; known only if `begins`. */
  contentSize: number | undefined;
  /** The part decodes to at most this many bytes: raw and RLE blocks say their size, others hold up to 128 KiB. */
  maxSize: number;
  /** Has it raw blocks alone, and no checksum? */
  raw: boolean;
}

export class FrameWalker {
  /** Inside a frame that an earlier payload began. */
  #open = false;
  #checksum = false;

  /**
   * The parts of a payload, in order. A payload ends at a block's end (a flush) or at a frame's end.
   *
   * @throws MultifdError ERR_MULTIFD_DECOMPRESS
   */
  walk(payload: Buffer): FramePart[] {
    const parts: FramePart[] = [];
    let at = 0;
    while (at < payload.length) {
      const part: FramePart = {
        start: at,
        end: at,
        begins: false,
        blocks: at,
        ends: false,
        contentSize: undefined,
        maxSize: 0,
        raw: true,
      };
      if (!this.#open) {
        part.begins = true;
        at = this.#header(payload, at, part);
      }
      part.blocks = at;
      while (this.#open && at < payload.length) at = this.#block(payload, at, part);
      part.end = at;
      parts.push(part);
    }
    return parts;
  }

  #header(payload: Buffer, at: number, part: FramePart): number {
    need(payload, at, 5, 'frame header');
    const magic = payload.readUInt32LE(at);
    if (magic !== ZSTD_MAGIC) {
      throw refuse(receivedExpected('frame magic', magic.toString(16), ZSTD_MAGIC.toString(16)));
    }
    const descriptor = payload[at + 4];
    const single = (descriptor & 0x20) !== 0;
    if ((descriptor & 0x08) !== 0) throw refuse('the reserved bit of the frame header is set');
    const dictionaryBytes = [0, 1, 2, 4][descriptor & 3];
    const sizeFlag = descriptor >>> 6;
    const sizeBytes = sizeFlag === 0 ? (single ? 1 : 0) : 1 << sizeFlag;
    at += 5;
    need(payload, at, (single ? 0 : 1) + dictionaryBytes + sizeBytes, 'frame header');
    let window = 0;
    if (!single) {
      const byte = payload[at++];
      window = 2 ** (10 + (byte >>> 3));
      window += (window / 8) * (byte & 7);
    }
    if (dictionaryBytes > 0 && payload.readUIntLE(at, dictionaryBytes) !== 0)
      throw refuse('a dictionary is needed');
    at += dictionaryBytes;
    if (sizeBytes > 0) {
      // 8 bytes: above 2^53 it rounds, and is far above any packet.
      const size =
        sizeBytes === 8
          ? payload.readUInt32LE(at) + payload.readUInt32LE(at + 4) * 2 ** 32
          : payload.readUIntLE(at, sizeBytes) + (sizeBytes === 2 ? 256 : 0);
      part.contentSize = size;
      if (single) window = size;
    }
    if (window > MAX_WINDOW_BYTES) {
      throw refuse(receivedExpected('frame window', window, `at most ${MAX_WINDOW_BYTES}`));
    }
    this.#open = true;
    this.#checksum = (descriptor & 0x04) !== 0;
    if (this.#checksum) part.raw = false;
    return at + sizeBytes;
  }

  #block(payload: Buffer, at: number, part: FramePart): number {
    need(payload, at, 3, 'block header');
    const header = payload.readUIntLE(at, 3);
    const type = (header >>> 1) & 3;
    const size = header >>> 3;
    if (type === BLOCK_TYPE_RESERVED) throw refuse('a block of the reserved type');
    if (type !== BLOCK_TYPE_RAW) part.raw = false;
    part.maxSize += type === BLOCK_TYPE_COMPRESSED ? MAX_BLOCK_BYTES : size;
    if (size > MAX_BLOCK_BYTES)
      throw refuse(receivedExpected('block size', size, `at most ${MAX_BLOCK_BYTES}`));
    at += 3;
    const bytes = type === BLOCK_TYPE_RLE ? 1 : size;
    need(payload, at, bytes, 'block');
    at += bytes;
    if ((header & 1) !== 0) {
      if (this.#checksum) {
        need(payload, at, 4, 'checksum');
        at += 4;
      }
      this.#open = false;
      part.ends = true;
    }
    return at;
  }
}

/**
 * A frame of raw blocks. Its window is that of level 1, so that a decoder keeps the buffers that it has.
 *
 * @returns headers and the bytes themselves, not copied
 */
export function rawFrame(pieces: readonly Uint8Array[]): Uint8Array[] {
  const header = Buffer.alloc(6);
  header.writeUInt32LE(ZSTD_MAGIC);
  header[5] = (RAW_WINDOW_LOG - 10) << 3;
  const blocks = inBlocks(pieces, MAX_BLOCK_BYTES, (bytes, last) => {
    const block = Buffer.alloc(3);
    block.writeUIntLE((bytes << 3) | (BLOCK_TYPE_RAW << 1) | (last ? 1 : 0), 0, 3);
    return block;
  });
  return [header, ...blocks];
}

/** @returns the bytes of a part that is raw, which must fit `pages` from `at` on */
export function copyRawFrame(payload: Buffer, part: FramePart, pages: Buffer, at: number): number {
  let filled = 0;
  for (let from = part.blocks, last = false; !last;) {
    const header = payload.readUIntLE(from, 3);
    const size = header >>> 3;
    payload.copy(pages, at + filled, from + 3, from + 3 + size);
    filled += size;
    from += 3 + size;
    last = (header & 1) !== 0;
  }
  return filled;
}

function need(payload: Buffer, at: number, bytes: number, what: string): void {
  if (payload.length - at < bytes) {
    throw refuse(receivedExpected(`${what}, bytes`, payload.length - at, `at least ${bytes}`));
  }
}

function refuse(why: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_DECOMPRESS', `zstd payload: ${why}`);
}
