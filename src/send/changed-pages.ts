/**
 * Pages that have changed since they were last sent, found by hashing them, in a send channel's thread: for a guest without
 * dirty tracking. All its pages are queued for each round, and those whose digest is that of what was sent before are left out.
 *
 *     shared memory, a slot --copied, page by page--+
 *                                                   +--> staging, private --digest--> equal? the next page goes over it
 *     file -------------------read, run by run------+                        |
 *                                                                            +--> else it stays: sent from here, digest noted
 *
 * What is hashed is what is sent: the guest may write at any moment, and does. Were memory hashed and then sent from where it
 * lies, a page that is A while it is hashed, B while it is sent and A again in the next round would stay B at the destination.
 * Of a page that is all zero no byte is sent, so it is only looked at, in place; its digest is that of a page of zeros.
 *
 * Who owns the bytes: a staging buffer is the packet's, as in page-source.ts. The table of digests is shared by all channels,
 * and an entry belongs to the one that has the page in this phase; between phases lies a sync, with its pairs of Atomics.
 */
import type { BlockDescription } from '../ram/block.js';
import { copyPages } from '../ram/copy.js';
import { FileBlock } from '../ram/file-block.js';
import { DIGEST_WORDS, PageDigests, viewDigests } from '../ram/page-digest.js';
import { runLength } from '../ram/page-list.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { MULTIFD_PACKET_BYTES, pagesPerPacket } from '../wire/packet.js';
import { stagedPieces, type PacketPages } from './page-source.js';
import type { Partition } from './partition.js';

export class ChangedPages implements PacketPages {
  /** The pages that take() has kept lie in `staging` in this order. */
  readonly pages: Uint32Array;
  readonly #pageSize: number;
  readonly #blocks: readonly BlockDescription[];
  readonly #shared: (Windows | undefined)[];
  readonly #files: (FileBlock | undefined)[];
  /** Of each block: what was sent last. */
  readonly #sent: Int32Array[];
  readonly #digests: PageDigests;
  readonly #zero: Int32Array;
  readonly #stagings: number;
  #turn = 0;

  /** @param stagings as in PageSource */
  constructor(
    blocks: readonly BlockDescription[],
    pageSize: number,
    stagings: number,
    sent: readonly SharedArrayBuffer[],
  ) {
    this.#pageSize = pageSize;
    this.#blocks = blocks;
    this.pages = new Uint32Array(pagesPerPacket(pageSize));
    this.#shared = blocks.map((block) =>
      block.buffer === undefined ? undefined : new Windows(block.buffer, block.base, block.size),
    );
    this.#files = blocks.map((block) => (block.kind === 'file' ? new FileBlock(block) : undefined));
    this.#sent = sent.map(viewDigests);
    this.#digests = new PageDigests(stagings * MULTIFD_PACKET_BYTES);
    // Its memory is zero to begin with.
    this.#zero = this.#digests.of(0, pageSize).slice();
    this.#stagings = stagings;
  }

  // ---- PacketPages ----

  windowsOf(): undefined {
    return undefined;
  }

  isFile(block: number): boolean {
    return !this.isStaged(block);
  }

  isStaged(block: number): boolean {
    return this.#blocks[block].kind === 'private';
  }

  get staging(): Buffer {
    const at = this.#stagingAt;
    return this.#digests.memory.subarray(at, at + MULTIFD_PACKET_BYTES);
  }

  nextStaging(): void {
    this.#turn = (this.#turn + 1) % this.#stagings;
  }

  /** They lie there already. */
  read(): void {}

  pieces(partition: Partition, _block: number, staging: Buffer, from: number, to: number): Uint8Array[] {
    return stagedPieces(partition, staging, this.#pageSize, from, to);
  }

  // ---- what has changed ----

  get #stagingAt(): number {
    return this.#turn * MULTIFD_PACKET_BYTES;
  }

  /**
   * Takes the pages that have changed into `staging`, from the first of `queued` on, until a packet is full.
   *
   * @param queued at most as many as a packet has
   * @param kept pages that are there already
   * @param slot the bytes of `queued`, one page after the other, where the channel cannot reach the block
   * @returns how many pages are there now
   */
  take(block: number, queued: Uint32Array, kept: number, slot: Buffer | undefined): number {
    if (this.#files[block] !== undefined) return this.#takeOfFile(block, queued, kept);
    const size = this.#pageSize;
    const windows = this.#shared[block];
    const { memory } = this.#digests;
    let end = kept;
    for (let i = 0; i < queued.length; i++) {
      const page = queued[i];
      const offset = page * size;
      const bytes = windows === undefined ? (slot as Buffer) : windows.windowAt(offset);
      const at = windows === undefined ? i * size : offset % Windows.WINDOW_BYTES;
      const into = this.#stagingAt + end * size;
      if (isZeroRange(bytes, at, size)) {
        if (!this.#note(block, page, this.#zero)) continue;
        memory.fill(0, into, into + size);
      } else {
        copyPages(bytes, at, memory, into, size);
        if (!this.#note(block, page, this.#digests.of(into, size))) continue;
      }
      this.pages[end++] = page;
    }
    return end;
  }

  #takeOfFile(block: number, queued: Uint32Array, kept: number): number {
    const size = this.#pageSize;
    const { memory } = this.#digests;
    let end = kept;
    for (let i = 0; i < queued.length;) {
      const run = runLength(queued, i, queued.length - i);
      // Behind what is kept: there is room for all that are queued.
      const from = this.#stagingAt + end * size;
      (this.#files[block] as FileBlock).read(memory, from, run * size, queued[i] * size);
      for (let j = 0; j < run; j++) {
        const at = from + j * size;
        if (!this.#note(block, queued[i + j], this.#digests.of(at, size))) continue;
        const into = this.#stagingAt + end * size;
        if (into !== at) memory.copyWithin(into, at, at + size);
        this.pages[end++] = queued[i + j];
      }
      i += run;
    }
    return end;
  }

  /** @returns whether it is another than before */
  #note(block: number, page: number, digest: Int32Array): boolean {
    const sent = this.#sent[block];
    const at = page * DIGEST_WORDS;
    const low = digest[0];
    // Both 0: nothing was sent yet.
    const high = low === 0 && digest[1] === 0 ? 1 : digest[1];
    if (sent[at] === low && sent[at + 1] === high) return false;
    sent[at] = low;
    sent[at + 1] = high;
    return true;
  }
}
