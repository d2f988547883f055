/**
 * A packet's pages from and to a file with O_DIRECT, in few requests: one costs some 50 µs before its first byte and a
 * 4 KiB page 2 µs, so that it pays to carry along a few pages that lie in between.
 *
 *     write()   pages are put in order (a QEMU's packet has its last ones where zero pages were), and zero pages of the same
 *               packet between them go along as zeros: what lies there has no meaning, or is zero. Never other pages: those
 *               are other channels', or older ones that are still good
 *     read()    a gap is read along and left out
 *
 *     file      0 1 . . 4 5 6 . 8                   packet 0 1 8 4 5 6, zero 2 3 7
 *     request   [0 1 0 0 4 5 6 0 8]                 one instead of four
 *
 * Called in the channel threads. Who owns the bytes: `room` is this object's, filled and emptied within a call.
 */
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import { alignedBuffer, isAligned } from './aligned.js';
import type { FileBlock } from './file-block.js';
import { keyEntry, keyPage, orderPages, runLength } from './page-list.js';

/** Of zeros between two pages, at most; all of a request's are never more than its data, so that a file at most doubles. */
const MAX_ZEROS_BYTES = 32768;
/** Between pages that are read. */
const MAX_GAP_BYTES = 65536;
const ROOM_BYTES = 2 * MULTIFD_PACKET_BYTES;
/** Of a packet, at most. */
const ENTRIES = 256;

/** What is used of a packet's header: its list has the normal pages first. */
export interface PacketPages {
  pages: Uint32Array;
  normalPages: number;
  zeroPages: number;
}

export class DirectPages {
  readonly #pageSize: number;
  readonly #room = alignedBuffer(ROOM_BYTES);
  readonly #keys = new Float64Array(ENTRIES);

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  /** @param from the normal pages, one after the other */
  write(file: FileBlock, packet: PacketPages, from: Buffer): void {
    const { normalPages, zeroPages } = packet;
    const size = this.#pageSize;
    const keys = orderPages(this.#keys, packet.pages, normalPages + zeroPages);
    for (let k = 0; k < keys.length;) {
      if (keyEntry(keys[k]) >= normalPages) {
        k++;
        continue;
      }
      const end = this.#spanEnd(keys, k, normalPages);
      const first = keyPage(keys[k]);
      const entry = keyEntry(keys[k]);
      const length = (end - k) * size;
      if (isAligned(from, entry * size) && isStraight(keys, k, end)) {
        file.write(from, entry * size, length, first * size);
      } else {
        this.#gather(keys, k, end, normalPages, from);
        file.write(this.#room, 0, length, first * size);
      }
      k = end;
    }
  }

  /** Behind the last page that goes with the one at `k`. */
  #spanEnd(keys: Float64Array, k: number, normalPages: number): number {
    let end = k + 1;
    let data = 1;
    for (let next = end; next < keys.length && isNeighbour(keys, next); next++) {
      const isData = keyEntry(keys[next]) < normalPages;
      if (isData) {
        data++;
        end = next + 1;
      } else {
        const gap = next + 1 - end;
        if (gap * this.#pageSize > MAX_ZEROS_BYTES || next + 1 - k - data > data) break;
      }
    }
    return end;
  }

  #gather(keys: Float64Array, k: number, end: number, normalPages: number, from: Buffer): void {
    const size = this.#pageSize;
    for (let at = k, to = 0; at < end; at++, to += size) {
      const entry = keyEntry(keys[at]);
      if (entry < normalPages) from.copy(this.#room, to, entry * size, (entry + 1) * size);
      else this.#room.fill(0, to, to + size);
    }
  }

  /** @param into aligned; page i of the list goes to i * pageSize */
  read(file: FileBlock, pages: Uint32Array, count: number, into: Buffer): void {
    const size = this.#pageSize;
    for (let i = 0; i < count;) {
      const end = this.#readEnd(pages, i, count);
      const first = pages[i];
      const length = (pages[end - 1] + 1 - first) * size;
      if (length === (end - i) * size) {
        file.read(into, i * size, length, first * size);
      } else {
        file.read(this.#room, 0, length, first * size);
        for (let at = i; at < end;) {
          const run = runLength(pages, at, end - at);
          const begin = (pages[at] - first) * size;
          this.#room.copy(into, at * size, begin, begin + run * size);
          at += run;
        }
      }
      i = end;
    }
  }

  /** Behind the last page that is read with the one at `i`. */
  #readEnd(pages: Uint32Array, i: number, count: number): number {
    const size = this.#pageSize;
    let end = i + 1;
    for (; end < count && pages[end] > pages[end - 1]; end++) {
      const gap = (pages[end] - pages[end - 1] - 1) * size;
      if (gap > MAX_GAP_BYTES || (pages[end] + 1 - pages[i]) * size > ROOM_BYTES) break;
    }
    return end;
  }
}

function isNeighbour(keys: Float64Array, k: number): boolean {
  return keyPage(keys[k]) === keyPage(keys[k - 1]) + 1;
}

/** Do they lie in the packet as they lie in the file? */
function isStraight(keys: Float64Array, k: number, end: number): boolean {
  for (let at = k + 1; at < end; at++) if (keyEntry(keys[at]) !== keyEntry(keys[at - 1]) + 1) return false;
  return true;
}
