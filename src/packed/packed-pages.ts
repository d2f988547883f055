/**
 * Pages of a packed file in a channel's thread: as FileBlock reads them of a plain one, out of the frames that hold them.
 *
 *     read(page) --> frame, by the seek table --> among the last ones?  copied from there
 *                                                 else read and decoded, over the one that was used longest ago
 *
 * Neighbours come from one frame, and a channel is given pages in order; where two channels share a frame both decode it.
 *
 * Memory: FRAMES_KEPT frames, and the bytes of one packed, a channel.
 */
import type { BlockDescription, PackedRam } from '../ram/block.js';
import { FrameDecoder, cutFrame } from './frame-decoder.js';
import { PackedBytes } from './packed-bytes.js';
import { SeekTable } from './seek-table.js';

const FRAMES_KEPT = 2;

/** One of them for all blocks of a file. */
export class PackedPages {
  readonly #table: SeekTable;
  readonly #bytes: PackedBytes;
  readonly #decoder: FrameDecoder;
  /** The last one used first. */
  readonly #kept: { frame: number; room: Buffer }[] = [];

  constructor({ table, fd, directFd }: PackedRam) {
    this.#table = SeekTable.attach(table);
    this.#bytes = new PackedBytes(fd, directFd, this.#table.largest.packed);
    this.#decoder = new FrameDecoder(this.#table);
  }

  /** As FileBlock.read(), from `position` of the plain file on. */
  read(into: Uint8Array, at: number, length: number, position: number): void {
    for (let done = 0; done < length;) {
      const frame = this.#table.frameOf(position + done);
      const from = position + done - this.#table.plainOffset(frame);
      const plain = this.#frame(frame);
      const count = Math.min(length - done, plain.length - from);
      into.set(plain.subarray(from, from + count), at + done);
      done += count;
    }
  }

  #frame(frame: number): Buffer {
    const table = this.#table;
    const kept = this.#kept;
    const size = table.plainOffset(frame + 1) - table.plainOffset(frame);
    let index = kept.findIndex((one) => one.frame === frame);
    if (index < 0) {
      index = kept.length < FRAMES_KEPT ? kept.length : kept.length - 1;
      const room = kept[index]?.room ?? Buffer.allocUnsafeSlow(table.largest.plain);
      kept[index] = { frame: -1, room };
      const at = table.packedOffset(frame);
      const packedBytes = table.packedOffset(frame + 1) - at;
      const packed = this.#bytes.read(at, packedBytes);
      if (packed.length < packedBytes) throw cutFrame(table, frame, packed.length);
      this.#decoder.decode(frame, packed, room.subarray(0, size));
      kept[index].frame = frame;
    }
    const [found] = kept.splice(index, 1);
    kept.unshift(found);
    return found.room.subarray(0, size);
  }

  close(): void {
    this.#decoder.close();
  }
}

/** A block of it, as page-source.ts reads one of a file. */
export class PackedBlock {
  /** The memory that is read into need not suit the device. */
  readonly isDirect = false;
  readonly #pages: PackedPages;
  readonly #base: number;

  constructor(block: BlockDescription, pages: PackedPages) {
    this.#pages = pages;
    this.#base = block.base;
  }

  read(into: Uint8Array, at: number, length: number, offset: number): void {
    this.#pages.read(into, at, length, this.#base + offset);
  }
}
