/**
 * The slot that the RAM client fills, on the calling thread: what may come into it, how pages get there, and when it goes.
 *
 *     queued by ram-client.ts, deferred.ts --> put(), list() --> slot: block, page list, bytes
 *                                                               | a packet's pages, and a channel idle: offer()
 *                                                               | full, another block, flush(), sync(): flush()
 *                                                               v
 *                                                           hand-over.ts
 *
 * The slot in `#slot` is always the client's own, bytes and words; the one that was handed over is the channel's and no
 * longer known here. Pages of kind shared and file are listed by their index only, and the channel reads them; those of
 * kind private, which no other thread sees, and of kind stream are copied into the slot's data.
 *
 * A slot may hold several packets, which the channel sends one after the other: a hand-over costs as much as a packet of
 * zero pages.
 */
import type { RAMBlock } from '../ram/block.js';
import type { MemorySource } from '../ram/memory.js';
import { Windows } from '../ram/windows.js';
import { PAYLOAD_RAM, type Slot } from '../shared/control.js';
import type { Bandwidth } from './bandwidth.js';
import type { HandOver } from './hand-over.js';
import type { Turns } from './turns.js';

export interface RamSlotOptions {
  pageSize: number;
  /** Pages of a packet. */
  packetPages: number;
  /** Pages of the fullest slot. */
  maxPages: number;
}

export class RamSlot {
  readonly #handOver: HandOver;
  readonly #bandwidth: Bandwidth;
  readonly #turns: Turns;
  readonly #pageSize: number;
  readonly #packetPages: number;
  readonly #maxPages: number;
  #slot: Slot;

  /** @param slot the client's first */
  constructor(
    slot: Slot,
    options: RamSlotOptions,
    pieces: { handOver: HandOver; bandwidth: Bandwidth; turns: Turns },
  ) {
    this.#slot = slot;
    this.#pageSize = options.pageSize;
    this.#packetPages = options.packetPages;
    this.#maxPages = options.maxPages;
    this.#handOver = pieces.handOver;
    this.#bandwidth = pieces.bandwidth;
    this.#turns = pieces.turns;
  }

  /** Pages in it. */
  get num(): number {
    return this.#slot.num;
  }

  /** How many pages a slot may hold: with their bytes one packet, and with a limit of bandwidth no more than that either. */
  room(block: RAMBlock): number {
    const { kind } = block;
    const staged = kind === 'private' || kind === 'stream';
    return staged || this.#bandwidth.limit > 0 ? this.#packetPages : this.#maxPages;
  }

  /** Does the slot have room for a page of this block, within `room` pages? */
  takes(block: RAMBlock, allZero: boolean, room: number): boolean {
    const slot = this.#slot;
    const { num } = slot;
    return num === 0 || (slot.block === block.index && slot.allZero === allZero && num < room);
  }

  /**
   * How many pages may come next: to the end of a packet while a channel waits for work, or if it has to be `whole` packets,
   * else as many as there is room for.
   */
  ahead(room: number, whole: boolean): number {
    const { num } = this.#slot;
    return whole || this.#handOver.hasIdle() ? this.#packetPages - (num % this.#packetPages) : room - num;
  }

  /** Pages side by side, with their bytes if those are private memory, into the slot, which has room for them. */
  put(block: RAMBlock, page: number, count: number): void {
    if (block.kind === 'private') {
      const { num, data } = this.#slot;
      for (let i = 0; i < count; i++) {
        const offset = (page + i) * this.#pageSize;
        const at = offset % Windows.WINDOW_BYTES;
        const window = (block.memory as MemorySource).windowAt(offset);
        window.copy(data, (num + i) * this.#pageSize, at, at + this.#pageSize);
      }
    }
    this.list(block, page, count, false);
  }

  /** One page, whose bytes are page `i` of `data`; they are copied. */
  putCopy(block: RAMBlock, page: number, data: Buffer, i: number): void {
    const slot = this.#slot;
    const size = this.#pageSize;
    data.copy(slot.data, slot.num * size, i * size, (i + 1) * size);
    this.list(block, page, 1, false);
  }

  /**
   * Pages side by side into the slot's page list.
   *
   * @param allZero they are zero whatever their memory holds
   */
  list(block: RAMBlock, page: number, count: number, allZero: boolean): void {
    const slot = this.#slot;
    const { num, pages } = slot;
    if (num === 0) {
      slot.type = PAYLOAD_RAM;
      slot.block = block.index;
      slot.allZero = allZero;
      slot.range = true;
      pages[0] = page;
    } else if (!slot.range || page !== pages[0] + num) {
      if (slot.range) for (let i = 1; i < num; i++) pages[i] = pages[0] + i;
      slot.range = false;
      for (let i = 0; i < count; i++) pages[num + i] = page + i;
    }
    slot.num = num + count;
  }

  /** At the end of a packet: gives the slot to a channel that is idle, if there is one. */
  offer(): void {
    const slot = this.#slot;
    const { num } = slot;
    if (num !== 0 && num % this.#packetPages === 0) this.#slot = this.#handOver.offer(slot);
  }

  /** Hands the slot over if anything is in it: to `target`, or to any channel. */
  async flush(target: number): Promise<void> {
    if (this.#slot.num === 0) return;
    if (this.#bandwidth.limit > 0) await this.#bandwidth.throttle();
    if (this.#turns.isDue()) await this.#turns.take();
    this.#slot = await this.#handOver.give(this.#slot, target);
  }
}
