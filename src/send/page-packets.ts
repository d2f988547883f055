/**
 * A slot of pages as packets, in a send channel's thread: the way of a page from the slot to the bytes that go out.
 *
 *     slot --> job (page list copied, slot given back at once unless it holds the bytes)
 *       |  packets that need no codec, as many as one write takes:  #holdPackets(), #holdRun()
 *       |  one packet for the codec, or of staged pages:            #sendPacketOf()
 *       v
 *     page-source.ts reads | partition.ts: normal first, zero after | compressing.ts | outgoing.ts
 *
 * One packet is on its way while the next is prepared and the next job may already be handed over: of a slot of shared
 * or file-backed pages only the page list is needed, so it is copied and the slot given back (pendingJob = 0) at once; it
 * may hold the pages of several packets. Pages staged in the slot are the slot's own bytes: there it stays until they are
 * compressed or with the kernel.
 *
 * With zeroCopySend "with the kernel" is not enough: it reads pages until they are acknowledged. A slot that holds pages then
 * goes back only when they are released, one packet in a round trip and channel; staging buffers are read into again only
 * when they are, for which there are enough to go on meanwhile.
 *
 * A guest without dirty tracking has all its pages queued each time, and changed-pages.ts says which of them go out.
 *
 * Guest RAM is the embedder's and may change at any moment; what is compressed is copied first, what is sent as it is, is
 * read by the kernel.
 */
import type { ZeroPageDetection } from '../options.js';
import { fillRange } from '../ram/page-list.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import type { Control, Slot } from '../shared/control.js';
import { pagesPerPacket } from '../wire/packet.js';
import type { ChangedPages } from './changed-pages.js';
import type { Compressing } from './compressing.js';
import { MAX_HELD, NO_PAYLOAD, type Outgoing } from './outgoing.js';
import type { PacketPages } from './page-source.js';
import { Partition, normalRun } from './partition.js';

/** What is kept of a slot of pages. */
interface Job {
  block: number;
  num: number;
  allZero: boolean;
  /** The pages lie side by side from `first` on; else they are in #listed. */
  range: boolean;
  first: number;
}

/** Payload of method none that goes into one write, or a packet's more. */
const MAX_HELD_PAYLOAD = 4 * 2 ** 20;
/**
 * Method none, in writes, which are packets where pages are of a file: the one on its way and the one in the making. Of four
 * packets in one write the first have left the processor's cache by then (bench qemu-file, load: 10 to 30 % more of the kernel's
 * time).
 */
export const WRITES_STAGED = 2;
/** With zeroCopySend: more than the kernel takes on its way, 4 MiB, and one in the making. */
export const WRITES_STAGED_ZERO_COPY = 16;
/** One for the packet on its way, one for that with the codec, and one for the packet in the making. */
export const STAGINGS_COMPRESSED = 3;

export interface PagePacketsPieces {
  source: PacketPages;
  /** The same, where only pages that have changed are sent. */
  changed?: ChangedPages;
  /** Undefined with method none. */
  compressing: Compressing | undefined;
  outgoing: Outgoing;
  /** Writes all that is outgoing, when the write before has been taken. */
  write: () => Promise<void>;
  /** Until the kernel reads no pages any more but those of the last so many writes. */
  released: (but: number) => Promise<void>;
  /** Writes for which there are staging buffers. */
  writesStaged: number;
}

export class PagePackets {
  readonly #control: Control;
  readonly #id: number;
  readonly #pageSize: number;
  readonly #detects: boolean;
  readonly #source: PacketPages;
  readonly #changed: ChangedPages | undefined;
  readonly #compressing: Compressing | undefined;
  readonly #outgoing: Outgoing;
  readonly #write: () => Promise<void>;
  readonly #released: (but: number) => Promise<void>;
  readonly #writesStaged: number;
  /** The slot's page list, copied. */
  readonly #listed: Uint32Array;
  /** The pages of the packet in hand, as they were queued. */
  readonly #queued: Uint32Array;
  readonly #partition: Partition;
  /** #partition is that of the packet to be made next. */
  #detected = false;
  /**
   * How many packets of zero pages are looked at in one go, as fast as memory is read: after one of them two, and twice as
   * many each time that it was right, so that little is looked at twice.
   */
  #zeroesAhead = 0;

  constructor(
    task: { id: number; pageSize: number; zeroPageDetection: ZeroPageDetection },
    control: Control,
    pieces: PagePacketsPieces,
  ) {
    this.#control = control;
    this.#id = task.id;
    this.#pageSize = task.pageSize;
    this.#detects = task.zeroPageDetection === 'multifd';
    this.#source = pieces.source;
    this.#changed = pieces.changed;
    this.#compressing = pieces.compressing;
    this.#outgoing = pieces.outgoing;
    this.#write = pieces.write;
    this.#released = pieces.released;
    this.#writesStaged = pieces.writesStaged;
    this.#listed = new Uint32Array(control.slotOf(task.id).pages.length);
    this.#queued = new Uint32Array(pagesPerPacket(task.pageSize));
    this.#partition = new Partition(task.pageSize);
  }

  /** A job of pages; resolves when its slot is given back, and its packets are written, held back or with the codec. */
  async send(slot: Slot): Promise<void> {
    const { block, num, allZero, range } = slot;
    const job: Job = { block, num, allZero, range, first: slot.pages[0] };
    const staged = this.#source.isStaged(block);
    if (!range) this.#listed.set(slot.pages.subarray(0, num));
    // All that was needed of the slot: the next job may come while this one is worked on.
    if (!staged) this.#control.done(this.#id);
    if (this.#changed !== undefined) {
      await this.#sendChanged(this.#changed, job, staged ? slot : undefined);
      return;
    }
    for (let at = 0; at < num;) {
      if (!staged) {
        // The write in the making takes the staging buffers of the oldest.
        if (this.#source.isFile(block)) await this.#released(this.#writesStaged - 1);
        at += this.#holdPackets(job, at);
        // What is held waits for more if that is there already: one system call for both.
        if (at === num && this.#outgoing.weight === 0 && this.#control.hasJob(this.#id)) return;
        if (this.#outgoing.packets > 0) await this.#write();
        if (at === num) return;
        if (!this.#detected) {
          await this.#compressing?.send();
          continue;
        }
      }
      const count = this.#detected ? this.#partition.num : this.#takePages(job, at);
      at += count;
      await this.#sendPacketOf(block, count, allZero, staged ? slot : undefined);
    }
  }

  /**
   * Of the job's pages those that have changed, packed together: a packet of each that has few of them costs as much as a full
   * one.
   *
   * @param slot as in #sendPacketOf(): given back as soon as its pages are looked at
   */
  async #sendChanged(changed: ChangedPages, job: Job, slot: Slot | undefined): Promise<void> {
    const limit = this.#queued.length;
    for (let at = 0; at < job.num;) {
      // As in send(): the buffer must not be the kernel's any more.
      await this.#released(this.#writesStaged - 1);
      let kept = 0;
      while (at < job.num && kept < limit) {
        const count = this.#takePages(job, at, limit - kept);
        const bytes = slot?.data.subarray(at * this.#pageSize);
        kept = changed.take(job.block, this.#queued.subarray(0, count), kept, bytes);
        at += count;
      }
      if (slot !== undefined && at === job.num) this.#control.done(this.#id);
      if (kept === 0) continue;
      this.#queued.set(changed.pages.subarray(0, kept));
      await this.#sendPacketOf(job.block, kept, false, undefined);
    }
  }

  /** The next packet's pages into #queued. */
  #takePages({ num, range, first }: Job, at: number, limit = this.#queued.length): number {
    const count = Math.min(limit, num - at);
    if (range) fillRange(this.#queued, 0, first + at, count);
    else this.#queued.set(this.#listed.subarray(at, at + count));
    return count;
  }

  /**
   * Packets of pages outside the slot that need no codec, from page `at` of the job on: all of them with method none, else
   * those of zero pages up to the first that has others. As many as one write takes.
   *
   * All in one go and without waiting in between, since at the start of a migration, when its code is new and slow, each
   * step of a stream and of a promise costs as much as the kernel's copy of a few pages.
   *
   * Stops before a packet for the codec, with #detected, and before one that a compressed packet has to go before.
   *
   * @returns how many pages they hold
   */
  #holdPackets(job: Job, at: number): number {
    const source = this.#source;
    const outgoing = this.#outgoing;
    const isFile = source.isFile(job.block);
    const partition = this.#partition;
    let done = 0;
    while (at + done < job.num && outgoing.packets < MAX_HELD && outgoing.weight < MAX_HELD_PAYLOAD) {
      const run = this.#holdRun(job, at + done);
      done += run;
      if (run > 0) continue;
      const count = this.#takePages(job, at + done);
      const { staging } = source;
      if (!job.allZero) source.read(job.block, this.#queued, count);
      this.#detectZeroPages(count, job.allZero, source.windowsOf(job.block), staging);
      const { normal } = partition;
      this.#zeroesAhead = normal === 0 ? 2 : 0;
      this.#detected = normal > 0 && this.#compressing !== undefined;
      if (this.#detected || this.#compressing?.any === true) break;
      const payload = source.pieces(partition, job.block, staging, 0, normal);
      outgoing.holdPages(job.block, normal, count - normal, partition.pages, payload);
      done += count;
      if (normal === 0) continue;
      // Of a file's pages each packet has a staging buffer, however few they are, and a write.
      outgoing.weigh(isFile ? MAX_HELD_PAYLOAD : normal * this.#pageSize);
      if (isFile) source.nextStaging();
    }
    return done;
  }

  /**
   * Packets of pages that lie side by side in shared memory and are all of one kind: no page list, one look for all of
   * them. Such pages are most of what a first pass sends.
   *
   * @returns how many pages they hold; 0 where it is not as simple as that
   */
  #holdRun({ block, num, range, allZero, first }: Job, at: number): number {
    const windows = this.#source.windowsOf(block);
    const outgoing = this.#outgoing;
    const size = this.#pageSize;
    const limit = this.#queued.length;
    const page = first + at;
    const packets = MAX_HELD - outgoing.packets;
    // What the codec has goes first; then this is asked again.
    if (!range || this.#compressing?.any === true) return 0;
    if (allZero) return this.#holdZeroRun(block, page, Math.min(num - at, packets * limit));
    if (windows === undefined) return 0;
    const window = windows.windowAt(page * size);
    const offset = (page * size) % Windows.WINDOW_BYTES;
    const left = Math.min(num - at, Windows.runLimit(page * size) / size);
    const detects = this.#detects;
    if (detects && this.#zeroesAhead > 0) {
      const count = Math.min(left, limit * Math.min(packets, this.#zeroesAhead));
      const zero = isZeroRange(window, offset, count * size);
      this.#zeroesAhead = zero ? 2 * this.#zeroesAhead : 0;
      if (zero) return this.#holdZeroRun(block, page, count);
    }
    if (this.#compressing !== undefined) return 0;
    const room = Math.ceil((MAX_HELD_PAYLOAD - outgoing.weight) / (limit * size));
    let count = Math.min(left, limit * Math.min(packets, room));
    if (detects) count = normalRun(window, offset, size, count);
    // What does not fill a packet goes with the pages behind it.
    if (count < left) count -= count % limit;
    for (let i = 0; i < count; i += limit) {
      const normal = Math.min(limit, count - i);
      outgoing.holdPages(block, normal, 0, page + i, [windows.view((page + i) * size, normal * size)]);
    }
    outgoing.weigh(count * size);
    return count;
  }

  #holdZeroRun(block: number, page: number, count: number): number {
    const limit = this.#queued.length;
    for (let i = 0; i < count; i += limit)
      this.#outgoing.holdPages(block, 0, Math.min(limit, count - i), page + i, NO_PAYLOAD);
    return count;
  }

  /**
   * The pages of #queued as one packet.
   *
   * @param staged the slot, if it holds the pages' bytes: given back as soon as they are not needed any more
   */
  async #sendPacketOf(block: number, num: number, allZero: boolean, staged: Slot | undefined): Promise<void> {
    const source = this.#source;
    const windows = source.windowsOf(block);
    // Where page `i` lies, unless it is shared: in the slot, or read from the file in one go.
    const staging = staged !== undefined ? staged.data : source.staging;
    if (!this.#detected && !allZero) source.read(block, this.#queued, num);
    if (!this.#detected) this.#detectZeroPages(num, allZero, windows, staging);
    this.#detected = false;
    const partition = this.#partition;
    const { normal } = partition;
    const compressing = this.#compressing;
    let payload: readonly Uint8Array[];
    if (compressing === undefined || normal === 0) {
      payload = source.pieces(partition, block, staging, 0, normal);
    } else {
      // What lies in the slot must be out of it when the slot is given back.
      if (staged === undefined) partition.sortOut(windows, staging);
      else partition.packed = normal;
      const { packed } = partition;
      const input = compressing.fill(source.pieces(partition, block, staging, 0, packed));
      if (staged !== undefined) this.#control.done(this.#id);
      const made = compressing.compress(input, packed < normal);
      const raw =
        packed < normal
          ? compressing.raw(source.pieces(partition, block, staging, packed, normal))
          : NO_PAYLOAD;
      if (made instanceof Promise) {
        // The next page that is read from a file must not go where these are.
        source.nextStaging();
        const pages = partition.pages.slice(0, num);
        await compressing.aside({ block, normal, zero: num - normal, pages, made, raw });
        return;
      }
      payload = made.length > 0 ? [made, ...raw] : raw;
    }
    await this.#compressing?.send();
    // Only a packet with pages keeps its staging busy, and only such a one waits for the write before it: a packet of
    // zero pages that took a turn would let the next one read over bytes that are still on their way.
    if (normal > 0) source.nextStaging();
    this.#outgoing.holdPages(block, normal, num - normal, partition.pages, payload);

    await this.#write();
    if (staged === undefined) return;
    // Method none: the kernel reads the pages from the slot.
    if (normal > 0 && compressing === undefined) await this.#released(0);
    if (normal === 0 || compressing === undefined) this.#control.done(this.#id);
  }

  /** Fills #partition with what of #queued has data, and what is zero. */
  #detectZeroPages(num: number, allZero: boolean, windows: Windows | undefined, staging: Buffer): void {
    const partition = this.#partition;
    if (allZero) partition.all(this.#queued, num, 'zero');
    else if (!this.#detects) partition.all(this.#queued, num, 'normal');
    else if (windows !== undefined) partition.detect(this.#queued, num, windows);
    else partition.detectStaged(this.#queued, num, staging);
  }
}
