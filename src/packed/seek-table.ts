/**
 * The seekable zstd format: which frame of a packed file holds which of its plain bytes. Source: the Zstandard project's
 * seekable format 0.1.0, little-endian.
 *
 *     frame 0, frame 1, ...                       zstd frames, each by itself
 *     5e 2a 4d 18, u32 length of what follows     a skippable frame: `zstd -d` passes over it
 *       u32 packed, u32 plain [, u32 checksum]    of each frame, in order: bytes; low half of XXH64 of the plain ones
 *       u32 frames
 *       u8 descriptor                             bit 7: there are checksums; bits 2 to 6: 0
 *       b1 ea 92 8f
 *
 * So the table is found from the file's end. Frames of no plain bytes (skippable ones) may be among them. Checksums are passed
 * over: the frames that we make have one of their own, which every decoder looks at.
 *
 * The file is not trusted: the table must end where the file does, its frames must be all that lies before it, and no count is
 * believed before as many bytes are there.
 *
 * A table is shared memory, so that each channel's thread has it without a copy: doubles, u64 in whole numbers.
 *
 *     [count] [largest plain] [largest packed] [packed offset of each frame, and the end] [plain offset likewise]
 */
import { MultifdError } from '../errors.js';
import { STREAM_ERRORS, refusal } from '../stream/codes.js';
import { type ReadableFile, readAt, sizeOf } from '../stream/positioned-file.js';

const ZSTD_MAGIC = 0xfd2fb528;
/** The lowest of 16. */
const SKIPPABLE_MAGIC = 0x184d2a50;
const TABLE_MAGIC = 0x184d2a5e;
const SEEKABLE_MAGIC = 0x8f92eab1;
const HEAD_BYTES = 8;
const FOOTER_BYTES = 9;
const HAS_CHECKSUMS = 0x80;
const RESERVED_BITS = 0x7c;

/** By choice: 4 TiB in frames of 1 MiB, and a table of 50 MiB. */
const MAX_FRAMES = 2 ** 22;
/** By choice: a thread has two of them. Ours have 1 MiB. */
export const MAX_FRAME_BYTES = 2 ** 24;
/** Of the table, read at once. */
const READ_BYTES = 12 * 2 ** 15;

const FIELDS = 3;

export interface FrameSize {
  packed: number;
  plain: number;
}

export class SeekTable {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Float64Array;
  readonly #plainAt: number;

  private constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.#words = new Float64Array(buffer);
    this.#plainAt = FIELDS + this.count + 1;
  }

  static attach(buffer: SharedArrayBuffer): SeekTable {
    return new SeekTable(buffer);
  }

  /** @param frames their sizes, packed and plain, in turn */
  static of(frames: Uint32Array): SeekTable {
    const count = frames.length / 2;
    const buffer = new SharedArrayBuffer(8 * (FIELDS + 2 * (count + 1)));
    const words = new Float64Array(buffer);
    words[0] = count;
    const plainAt = FIELDS + count + 1;
    for (let i = 0; i < count; i++) {
      const [packed, plain] = [frames[2 * i], frames[2 * i + 1]];
      words[1] = Math.max(words[1], plain);
      if (plain > 0) words[2] = Math.max(words[2], packed);
      words[FIELDS + i + 1] = words[FIELDS + i] + packed;
      words[plainAt + i + 1] = words[plainAt + i] + plain;
    }
    return new SeekTable(buffer);
  }

  /** Frames. */
  get count(): number {
    return this.#words[0];
  }

  /** Bytes of the largest frame. */
  get largest(): FrameSize {
    return { plain: this.#words[1], packed: this.#words[2] };
  }

  /** Of the frame, in the packed file. */
  packedOffset(frame: number): number {
    return this.#words[FIELDS + frame];
  }

  /** Of its first byte, in the plain file. */
  plainOffset(frame: number): number {
    return this.#words[this.#plainAt + frame];
  }

  get packedBytes(): number {
    return this.packedOffset(this.count);
  }

  get plainBytes(): number {
    return this.plainOffset(this.count);
  }

  /** The frame that holds the plain byte at `position`, which is below plainBytes. */
  frameOf(position: number): number {
    let low = 0;
    let high = this.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.plainOffset(middle) <= position) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

/** The skippable frame at the end. */
export function encodeSeekTable(frames: readonly FrameSize[]): Buffer {
  const bytes = Buffer.alloc(HEAD_BYTES + 8 * frames.length + FOOTER_BYTES);
  bytes.writeUInt32LE(TABLE_MAGIC, 0);
  bytes.writeUInt32LE(bytes.length - HEAD_BYTES, 4);
  let at = HEAD_BYTES;
  for (const { packed, plain } of frames) {
    at = bytes.writeUInt32LE(packed, at);
    at = bytes.writeUInt32LE(plain, at);
  }
  at = bytes.writeUInt32LE(frames.length, at);
  at = bytes.writeUInt8(0, at);
  bytes.writeUInt32LE(SEEKABLE_MAGIC, at);
  return bytes;
}

/**
 * @returns undefined if it is no zstd file at all
 * @throws MultifdError STREAM_ERRORS.file, .format, .limit for one that cannot be read by its table; .io
 */
export async function readSeekTable(file: ReadableFile): Promise<SeekTable | undefined> {
  const head = await readAt(file, 0, 4);
  if (head.length < 4) return undefined;
  const magic = head.readUInt32LE();
  const isSkippable = magic >= SKIPPABLE_MAGIC && magic < SKIPPABLE_MAGIC + 16;
  if (magic !== ZSTD_MAGIC && !isSkippable) return undefined;
  const size = await sizeOf(file);
  const footer = await readAt(file, Math.max(0, size - FOOTER_BYTES), FOOTER_BYTES);
  if (footer.length < FOOTER_BYTES || footer.readUInt32LE(FOOTER_BYTES - 4) !== SEEKABLE_MAGIC) {
    const expected =
      'a seek table at its end, as `multifd pack` makes it: it may be cut, or unpack it with `zstd -d`';
    throw refusal('file', 'zstd file', 'none of the seekable format', expected);
  }
  const count = footer.readUInt32LE(0);
  const descriptor = footer[4];
  if ((descriptor & RESERVED_BITS) !== 0)
    throw bad('unsupported', 'descriptor', descriptor, 'bits 2 to 6 of it 0');
  if (count > MAX_FRAMES) throw bad('limit', 'frames', count, `at most ${MAX_FRAMES}`);
  const entryBytes = (descriptor & HAS_CHECKSUMS) === 0 ? 8 : 12;
  const tableBytes = HEAD_BYTES + entryBytes * count + FOOTER_BYTES;
  const at = size - tableBytes;
  if (at < 0) throw bad('format', 'bytes', tableBytes, `at most ${size}, the file's`);
  const tableHead = await readAt(file, at, HEAD_BYTES);
  const isTable =
    tableHead.length === HEAD_BYTES &&
    tableHead.readUInt32LE(0) === TABLE_MAGIC &&
    tableHead.readUInt32LE(4) === tableBytes - HEAD_BYTES;
  if (!isTable) {
    const expected = `a skippable frame of ${tableBytes - HEAD_BYTES} bytes at byte ${at}`;
    throw bad('format', 'head', tableHead.toString('hex'), expected);
  }
  const frames = await readEntries(file, at + HEAD_BYTES, count, entryBytes);
  const table = SeekTable.of(frames);
  if (table.packedBytes !== at) {
    throw bad('format', 'bytes of all frames', table.packedBytes, `${at}, all that lies before it`);
  }
  return table;
}

async function readEntries(
  file: ReadableFile,
  from: number,
  count: number,
  entryBytes: number,
): Promise<Uint32Array> {
  const frames = new Uint32Array(2 * count);
  const end = from + count * entryBytes;
  let frame = 0;
  for (let at = from; at < end;) {
    const bytes = await readAt(file, at, Math.min(READ_BYTES, end - at));
    if (bytes.length < Math.min(READ_BYTES, end - at)) {
      throw new MultifdError(STREAM_ERRORS.eof, 'seek table: the file has become shorter');
    }
    at += bytes.length;
    for (let i = 0; i < bytes.length; i += entryBytes, frame++) {
      const [packed, plain] = [bytes.readUInt32LE(i), bytes.readUInt32LE(i + 4)];
      if (plain > MAX_FRAME_BYTES) {
        throw bad(
          'limit',
          `plain bytes of frame ${frame}`,
          plain,
          `at most ${MAX_FRAME_BYTES}: unpack it with \`zstd -d\``,
        );
      }
      // A frame that does not shrink has 3 bytes more for each 128 KiB.
      if (plain > 0 && packed > plain + (plain >> 8) + 64) {
        throw bad(
          'format',
          `packed bytes of frame ${frame}`,
          packed,
          `hardly more than its ${plain} plain ones`,
        );
      }
      frames[2 * frame] = packed;
      frames[2 * frame + 1] = plain;
    }
  }
  return frames;
}

function bad(
  error: 'unsupported' | 'limit' | 'format',
  what: string,
  received: unknown,
  expected: unknown,
): MultifdError {
  return refusal(error, `seek table: ${what}`, received, expected);
}
