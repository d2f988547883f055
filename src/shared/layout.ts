/**
 * Layout of a session's shared memory. Every index has its name here and nowhere else; sizes follow from the last
 * index. Words that different threads write lie in different 64-byte lines.
 *
 *     control (one SharedArrayBuffer)
 *     +--------------------------------------------------------------------------------------------+
 *     | global lines: STOP | READY | PACKET_NUM | TRACE, PROGRESS_MS, SYNC_PAGES_ALLOC | PROGRESS |  |
 *     |               FIRST_ERROR | PROOF                                                          |
 *     +--------------------------------------------------------------------------------------------+
 *     | channel 0: PENDING_JOB | SEM, SLOT, SYNC_RELEASED | PENDING_SYNC |                         |
 *     |            STATE, SYNC_DONE, SYNC_ALLOC | stats                                            |
 *     | channel 1: ...                                                                             |
 *     +--------------------------------------------------------------------------------------------+
 *     | slot 0: TYPE, BLOCK, NUM, NORMAL_NUM, INSTANCE_ID, LENGTH, ALL_ZERO, RANGE | idstr | pages[N]  |
 *     | slot 1: ...                                                                                |
 *     +--------------------------------------------------------------------------------------------+
 *     slot data (a second one): dataBytes for each slot: staged pages, or one device-state payload.
 *     The kernel gives memory only for what is written: a session of shared blocks never touches it.
 *     It is a growable buffer for that reason alone: V8 maps such ones, others come from calloc(), which after a few
 *     hundred sessions takes them from memory that was freed, and writes all of it.
 */
import { IDSTR_BYTES } from '../wire/device-state.js';
import { MULTIFD_PACKET_BYTES, pagesPerPacket } from '../wire/packet.js';

export const LINE_WORDS = 16;
const WORD_BYTES = 4;

/** Global words, a line each. */
export const WORD_STOP = 0 * LINE_WORDS;
/** Grows whenever a channel has something to tell the calling thread. QEMU: channels_ready. */
export const WORD_READY = 1 * LINE_WORDS;
export const WORD_PACKET_NUM = 2 * LINE_WORDS;
/** Written by the calling thread: whether channels report packets, and how often progress is wanted. */
export const WORD_TRACE = 3 * LINE_WORDS;
export const WORD_PROGRESS_MS = 3 * LINE_WORDS + 1;
export const WORD_FROZEN = 3 * LINE_WORDS + 2;
/** Written by the calling thread: what the SYNC packets that are sent say in pages_alloc. */
export const WORD_SYNC_PAGES_ALLOC = 3 * LINE_WORDS + 3;
export const WORD_PROGRESS = 4 * LINE_WORDS;
export const WORD_FIRST_ERROR = 5 * LINE_WORDS;
/** Written by the calling thread, once: digests of all of RAM are wanted, or none will be. */
export const WORD_PROOF = 6 * LINE_WORDS;
const GLOBAL_WORDS = 7 * LINE_WORDS;

/** Words of one channel, from its first word on. */
export const CHANNEL_PENDING_JOB = 0 * LINE_WORDS;
/** Written by the calling thread, and by whoever stops a channel. */
export const CHANNEL_SEM = 1 * LINE_WORDS;
export const CHANNEL_SLOT = 1 * LINE_WORDS + 1;
export const CHANNEL_SYNC_RELEASED = 1 * LINE_WORDS + 2;
export const CHANNEL_PENDING_SYNC = 2 * LINE_WORDS;
/** Written by the channel alone. */
export const CHANNEL_STATE = 3 * LINE_WORDS;
export const CHANNEL_SYNC_DONE = 3 * LINE_WORDS + 1;
/** pages_alloc of the SYNC packet that was read last. */
export const CHANNEL_SYNC_ALLOC = 3 * LINE_WORDS + 2;
/** Float64 counters of the channel, written by it alone: two lines. */
export const CHANNEL_STATS = 4 * LINE_WORDS;
const CHANNEL_WORDS = 6 * LINE_WORDS;

/** Counters of a channel, as Float64 indexes from CHANNEL_STATS on. */
export const STAT_BYTES = 0;
export const STAT_PACKETS = 1;
export const STAT_NORMAL_PAGES = 2;
export const STAT_ZERO_PAGES = 3;
export const STAT_SYNCS = 4;
export const STAT_DEVICE_STATES = 5;
export const STAT_IDLE_MS = 6;
export const STAT_BUSY_MS = 7;
/** When the wait, or the work, began that is under way; 0 if none is. */
export const STAT_IDLE_SINCE = 8;
export const STAT_BUSY_SINCE = 9;
/** Packets whose pages were sent without a copy, and those of them that the kernel copied all the same. */
export const STAT_ZERO_COPY_PACKETS = 10;
export const STAT_ZERO_COPY_COPIED = 11;
export const STAT_COUNT = 12;

/** Words of one slot. */
export const SLOT_TYPE = 0;
export const SLOT_BLOCK = 1;
export const SLOT_NUM = 2;
export const SLOT_NORMAL_NUM = 3;
export const SLOT_INSTANCE_ID = 4;
export const SLOT_LENGTH = 5;
export const SLOT_ALL_ZERO = 6;
export const SLOT_RANGE = 7;
const SLOT_IDSTR = LINE_WORDS;
const SLOT_PAGES = SLOT_IDSTR + IDSTR_BYTES / WORD_BYTES;

/** What is needed to lay out a session; travels to the workers with the two buffers. */
export interface Shape {
  channels: number;
  /** Slots of the calling thread: one a client. */
  clients: number;
  pageSize: number;
  /** Bytes of data a slot can hold. */
  dataBytes: number;
  /** Packets whose pages a slot can list (default 1). */
  packets?: number;
}

export class Layout {
  readonly pages: number;
  readonly slots: number;
  readonly controlBytes: number;
  readonly dataBytes: number;
  readonly #slotWords: number;
  readonly #slotBase: number;

  constructor(shape: Shape) {
    this.pages = pagesPerPacket(shape.pageSize) * (shape.packets ?? 1);
    this.slots = shape.channels + shape.clients;
    this.#slotBase = GLOBAL_WORDS + shape.channels * CHANNEL_WORDS;
    this.#slotWords = roundUp(SLOT_PAGES + this.pages, LINE_WORDS);
    this.controlBytes = (this.#slotBase + this.slots * this.#slotWords) * WORD_BYTES;
    this.dataBytes = shape.dataBytes;
  }

  /** First word of a channel. */
  channel(id: number): number {
    return GLOBAL_WORDS + id * CHANNEL_WORDS;
  }

  /** First byte of a channel's counters. */
  statsByte(id: number): number {
    return (this.channel(id) + CHANNEL_STATS) * WORD_BYTES;
  }

  /** First word of a slot. */
  slot(index: number): number {
    return this.#slotBase + index * this.#slotWords;
  }

  idstrByte(index: number): number {
    return (this.slot(index) + SLOT_IDSTR) * WORD_BYTES;
  }

  pagesByte(index: number): number {
    return (this.slot(index) + SLOT_PAGES) * WORD_BYTES;
  }
}

/** Data bytes a slot needs: a packet's pages, or the largest device-state payload. */
export function slotDataBytes(deviceStateBytes: number): number {
  return roundUp(Math.max(MULTIFD_PACKET_BYTES, deviceStateBytes), 4096);
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}
