/**
 * A packed file on the calling thread, read as the plain one that it holds.
 *
 *     read(position) --> frame, by the seek table --> kept, or being read?   copied from there
 *                                                     else read, decoded, and kept for a while
 *
 * Several reads may be under way; one frame is read once for all of them. Decoding is synchronous, 1 ms a frame.
 *
 * Memory: FRAMES_KEPT frames. The file stays the caller's, open.
 */
import type { FileHandle } from 'node:fs/promises';
import { MultifdError } from '../errors.js';
import { ALIGNMENT, alignedBuffer } from '../ram/aligned.js';
import { readDirect } from '../ram/direct-io.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import { type ReadableFile, readAt } from '../stream/positioned-file.js';
import { FrameDecoder, cutFrame } from './frame-decoder.js';
import type { SeekTable } from './seek-table.js';

const FRAMES_KEPT = 8;

export class PackedFile implements ReadableFile {
  readonly table: SeekTable;
  readonly #file: FileHandle;
  readonly #direct: FileHandle | undefined;
  readonly #decoder: FrameDecoder;
  /** Those used last at the end. */
  readonly #frames = new Map<number, Promise<Buffer>>();
  /** Those that were decoded once. */
  readonly #sound: Uint8Array;
  /** Aligned, for `direct`: one read at a time. */
  #room: Buffer | undefined;
  #reading: Promise<unknown> = Promise.resolve();

  /** @param direct the same file, opened with O_DIRECT */
  constructor(file: FileHandle, table: SeekTable, direct?: FileHandle) {
    this.#file = file;
    this.table = table;
    this.#direct = direct;
    this.#decoder = new FrameDecoder(table);
    this.#sound = new Uint8Array(table.count);
  }

  stat(): Promise<{ size: number }> {
    return Promise.resolve({ size: this.table.plainBytes });
  }

  async read(into: Buffer, at: number, length: number, position: number): Promise<{ bytesRead: number }> {
    const { table } = this;
    const wanted = Math.max(0, Math.min(length, table.plainBytes - position));
    let done = 0;
    while (done < wanted) {
      const frame = table.frameOf(position + done);
      const from = position + done - table.plainOffset(frame);
      done += (await this.#frame(frame)).copy(into, at + done, from, from + wanted - done);
    }
    return { bytesRead: done };
  }

  /** As FileHandle.readv(). */
  async readv(views: readonly Uint8Array[], position: number): Promise<{ bytesRead: number }> {
    let done = 0;
    for (const view of views) {
      const room = Buffer.from(view.buffer, view.byteOffset, view.length);
      const { bytesRead } = await this.read(room, 0, room.length, position + done);
      done += bytesRead;
      if (bytesRead < room.length) break;
    }
    return { bytesRead: done };
  }

  /**
   * Decodes what nobody has read: what is in no page keeps a file from being unpacked as well.
   *
   * @param going called before each frame; throws to end it
   */
  async verifyRest(going: () => void): Promise<void> {
    const { table } = this;
    for (let frame = 0; frame < table.count; frame++) {
      const isEmpty = table.plainOffset(frame + 1) === table.plainOffset(frame);
      if (isEmpty || this.#sound[frame] === 1) continue;
      going();
      await this.#load(frame);
    }
  }

  async #frame(frame: number): Promise<Buffer> {
    const frames = this.#frames;
    const plain = frames.get(frame) ?? this.#load(frame);
    frames.delete(frame);
    frames.set(frame, plain);
    if (frames.size > FRAMES_KEPT) frames.delete(frames.keys().next().value as number);
    return plain;
  }

  async #load(frame: number): Promise<Buffer> {
    const { table } = this;
    const at = table.packedOffset(frame);
    const bytes = table.packedOffset(frame + 1) - at;
    const decode = (packed: Buffer): Buffer => {
      if (packed.length < bytes) throw cutFrame(table, frame, packed.length);
      const plain = Buffer.allocUnsafeSlow(table.plainOffset(frame + 1) - table.plainOffset(frame));
      this.#decoder.decode(frame, packed, plain);
      this.#sound[frame] = 1;
      return plain;
    };
    if (this.#direct === undefined) return decode(await readAt(this.#file, at, bytes));
    const direct = this.#direct;
    const read = this.#reading.then(async () => decode(await this.#readDirect(direct, at, bytes)));
    this.#reading = read.catch(() => {});
    return read;
  }

  async #readDirect(direct: FileHandle, at: number, bytes: number): Promise<Buffer> {
    const room = (this.#room ??= alignedBuffer(this.table.largest.packed + 2 * ALIGNMENT));
    const before = at % ALIGNMENT;
    const asked = Math.ceil((before + bytes) / ALIGNMENT) * ALIGNMENT;
    const done = await readDirect(direct, room, asked, at - before);
    return room.subarray(before, Math.max(before, Math.min(done, before + bytes)));
  }

  /** Its decoder: no read may be under way. */
  close(): void {
    this.#decoder.close();
  }
}

/** @throws MultifdError STREAM_ERRORS.unsupported */
export function refusePacked(what: string): never {
  throw new MultifdError(STREAM_ERRORS.unsupported, `${what}: received a packed file, expected a plain one`);
}
