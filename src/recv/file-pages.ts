/**
 * A packet's pages into a file, in a receive channel's thread: neighbours in one call, whatever their order in the packet.
 *
 *     QEMU >= 9.0 moves zero pages behind the others by swapping, from both ends, so that what a mixed packet has of normal
 *     pages comes forwards and then backwards:
 *
 *     payload   | 0 | 1 | 2 | 7 | 6 | 5 |      by position in the packet
 *     file      | 0 | 1 | 2 |       | 5 | 6 | 7 |      two calls, not four
 *
 * A call costs as much as two pages, and while one channel is in it the file is locked for the others: in a guest that is half
 * zero there are ten times as many runs in the packets as in the file.
 *
 * Who owns the bytes: the payload is the channel's; it is read here, and views of it are kept until the next one.
 */
import type { FileBlock } from '../ram/file-block.js';
import { keyEntry, keyPage, orderPages, runLength } from '../ram/page-list.js';

export class FilePages {
  readonly #pageSize: number;
  readonly #keys: Float64Array;
  readonly #sorted: Uint32Array;
  readonly #positions: Uint16Array;
  /** Of the payload's pages, made when they are needed. */
  #views: (Buffer | undefined)[] = [];
  #payload: Buffer | undefined;

  /** @param packetPages pages of a packet, at most */
  constructor(pageSize: number, packetPages: number) {
    this.#pageSize = pageSize;
    this.#keys = new Float64Array(packetPages);
    this.#sorted = new Uint32Array(packetPages);
    this.#positions = new Uint16Array(packetPages);
  }

  /**
   * Writes the first `count` pages of the list, which lie in `payload` in its order. Of a page that is in it twice the second
   * counts.
   *
   * @returns the pages, ascending; this object's until the next call
   * @throws MultifdError ERR_MULTIFD_IO
   */
  write(file: FileBlock, list: Uint32Array, count: number, payload: Buffer): Uint32Array {
    const size = this.#pageSize;
    const isAscending = ascends(list, 0, count);
    const pages = isAscending ? list : this.#sort(list, count);
    for (let i = 0; i < count;) {
      const run = runLength(pages, i, count - i);
      const first = isAscending ? i : this.#positions[i];
      if (isAscending || runLength(this.#positions, i, run) === run) {
        file.write(payload, first * size, run * size, pages[i] * size);
      } else file.writePieces(this.#pieces(payload, i, run), pages[i] * size);
      i += run;
    }
    return pages;
  }

  #sort(list: Uint32Array, count: number): Uint32Array {
    const keys = orderPages(this.#keys, list, count);
    for (let i = 0; i < count; i++) {
      this.#sorted[i] = keyPage(keys[i]);
      this.#positions[i] = keyEntry(keys[i]);
    }
    return this.#sorted;
  }

  #pieces(payload: Buffer, from: number, run: number): Buffer[] {
    if (payload !== this.#payload) {
      this.#payload = payload;
      this.#views = new Array<Buffer | undefined>(this.#positions.length).fill(undefined);
    }
    const size = this.#pageSize;
    const pieces: Buffer[] = [];
    for (let i = from; i < from + run; i++) {
      const at = this.#positions[i];
      pieces.push((this.#views[at] ??= payload.subarray(at * size, (at + 1) * size)));
    }
    return pieces;
  }
}

/** Are entries `from` to `to` in order? Equal ones are. */
export function ascends(pages: Uint32Array, from: number, to: number): boolean {
  let i = from + 1;
  while (i < to && pages[i] >= pages[i - 1]) i++;
  return i >= to;
}
