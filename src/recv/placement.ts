/**
 * Where a receive channel's pages go: shared memory and files by the channel itself, private memory and streams through
 * the slot by the calling thread.
 *
 * Who owns the bytes: guest RAM is the channel's to write until sync() of the receiver returns; other channels have other
 * pages of the same phase.
 */
import { viewBitmaps } from '../ram/bitmap.js';
import type { BlockDescription } from '../ram/block.js';
import { copyPages } from '../ram/copy.js';
import { DirectPages } from '../ram/direct-pages.js';
import { FileBlock } from '../ram/file-block.js';
import { runLength } from '../ram/page-list.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { markPages, unmarkPages } from '../shared/control.js';
import { pagesPerPacket, type PacketHeader } from '../wire/packet.js';
import { FilePages, ascends } from './file-pages.js';

/** Method none into shared memory: runs below this on average are read as one and copied. A read costs about 4 µs. */
const DIRECT_RUN_BYTES = 32768;

export interface PlacementOptions {
  pageSize: number;
  blocks: readonly BlockDescription[];
  /** Bitmaps of received pages: viewBitmaps(). */
  received: SharedArrayBuffer;
  /** A bitmap for each block: 1 where the page has data. Zero pages are then noted here and not written. */
  present: SharedArrayBuffer | undefined;
  /** A bitmap for each block: set when a page's bytes are in place. */
  arrived: SharedArrayBuffer | undefined;
}

export class Placement {
  readonly #pageSize: number;
  readonly #blocks: readonly BlockDescription[];
  readonly #shared: (Windows | undefined)[];
  readonly #files: (FileBlock | undefined)[] = [];
  /** For files with O_DIRECT, and without. */
  #direct: DirectPages | undefined;
  readonly #filePages: FilePages;
  readonly #received: Int32Array[];
  readonly #present: Int32Array[] | undefined;
  readonly #arrived: Int32Array[] | undefined;
  /** Of a packet's pages, for what has to be looked at before it is zeroed. */
  readonly #scratch: Buffer;

  /** @param scratch room for a packet's pages, free while zero pages are placed */
  constructor({ pageSize, blocks, received, present, arrived }: PlacementOptions, scratch: Buffer) {
    this.#pageSize = pageSize;
    this.#blocks = blocks;
    this.#scratch = scratch;
    this.#filePages = new FilePages(pageSize, pagesPerPacket(pageSize));
    this.#shared = blocks.map((block) =>
      block.buffer === undefined ? undefined : new Windows(block.buffer, block.base, block.size),
    );
    const pageCounts = blocks.map((block) => block.size / pageSize);
    this.#received = viewBitmaps(received, pageCounts);
    this.#present = present === undefined ? undefined : viewBitmaps(present, pageCounts);
    this.#arrived = arrived === undefined ? undefined : viewBitmaps(arrived, pageCounts);
  }

  /** Takes the files' descriptors. @throws MultifdError ERR_MULTIFD_IO */
  openFiles(): void {
    for (const block of this.#blocks) {
      this.#files.push(block.kind === 'file' ? new FileBlock(block) : undefined);
    }
    if (this.#files.some((file) => file?.isDirect)) this.#direct = new DirectPages(this.#pageSize);
  }

  /** May the channel put this block's pages in place itself? */
  reaches(block: number): boolean {
    return this.#shared[block] !== undefined || this.#files[block] !== undefined;
  }

  /** Method none: shall the kernel read the packet's payload into guest RAM, run by run? */
  isDirect(packet: PacketHeader): boolean {
    if (this.#shared[packet.block] === undefined) return false;
    const { normalPages } = packet;
    let runs = 0;
    for (let i = 0; i < normalPages; i += this.runLength(packet.pages, i, normalPages)) runs++;
    return (normalPages * this.#pageSize) / runs >= Math.min(DIRECT_RUN_BYTES, normalPages * this.#pageSize);
  }

  /** From entry `i` of a page list on, before `end`, how many pages lie side by side in one window. */
  runLength(pages: Uint32Array, i: number, end: number): number {
    const limit = Windows.runLimit(pages[i] * this.#pageSize) / this.#pageSize;
    return runLength(pages, i, Math.min(end - i, limit));
  }

  /** Guest RAM of `run` pages from entry `i` on. */
  view(packet: PacketHeader, i: number, run: number): Uint8Array {
    const windows = this.#shared[packet.block] as Windows;
    return windows.view(packet.pages[i] * this.#pageSize, run * this.#pageSize);
  }

  /** @param pages the normal pages one after the other; undefined if they are in guest RAM already */
  place(packet: PacketHeader, pages: Buffer | undefined): void {
    const size = this.#pageSize;
    const { block, normalPages } = packet;
    const windows = this.#shared[block];
    const file = this.#files[block];
    let list = packet.pages;
    if (file !== undefined && pages !== undefined) {
      if (file.isDirect) this.#direct?.write(file, packet, pages);
      else list = this.#filePages.write(file, list, normalPages, pages);
    }
    for (let i = 0; i < normalPages;) {
      const run = this.runLength(list, i, normalPages);
      const offset = list[i] * size;
      if (pages !== undefined && windows !== undefined) {
        const window = windows.windowAt(offset);
        copyPages(pages, i * size, window, offset % Windows.WINDOW_BYTES, run * size);
      }
      markPages(this.#received[block], list[i], run);
      if (this.#present !== undefined) markPages(this.#present[block], list[i], run);
      if (this.#arrived !== undefined) markPages(this.#arrived[block], list[i], run);
      i += run;
    }
    this.#zeroPages(packet, windows, file);
  }

  /**
   * A zero page that is zero already is not written: fresh memory stays without frames, a sparse file sparse, and
   * reading is faster than writing anyway.
   */
  #zeroPages(packet: PacketHeader, windows: Windows | undefined, file: FileBlock | undefined): void {
    const end = packet.normalPages + packet.zeroPages;
    const { fresh } = this.#blocks[packet.block];
    // QEMU's come backwards, mostly: see file-pages.ts.
    if (!ascends(packet.pages, packet.normalPages, end))
      packet.pages.subarray(packet.normalPages, end).sort();
    for (let i = packet.normalPages; i < end;) {
      const run = this.runLength(packet.pages, i, end);
      const first = markPages(this.#received[packet.block], packet.pages[i], run);
      if (!(fresh && first)) this.#zero(packet.block, packet.pages[i], run, windows, file);
      if (this.#arrived !== undefined) markPages(this.#arrived[packet.block], packet.pages[i], run);
      i += run;
    }
  }

  #zero(
    block: number,
    page: number,
    run: number,
    windows: Windows | undefined,
    file: FileBlock | undefined,
  ): void {
    const offset = page * this.#pageSize;
    const bytes = run * this.#pageSize;
    if (this.#present !== undefined) unmarkPages(this.#present[block], page, run);
    else if (windows !== undefined) {
      const window = windows.windowAt(offset);
      const at = offset % Windows.WINDOW_BYTES;
      if (!isZeroRange(window, at, bytes)) window.fill(0, at, at + bytes);
    } else if (file !== undefined) {
      file.read(this.#scratch, 0, bytes, offset);
      if (!isZeroRange(this.#scratch, 0, bytes)) {
        this.#scratch.fill(0, 0, bytes);
        file.write(this.#scratch, 0, bytes, offset);
      }
    }
  }
}
