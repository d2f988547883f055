/**
 * Where the pages of a packet are read from, in a send channel's thread.
 *
 *     shared    guest RAM itself, through windows: nothing is copied, and it may change at any moment
 *     file      read into a staging buffer of this channel, page i of the packet at i * pageSize; of a packed one decoded
 *     staged    in the slot's data, where the calling thread has put them, page i at i * pageSize (kinds private, stream)
 *
 * Who owns the bytes: guest RAM is the embedder's; a staging buffer is the packet's that was read into it until that packet
 * is with the kernel, or with the codec, and nextStaging() comes to it again only after that. With zeroCopySend the kernel
 * reads it where it lies, until the connection has released it: page-packets.ts waits for that, and there are more of them.
 */
import { alignedBuffer } from '../ram/aligned.js';
import type { BlockDescription } from '../ram/block.js';
import { DirectPages } from '../ram/direct-pages.js';
import { FileBlock } from '../ram/file-block.js';
import { PackedBlock, PackedPages } from '../packed/packed-pages.js';
import { runLength } from '../ram/page-list.js';
import { Windows } from '../ram/windows.js';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import type { Partition } from './partition.js';

/** What page-packets.ts needs to know of where pages are: here, and where only some of them are sent, changed-pages.ts. */
export interface PacketPages {
  /** Of a block that is shared, where its pages go out from its memory itself. */
  windowsOf(block: number): Windows | undefined;
  /** Are its pages read into `staging`? */
  isFile(block: number): boolean;
  /** Are its pages in the slot? */
  isStaged(block: number): boolean;
  /** For the packet in the making. */
  readonly staging: Buffer;
  nextStaging(): void;
  read(block: number, pages: Uint32Array, num: number): void;
  pieces(partition: Partition, block: number, staging: Buffer, from: number, to: number): Uint8Array[];
}

export class PageSource implements PacketPages {
  readonly #pageSize: number;
  readonly #shared: (Windows | undefined)[];
  readonly #files: (FileBlock | PackedBlock | undefined)[];
  #packed: PackedPages | undefined;
  /** For files with O_DIRECT. */
  readonly #direct: DirectPages | undefined;
  readonly #staging: Buffer[] = [];
  #turn = 0;

  /** @param stagings how many buffers the packets of files need at a time */
  constructor(blocks: readonly BlockDescription[], pageSize: number, stagings: number) {
    this.#pageSize = pageSize;
    this.#shared = blocks.map((block) =>
      block.buffer === undefined ? undefined : new Windows(block.buffer, block.base, block.size),
    );
    this.#files = blocks.map((block) => (block.kind === 'file' ? this.#open(block) : undefined));
    if (this.#files.some((file) => file?.isDirect)) {
      this.#direct = new DirectPages(pageSize);
      const memory = alignedBuffer(stagings * MULTIFD_PACKET_BYTES);
      for (let at = 0; at < memory.length; at += MULTIFD_PACKET_BYTES)
        this.#staging.push(memory.subarray(at, at + MULTIFD_PACKET_BYTES));
    } else if (blocks.some((block) => block.kind === 'file')) {
      for (let i = 0; i < stagings; i++) this.#staging.push(Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES));
    }
  }

  #open(block: BlockDescription): FileBlock | PackedBlock {
    if (block.packed === undefined) return new FileBlock(block);
    this.#packed ??= new PackedPages(block.packed);
    return new PackedBlock(block, this.#packed);
  }

  close(): void {
    this.#packed?.close();
  }

  windowsOf(block: number): Windows | undefined {
    return this.#shared[block];
  }

  isFile(block: number): boolean {
    return this.#files[block] !== undefined;
  }

  isStaged(block: number): boolean {
    return this.#shared[block] === undefined && this.#files[block] === undefined;
  }

  /** For the packet in the making; undefined without files. */
  get staging(): Buffer {
    return this.#staging[this.#turn];
  }

  /** The packet in the making keeps its staging. */
  nextStaging(): void {
    this.#turn = (this.#turn + 1) % Math.max(1, this.#staging.length);
  }

  /** If the block is a file: reads `num` pages into the staging, neighbours in one call. */
  read(block: number, pages: Uint32Array, num: number): void {
    const file = this.#files[block];
    if (file === undefined) return;
    const { staging } = this;
    if (file instanceof FileBlock && file.isDirect) {
      this.#direct?.read(file, pages, num, staging);
      return;
    }
    const size = this.#pageSize;
    for (let i = 0; i < num;) {
      let run = 1;
      while (i + run < num && pages[i + run] === pages[i] + run) run++;
      file.read(staging, i * size, run * size, pages[i] * size);
      i += run;
    }
  }

  /**
   * The normal pages `from` to `to`: runs of neighbours go out, or are copied, as one piece.
   *
   * @param staging where pages lie that are not shared
   */
  pieces(partition: Partition, block: number, staging: Buffer, from: number, to: number): Uint8Array[] {
    const windows = this.#shared[block];
    if (windows === undefined) return stagedPieces(partition, staging, this.#pageSize, from, to);
    const size = this.#pageSize;
    const { pages } = partition;
    const pieces: Uint8Array[] = [];
    for (let i = from; i < to;) {
      const limit = Windows.runLimit(pages[i] * size) / size;
      const run = runLength(pages, i, Math.min(to - i, limit));
      pieces.push(windows.view(pages[i] * size, run * size));
      i += run;
    }
    return pieces;
  }
}

/** Those that lie in `staging`, at the positions that they were queued at. */
export function stagedPieces(
  { positions }: Partition,
  staging: Buffer,
  size: number,
  from: number,
  to: number,
): Uint8Array[] {
  const pieces: Uint8Array[] = [];
  for (let i = from; i < to;) {
    const run = runLength(positions, i, to - i);
    pieces.push(staging.subarray(positions[i] * size, (positions[i] + run) * size));
    i += run;
  }
  return pieces;
}
