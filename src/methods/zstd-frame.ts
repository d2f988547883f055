/**
 * The outside of zstd frames (RFC 8878), checked before any decoder sees a byte of them.
 *
 *     frame   28 b5 2f fd | descriptor | [window] | [dictionary id] | [content size] | blocks | [checksum, 4]
 *     block   3 bytes little-endian: size << 3 | type << 1 | last      type 0 raw, 1 RLE (1 byte), 2 compressed
 *     compressed block   literals' header | literals | count of sequences | modes | tables and sequences
 *
 * A real QEMU's frame begins in a channel's first payload and never ends; every other payload is bare blocks. The
 * walker therefore keeps its place from payload to payload.
 *
 * There are four decoders, of many versions: which takes a frame depends on the Node and the system that run. libzstd's releases differ
 * in what they let pass, and none has our bounds. Whatever can be told without decoding is therefore told here, in one way
 * for all: what is not a frame (skippable ones too, which QEMU refuses), headers and blocks that break a rule, frames and
 * payloads that cannot come to the bytes that they promise, and more blocks than an honest encoder makes.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { inBlocks } from './incompressible.js';
import { MAX_BLOCK_BYTES, MAX_WINDOW_BYTES } from './zstd-limits.js';
import { LITERALS_COMPRESSED, LITERALS_TREELESS, literalsSection } from './zstd-literals.js';

const ZSTD_MAGIC = 0xfd2fb528;
const RAW_WINDOW_LOG = 19;
const BLOCK_TYPE_RAW = 0;
const BLOCK_TYPE_RLE = 1;
const BLOCK_TYPE_COMPRESSED = 2;
const BLOCK_TYPE_RESERVED = 3;
/** Literals of 2 bytes and no sequences. libzstd 1.5.2 takes none below, which hold nothing. */
const MIN_COMPRESSED_BYTES = 3;
const MIN_MATCH_BYTES = 3;
const MIN_FOUR_STREAMS = 6;

/**
 * Blocks of a payload: at most this many, and one more for so many bytes of pages. libzstd cuts at 128 KiB and where a
 * packet ends, and at its highest levels each of these into at most 196 of at least 150 sequences, 450 bytes. A block
 * costs a decoder tables, whatever it holds.
 */
const SPARE_BLOCKS = 16;
const FEWEST_BYTES_A_BLOCK = 256;

/** A frame, for as long as it is open. */
export interface Frame {
  window: number;
  /** A block decodes to at most this many bytes. */
  blockBytes: number;
  checksum: boolean;
  contentSize: number | undefined;
  /** Bytes decoded of it; whoever decodes counts. */
  decoded: number;
  /** Has a block before brought tables that a later one may use again? */
  huffmanTable: boolean;
  sequenceTables: boolean;
}

/** A stretch of a payload that lies in one frame. */
export interface FramePart {
  frame: Frame;
  start: number;
  end: number;
  /** Does the frame begin at `start`? */
  begins: boolean;
  /** Where the blocks start: after the header, if the frame begins here. */
  blocks: number;
  /** Does the frame end at `end`? */
  ends: boolean;
  /** It decodes to this many bytes: raw and RLE blocks say their size, others hold what their header counts, at least. */
  minSize: number;
  maxSize: number;
  /** Has it raw blocks alone, and no checksum? */
  raw: boolean;
}

export class FrameWalker {
  /** The frame that an earlier payload, or the header before, has begun. */
  #frame: Frame | undefined;
  #blocksLeft = 0;

  /**
   * The parts of a payload, in order. A payload ends at a block's end (a flush) or at a frame's end.
   *
   * @param bytes that it must decode to
   * @throws MultifdError ERR_MULTIFD_DECOMPRESS
   */
  walk(payload: Buffer, bytes: number): FramePart[] {
    const parts: FramePart[] = [];
    const maxBlocks = SPARE_BLOCKS + Math.ceil(bytes / FEWEST_BYTES_A_BLOCK);
    this.#blocksLeft = maxBlocks;
    let min = 0;
    let max = 0;
    for (let at = 0; at < payload.length;) {
      const start = at;
      const begins = this.#frame === undefined;
      if (begins) at = this.#header(payload, at);
      const frame = this.#frame as Frame;
      const raw = !frame.checksum;
      const part: FramePart = {
        frame,
        start,
        end: at,
        begins,
        blocks: at,
        ends: false,
        minSize: 0,
        maxSize: 0,
        raw,
      };
      while (!part.ends && at < payload.length) {
        if (this.#blocksLeft-- === 0) {
          const expected = `at most ${maxBlocks} for ${bytes} bytes of pages`;
          throw refuse(receivedExpected('blocks', `more than ${maxBlocks}`, expected));
        }
        at = this.#block(payload, at, part);
      }
      part.end = at;
      checkContentSize(part);
      min += part.minSize;
      max += part.maxSize;
      parts.push(part);
    }
    if (min > bytes) throw wrongSize(min === max ? min : `at least ${min}`, bytes);
    if (max < bytes) throw wrongSize(min === max ? max : `at most ${max}`, bytes);
    return parts;
  }

  #header(payload: Buffer, at: number): number {
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
    let contentSize: number | undefined;
    if (sizeBytes > 0) {
      // 8 bytes: above 2^53 it rounds, and is far above any packet.
      contentSize =
        sizeBytes === 8
          ? payload.readUInt32LE(at) + payload.readUInt32LE(at + 4) * 2 ** 32
          : payload.readUIntLE(at, sizeBytes) + (sizeBytes === 2 ? 256 : 0);
      if (single) window = contentSize;
    }
    if (window > MAX_WINDOW_BYTES) {
      throw refuse(receivedExpected('frame window', window, `at most ${MAX_WINDOW_BYTES}`));
    }
    this.#frame = {
      window,
      blockBytes: Math.min(window, MAX_BLOCK_BYTES),
      checksum: (descriptor & 0x04) !== 0,
      contentSize,
      decoded: 0,
      huffmanTable: false,
      sequenceTables: false,
    };
    return at + sizeBytes;
  }

  #block(payload: Buffer, at: number, part: FramePart): number {
    const { frame } = part;
    need(payload, at, 3, 'block header');
    const header = payload.readUIntLE(at, 3);
    const type = (header >>> 1) & 3;
    const size = header >>> 3;
    if (type === BLOCK_TYPE_RESERVED) throw refuse('a block of the reserved type');
    if (size > frame.blockBytes)
      throw refuse(receivedExpected('block size', size, `at most ${frame.blockBytes}`));
    at += 3;
    const bytes = type === BLOCK_TYPE_RLE ? 1 : size;
    need(payload, at, bytes, 'block');
    if (type !== BLOCK_TYPE_RAW) part.raw = false;
    if (type === BLOCK_TYPE_COMPRESSED) {
      part.minSize += checkCompressed(payload, at, size, frame);
      part.maxSize += frame.blockBytes;
    } else {
      part.minSize += size;
      part.maxSize += size;
    }
    at += bytes;
    if ((header & 1) !== 0) {
      if (frame.checksum) {
        need(payload, at, 4, 'checksum');
        at += 4;
      }
      this.#frame = undefined;
      part.ends = true;
    }
    return at;
  }
}

/** @returns how many bytes it decodes to, at least */
function checkCompressed(payload: Buffer, at: number, size: number, frame: Frame): number {
  // One as large as what it decodes to is sent as it is.
  if (size < MIN_COMPRESSED_BYTES || size >= frame.blockBytes) {
    const expected = `${MIN_COMPRESSED_BYTES} to ${frame.blockBytes - 1}`;
    throw refuse(receivedExpected('compressed block, bytes', size, expected));
  }
  const end = at + size;
  const { type, headerBytes, regenerated, compressed, streams } = literalsSection(payload, at);
  at += headerBytes + compressed;
  if (at >= end) {
    throw refuse(receivedExpected('literals, bytes', headerBytes + compressed, `at most ${size - 1}`));
  }
  if (type === LITERALS_COMPRESSED || type === LITERALS_TREELESS) {
    const fewest = streams === 4 ? MIN_FOUR_STREAMS : 1;
    if (regenerated < fewest || compressed === 0) {
      throw refuse(
        receivedExpected(
          'compressed literals',
          `${regenerated} of ${compressed} bytes`,
          `at least ${fewest}`,
        ),
      );
    }
    if (type === LITERALS_COMPRESSED) frame.huffmanTable = true;
    else if (!frame.huffmanTable)
      throw refuse('literals with the table of a block before, and there is none');
  }
  let count = payload[at++];
  if (count > 127) {
    const more = count === 255 ? 2 : 1;
    if (at + more > end) throw refuse('a block that ends in its count of sequences');
    count = count === 255 ? payload.readUInt16LE(at) + 0x7f00 : ((count - 128) << 8) | payload[at];
    at += more;
    if (count === 0) throw refuse('no sequences, counted in two bytes');
  }
  if (count === 0) {
    if (at !== end) throw refuse(receivedExpected('bytes after the literals', end - at, 0));
  } else {
    // The modes, and at least a byte of sequences.
    if (end - at < 2) throw refuse('a block that ends before its sequences');
    const modes = payload[at];
    if ((modes & 3) !== 0) throw refuse('the reserved bits of a block are set');
    const repeats = [modes >>> 6, (modes >>> 4) & 3, (modes >>> 2) & 3].includes(3);
    if (repeats && !frame.sequenceTables)
      throw refuse('sequences with the tables of a block before, and there are none');
    frame.sequenceTables = true;
  }
  const min = regenerated + count * MIN_MATCH_BYTES;
  if (min > frame.blockBytes) {
    throw refuse(receivedExpected('block, bytes decoded', `at least ${min}`, `at most ${frame.blockBytes}`));
  }
  return min;
}

/** What the frame still has to come to bounds the part. */
function checkContentSize(part: FramePart): void {
  const { contentSize, decoded } = part.frame;
  if (contentSize === undefined) return;
  const left = contentSize - decoded;
  if (part.minSize > left || (part.ends && part.maxSize < left)) {
    const size = part.minSize > left ? part.minSize : part.maxSize;
    const exact = part.minSize === part.maxSize ? '' : part.minSize > left ? 'at least ' : 'at most ';
    throw refuse(receivedExpected('frame content, bytes', `${exact}${decoded + size}`, contentSize));
  }
  part.maxSize = Math.min(part.maxSize, left);
  if (part.ends) part.minSize = left;
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

export function refuse(why: string, cause?: unknown): MultifdError {
  return new MultifdError(
    'ERR_MULTIFD_DECOMPRESS',
    `zstd payload: ${why}`,
    cause === undefined ? {} : { cause },
  );
}

export function wrongSize(received: number | string, expected: number): MultifdError {
  const message = receivedExpected('zstd payload, bytes decoded', received, expected);
  return new MultifdError('ERR_MULTIFD_DECOMPRESS', message);
}
