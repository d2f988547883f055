/**
 * Decodes the blocks of zstd frames (RFC 8878), straight into the pages, with the frame's history beside them.
 *
 * It is the decoder of all frames that no native one gets: on a Node without zstd of its own, and without libzstd, the endless
 * frame of a real QEMU, see zstd.ts. All its memory is made once: 400 KiB, and a history of the frame's window.
 * A block costs what its bytes cost, however small it is and however large the window. As strict as libzstd 1.5.7, and where
 * that depends on its state of the moment (an offset beyond the window that is still in its buffer), as the RFC.
 *
 *     pages     | of a frame before | #begin: this frame, this payload | ... at
 *     history   ring: what the frame has decoded in payloads before, the last `window` bytes of it
 *
 * Long, and one thing: a block's loops share its tables, the history and the place in the pages. Entropy codes, literals'
 * headers and frames are files beside it.
 */
import { MAX_BLOCK_BYTES, corrupt } from './zstd-limits.js';
import { FseTable, HuffmanTable } from './zstd-entropy.js';
import { XxHash64 } from './xxhash.js';
import { LITERALS_COMPRESSED, LITERALS_RAW, LITERALS_RLE, literalsSection } from './zstd-literals.js';
import type { Frame } from './zstd-frame.js';

/** Zeroes, or bytes of no meaning, around what a loop may read by words. */
const PAD = 16;
/** A copy of this many bytes or more is the engine's. */
const LONG_COPY = 48;

/**
 * libzstd's fast loop reads four streams of 8 bytes and more, by a table of at most 11 bits, and does not look whether each
 * comes out even: only a corrupt block does not, and it may as well have another literal. So that it has the same answer, and
 * mostly the same bytes, it is let pass here too; what libzstd reads too much are the bytes before.
 */
const LOOSE_BYTES = 8;
const LOOSE_LOG = 11;
const LOOSE_BITS = 64;

const MAX_LITERAL_LENGTH_CODE = 35;
const MAX_MATCH_LENGTH_CODE = 52;
const MAX_OFFSET_CODE = 31;
/** An offset of a higher code is beyond every window. */
const MAX_USABLE_OFFSET_CODE = 25;
const LENGTH_LOG = 9;
const OFFSET_LOG = 8;

const LITERAL_LENGTH_BITS = Uint8Array.of(
  ...[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  ...[1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
);
const MATCH_LENGTH_BITS = Uint8Array.of(
  ...[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  ...[1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
);
const LITERAL_LENGTH_BASE = bases(LITERAL_LENGTH_BITS, 0);
const MATCH_LENGTH_BASE = bases(MATCH_LENGTH_BITS, 3);

function bases(bits: Uint8Array, first: number): Uint32Array {
  let base = first;
  return Uint32Array.from(bits, (width) => (base += 2 ** width) - 2 ** width);
}

// RFC 8878, 3.1.1.3.2.2.
const LITERAL_LENGTH_DEFAULT = FseTable.of(
  [
    ...[4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1],
    ...[-1, -1, -1, -1],
  ],
  6,
);
const MATCH_LENGTH_DEFAULT = FseTable.of(
  [
    ...[1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ...[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1],
  ],
  6,
);
const OFFSET_DEFAULT = FseTable.of(
  [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1],
  5,
);

export class BlockDecoder {
  // One block's bytes and literals.
  readonly #input = new Uint8Array(PAD + MAX_BLOCK_BYTES + PAD);
  readonly #words = new DataView(this.#input.buffer);
  readonly #literals = new Uint8Array(MAX_BLOCK_BYTES);
  #literalSource: Uint8Array = this.#literals;
  #literalAt = 0;
  #literalEnd = 0;

  // What a frame's later blocks may use again; whether they are there, the checker has seen.
  readonly #huffman = new HuffmanTable();
  readonly #literalLengths = new FseTable();
  readonly #matchLengths = new FseTable();
  readonly #offsets = new FseTable();
  #literalLengthTable = LITERAL_LENGTH_DEFAULT;
  #matchLengthTable = MATCH_LENGTH_DEFAULT;
  #offsetTable = OFFSET_DEFAULT;
  readonly #recent = Int32Array.of(1, 4, 8);

  #frame: Frame | undefined;
  #hash: XxHash64 | undefined;
  #pages: Uint8Array = new Uint8Array(0);
  /** Where in the pages this frame's bytes begin. */
  #begin = 0;

  #history: Uint8Array = new Uint8Array(0);
  #held = 0;
  /** Where the history's next byte goes. */
  #head = 0;

  /** The next blocks belong to a frame that begins with them. */
  begin(frame: Frame): void {
    this.#frame = frame;
    this.#hash = frame.checksum ? new XxHash64() : undefined;
    this.#recent.set([1, 4, 8]);
    this.#held = 0;
    this.#head = 0;
  }

  /**
   * Decodes a stretch of the frame's blocks, which the checker has walked over.
   *
   * @param from of the first block, `to`: behind the last one, or its checksum
   * @param at where in `pages` to put the bytes
   * @returns how many there were
   * @throws CorruptBlock, also for more bytes than the pages have room for
   */
  decode(
    payload: Uint8Array,
    from: number,
    to: number,
    ends: boolean,
    pages: Uint8Array,
    at: number,
  ): number {
    const frame = this.#frame as Frame;
    // Of one class, whatever the caller's is: the loops below are compiled for it.
    this.#pages = new Uint8Array(pages.buffer, pages.byteOffset, pages.length);
    this.#begin = at;
    const blocksEnd = ends && frame.checksum ? to - 4 : to;
    let filled = at;
    while (from < blocksEnd) {
      const header = payload[from] | (payload[from + 1] << 8) | (payload[from + 2] << 16);
      const size = header >>> 3;
      from += 3;
      const before = filled;
      switch ((header >>> 1) & 3) {
        case 0:
          this.#need(filled, size);
          this.#pages.set(payload.subarray(from, from + size), filled);
          filled += size;
          from += size;
          break;
        case 1:
          this.#need(filled, size);
          this.#pages.fill(payload[from], filled, filled + size);
          filled += size;
          from++;
          break;
        default:
          this.#input.set(payload.subarray(from, from + size), PAD);
          filled = this.#compressed(PAD, PAD + size, filled);
          from += size;
      }
      if (filled - before > frame.blockBytes) corrupt('a block of more than the window');
    }
    const decoded = this.#pages.subarray(at, filled);
    this.#hash?.update(decoded);
    if (!ends) this.#remember(frame, decoded);
    else if (this.#hash !== undefined) {
      const sum =
        payload[to - 4] | (payload[to - 3] << 8) | (payload[to - 2] << 16) | (payload[to - 1] << 24);
      if (this.#hash.low() !== sum >>> 0) corrupt('a wrong checksum');
    }
    return filled - at;
  }

  #need(filled: number, bytes: number): void {
    if (filled + bytes > this.#pages.length) corrupt('more than the pages hold');
  }

  /** The frame goes on in the next payload. */
  #remember(frame: Frame, decoded: Uint8Array): void {
    const kept = Math.min(decoded.length, frame.window);
    if (kept === 0) return;
    // Nothing is held yet when it is too small. What no byte has been written to takes no memory of the system.
    if (this.#history.length < frame.window) this.#history = new Uint8Array(frame.window);
    // One that an earlier frame made may be larger than this one's window; it is a ring of its own size then.
    const history = this.#history;
    const bytes = decoded.subarray(decoded.length - kept);
    const first = Math.min(kept, history.length - this.#head);
    history.set(bytes.subarray(0, first), this.#head);
    history.set(bytes.subarray(first), 0);
    this.#head = (this.#head + kept) % history.length;
    this.#held = Math.min(this.#held + kept, frame.window);
  }

  /** @returns where in the pages its bytes end */
  #compressed(at: number, end: number, filled: number): number {
    at = this.#readLiterals(at, end);
    const input = this.#input;
    let count = input[at++];
    if (count > 127) {
      if (count === 255) {
        count = (input[at] | (input[at + 1] << 8)) + 0x7f00;
        at += 2;
      } else count = ((count - 128) << 8) | input[at++];
    }
    if (count > 0) {
      at = this.#readTables(at, end);
      if (at >= end || input[end - 1] === 0) corrupt('sequences cut short');
      filled = this.#sequences(count, at, end, filled);
    }
    // What literals the sequences have left.
    const from = this.#literalAt;
    const left = this.#literalEnd - from;
    this.#need(filled, left);
    this.#pages.set(this.#literalSource.subarray(from, from + left), filled);
    return filled + left;
  }

  // ---- literals ----

  /** @returns where the sequences begin */
  #readLiterals(at: number, end: number): number {
    const input = this.#input;
    const section = literalsSection(input, at);
    const { type, regenerated, compressed, streams } = section;
    at += section.headerBytes;
    this.#literalSource = this.#literals;
    this.#literalAt = 0;
    this.#literalEnd = regenerated;
    if (type === LITERALS_RAW) {
      this.#literalSource = input;
      this.#literalAt = at;
      this.#literalEnd = at + regenerated;
      return at + regenerated;
    }
    if (type === LITERALS_RLE) {
      this.#literals.fill(input[at], 0, regenerated);
      return at + 1;
    }
    const next = at + compressed;
    if (next >= end) corrupt('literals cut short');
    if (type === LITERALS_COMPRESSED) at = this.#huffman.read(input, at, next);
    if (streams === 1) {
      this.#huffmanStream(at, next, 0, regenerated, false);
      return next;
    }
    const quarter = (regenerated + 3) >>> 2;
    const sizes = [0, 2, 4].map((i) => input[at + i] | (input[at + i + 1] << 8));
    at += 6;
    sizes.push(next - at - sizes[0] - sizes[1] - sizes[2]);
    if (sizes[3] <= 0) corrupt('literals cut short');
    const loose = this.#huffman.log <= LOOSE_LOG && Math.min(...sizes) >= LOOSE_BYTES;
    for (const [i, size] of sizes.entries()) {
      this.#huffmanStream(at, at + size, i * quarter, Math.min((i + 1) * quarter, regenerated), loose);
      at += size;
    }
    return next;
  }

  /** Read from its end, where a bit marks the first one, to its beginning. */
  #huffmanStream(begin: number, end: number, into: number, intoEnd: number, loose: boolean): void {
    const words = this.#words;
    const literals = this.#literals;
    const { entries, log } = this.#huffman;
    const last = end > begin ? this.#input[end - 1] : 0;
    if (last === 0) corrupt('literals cut short');
    /** Bits that are left. */
    let left = (end - begin) * 8 - 8 + (31 - Math.clz32(last));
    const shift = 24 - log;
    const mask = (1 << log) - 1;
    while (into + 1 < intoEnd && left >= 24) {
      const at = left - 24;
      const word = words.getUint32(begin + (at >>> 3), true) >>> (at & 7);
      const first = entries[(word >>> shift) & mask];
      const second = entries[(word >>> (shift - (first >>> 8))) & mask];
      literals[into] = first;
      literals[into + 1] = second;
      into += 2;
      left = at + 24 - (first >>> 8) - (second >>> 8);
    }
    const least = loose ? -LOOSE_BITS : 0;
    while (into < intoEnd) {
      const at = left - log;
      // Beyond the beginning there are zeroes, or to a loose reader the bytes before.
      const index =
        at >= 0 || loose
          ? words.getUint32(begin + (at >> 3), true) >>> (at & 7)
          : (words.getUint32(begin, true) & ((1 << left) - 1)) << -at;
      const entry = entries[index & mask];
      literals[into++] = entry;
      left -= entry >>> 8;
      if (left < least) corrupt('literals cut short');
    }
    if (left !== 0 && !loose) corrupt('literals left over');
  }

  // ---- sequences ----

  /** @returns where the sequences' bits begin */
  #readTables(at: number, end: number): number {
    const modes = this.#input[at++];
    const table = (
      own: FseTable,
      given: FseTable,
      last: FseTable,
      shift: number,
      maxCode: number,
      maxLog: number,
    ): FseTable => {
      switch ((modes >>> shift) & 3) {
        case 0:
          return given;
        case 1:
          if (at >= end || this.#input[at] > maxCode) corrupt('a code too high');
          own.setRle(this.#input[at++]);
          return own;
        case 2:
          at = own.read(this.#input, at, end, maxCode, maxLog);
          return own;
        default:
          return last;
      }
    };
    this.#literalLengthTable = table(
      this.#literalLengths,
      LITERAL_LENGTH_DEFAULT,
      this.#literalLengthTable,
      6,
      MAX_LITERAL_LENGTH_CODE,
      LENGTH_LOG,
    );
    this.#offsetTable = table(
      this.#offsets,
      OFFSET_DEFAULT,
      this.#offsetTable,
      4,
      MAX_OFFSET_CODE,
      OFFSET_LOG,
    );
    this.#matchLengthTable = table(
      this.#matchLengths,
      MATCH_LENGTH_DEFAULT,
      this.#matchLengthTable,
      2,
      MAX_MATCH_LENGTH_CODE,
      LENGTH_LOG,
    );
    return at;
  }

  /** @returns where in the pages their bytes end */
  #sequences(count: number, begin: number, end: number, filled: number): number {
    const words = this.#words;
    const pages = this.#pages;
    const literals = this.#literalSource;
    const literalEnd = this.#literalEnd;
    const literalLengths = this.#literalLengthTable.entries;
    const offsets = this.#offsetTable.entries;
    const matchLengths = this.#matchLengthTable.entries;
    const window = (this.#frame as Frame).window;
    const frameBegin = this.#begin;
    const pagesEnd = pages.length;
    let literalAt = this.#literalAt;
    let [recent0, recent1, recent2] = this.#recent;

    /** Bits that are left; below none the stream is corrupt, and a word of it is still inside the buffer. */
    let left = (end - begin) * 8 - 8 + (31 - Math.clz32(this.#input[end - 1]));
    left -= this.#literalLengthTable.log;
    let literalLengthState =
      (words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << this.#literalLengthTable.log) - 1);
    left -= this.#offsetTable.log;
    let offsetState =
      (words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << this.#offsetTable.log) - 1);
    left -= this.#matchLengthTable.log;
    let matchLengthState =
      (words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << this.#matchLengthTable.log) - 1);

    for (; count > 0; count--) {
      const literalLengthEntry = literalLengths[literalLengthState];
      const offsetEntry = offsets[offsetState];
      const matchLengthEntry = matchLengths[matchLengthState];

      const offsetCode = offsetEntry >>> 24;
      if (offsetCode > MAX_USABLE_OFFSET_CODE) corrupt('an offset beyond the window');
      left -= offsetCode;
      const offsetValue =
        (1 << offsetCode) +
        ((words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << offsetCode) - 1));

      const matchLengthCode = matchLengthEntry >>> 24;
      let matchLength = MATCH_LENGTH_BASE[matchLengthCode];
      if (matchLengthCode > 31) {
        const bits = MATCH_LENGTH_BITS[matchLengthCode];
        left -= bits;
        matchLength += (words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << bits) - 1);
      }
      const literalLengthCode = literalLengthEntry >>> 24;
      let literalLength = literalLengthCode;
      if (literalLengthCode > 15) {
        const bits = LITERAL_LENGTH_BITS[literalLengthCode];
        left -= bits;
        literalLength =
          LITERAL_LENGTH_BASE[literalLengthCode] +
          ((words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << bits) - 1));
      }
      if (count > 1) {
        let bits = (literalLengthEntry >>> 16) & 0xff;
        left -= bits;
        literalLengthState =
          (literalLengthEntry & 0xffff) +
          ((words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << bits) - 1));
        bits = (matchLengthEntry >>> 16) & 0xff;
        left -= bits;
        matchLengthState =
          (matchLengthEntry & 0xffff) +
          ((words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << bits) - 1));
        bits = (offsetEntry >>> 16) & 0xff;
        left -= bits;
        offsetState =
          (offsetEntry & 0xffff) +
          ((words.getUint32(begin + (left >> 3), true) >>> (left & 7)) & ((1 << bits) - 1));
      }
      if (left < 0) corrupt('sequences cut short');

      let offset: number;
      if (offsetValue > 3) {
        offset = offsetValue - 3;
        recent2 = recent1;
        recent1 = recent0;
        recent0 = offset;
      } else {
        const which = literalLength === 0 ? offsetValue : offsetValue - 1;
        if (which === 0) offset = recent0;
        else {
          if (which === 1) offset = recent1;
          else {
            offset = which === 2 ? recent2 : recent0 - 1;
            recent2 = recent1;
          }
          recent1 = recent0;
          recent0 = offset;
        }
      }

      if (filled + literalLength + matchLength > pagesEnd) corrupt('more than the pages hold');
      if (literalAt + literalLength > literalEnd) corrupt('more literals than there are');
      if (literalLength < LONG_COPY) {
        for (const literalsEnd = literalAt + literalLength; literalAt < literalsEnd;)
          pages[filled++] = literals[literalAt++];
      } else {
        pages.set(literals.subarray(literalAt, literalAt + literalLength), filled);
        filled += literalLength;
        literalAt += literalLength;
      }

      if (offset <= 0 || offset > window) corrupt('an offset beyond the window');
      let from = filled - offset;
      if (from < frameBegin) {
        const copied = this.#fromHistory(frameBegin - from, matchLength, filled);
        filled += copied;
        matchLength -= copied;
        from = frameBegin;
      }
      if (matchLength < LONG_COPY || offset < matchLength) {
        for (const matchEnd = filled + matchLength; filled < matchEnd;) pages[filled++] = pages[from++];
      } else {
        pages.copyWithin(filled, from, from + matchLength);
        filled += matchLength;
      }
    }
    if (left !== 0) corrupt('sequences left over');
    this.#literalAt = literalAt;
    this.#recent[0] = recent0;
    this.#recent[1] = recent1;
    this.#recent[2] = recent2;
    return filled;
  }

  /**
   * Copies from what the frame has decoded in payloads before.
   *
   * @param back where to begin, in bytes before the first one of this payload
   * @returns how many bytes there were of `bytes`
   */
  #fromHistory(back: number, bytes: number, filled: number): number {
    if (back > this.#held) corrupt('an offset beyond the history');
    const history = this.#history;
    const count = Math.min(back, bytes);
    let from = this.#head - back;
    if (from < 0) from += history.length;
    const first = Math.min(count, history.length - from);
    this.#pages.set(history.subarray(from, from + first), filled);
    this.#pages.set(history.subarray(0, count - first), filled + first);
    return count;
  }
}
