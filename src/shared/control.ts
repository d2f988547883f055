/**
 * The hand-over: slots, semaphores and flags that the calling thread and the channel threads share. With wait.ts the
 * only file that touches Atomics.
 *
 * A slot belongs to exactly one side at any time. C channels and k clients have C + k slots: each channel holds one
 * and each client holds one, and a hand-over swaps the two. `pendingJob` says who owns the channel's slot.
 *
 *     pendingJob  slot of the channel   set by            who sleeps on it
 *     0           client side may swap  channel: done()   a client, in Sender's hand-over, on READY
 *     1           the channel owns it   client: publish() the channel, in its loop, on SEM
 *
 *     pendingSync 0 none, 1 asked       client sets, channel clears; its partner word is SYNC_DONE
 *     STOP        RUN, END, FAIL        anyone; only grows. Every wait also ends on STOP: stop() wakes all words
 *
 * On the receiving side the roles turn: the channel fills its own slot and sets pendingJob = 1 (offer()), the calling
 * thread takes the payload out and clears it (taken()).
 *
 * Pairs (bytes first, then the store that publishes, then notify; readers load in the opposite order):
 *     publish()       stores SLOT and the slot, then PENDING_JOB = 1   with  hasJob() in the channel
 *     done()          empties the slot, then PENDING_JOB = 0           with  isIdle() in the client
 *     requestSync()   stores PENDING_SYNC = 1                          with  wantsSync(), read before hasJob():
 *                     a channel that sees the sync sees every job published before it
 *     syncDone()      after the SYNC packet is written                 with  syncsDone() in sync()
 *
 * SEM and READY are counters that only grow ("eventcounts"), where QEMU has counting semaphores: a waiter notes the
 * count, looks at everything, and sleeps only if the count is still the same. A wake-up can therefore not be lost,
 * and one too many does no harm.
 *
 * Long, and one thing: a pair of stores and loads can only be judged with both of its sides before the eyes.
 */
import { MultifdError } from '../errors.js';
import {
  CHANNEL_PENDING_JOB,
  CHANNEL_PENDING_SYNC,
  CHANNEL_SEM,
  CHANNEL_SLOT,
  CHANNEL_STATE,
  CHANNEL_SYNC_ALLOC,
  CHANNEL_SYNC_DONE,
  CHANNEL_SYNC_RELEASED,
  Layout,
  SLOT_ALL_ZERO,
  SLOT_BLOCK,
  SLOT_INSTANCE_ID,
  SLOT_LENGTH,
  SLOT_NORMAL_NUM,
  SLOT_NUM,
  SLOT_RANGE,
  SLOT_TYPE,
  STAT_COUNT,
  WORD_FIRST_ERROR,
  WORD_FROZEN,
  WORD_PACKET_NUM,
  WORD_PROGRESS,
  WORD_PROGRESS_MS,
  WORD_PROOF,
  WORD_READY,
  WORD_STOP,
  WORD_SYNC_PAGES_ALLOC,
  WORD_TRACE,
  type Shape,
} from './layout.js';
import { maskOf } from '../ram/bitmap.js';
import { waitChange } from './wait.js';

/** STOP: goes up only. END: leave at the next idle moment, orderly. FAIL: drop everything. */
export const STOP_RUN = 0;
export const STOP_END = 1;
export const STOP_FAIL = 2;

/** Payload types of a slot. QEMU: MultiFDSendData.type. */
export const PAYLOAD_NONE = 0;
export const PAYLOAD_RAM = 1;
export const PAYLOAD_DEVICE_STATE = 2;

/** STATE of a channel. */
export const CHANNEL_CREATED = 0;
export const CHANNEL_RUNNING = 1;
/** The peer ended the channel at a packet boundary. */
export const CHANNEL_EOF = 2;
export const CHANNEL_ENDED = 3;

/** Index of the one word of makeBooted(). */
const BOOTED = 0;

/** PROOF, bits. */
const PROOF_ASKED = 1;
const PROOF_STOPPED = 2;

const FIRST_ERROR_NONE = 0;
const FIRST_ERROR_CALLER = 1;
const FIRST_ERROR_CHANNEL = 2;

/** What crosses to a worker. */
export interface SharedControl {
  shape: Shape;
  control: SharedArrayBuffer;
  data: SharedArrayBuffer;
  /** The threads' own, which may be there before the session: makeBooted(). */
  booted: SharedArrayBuffer;
}

/** One slot: plain accesses, since whoever holds it holds it alone. */
export class Slot {
  readonly index: number;
  /** Page indexes: as queued; after zero-page detection normal pages first, then zero pages. */
  readonly pages: Uint32Array;
  /** Staged pages in the order queued, or a device-state payload. */
  readonly data: Buffer;
  readonly #words: Int32Array;
  readonly #base: number;
  readonly #idstr: Buffer;

  constructor(shared: SharedControl, layout: Layout, words: Int32Array, index: number) {
    this.index = index;
    this.#words = words;
    this.#base = layout.slot(index);
    this.pages = new Uint32Array(shared.control, layout.pagesByte(index), layout.pages);
    this.#idstr = Buffer.from(shared.control, layout.idstrByte(index), 256);
    this.data = Buffer.from(shared.data, index * layout.dataBytes, layout.dataBytes);
  }

  get type(): number {
    return this.#words[this.#base + SLOT_TYPE];
  }
  set type(value: number) {
    this.#words[this.#base + SLOT_TYPE] = value;
  }
  /** Index of the RAM block. */
  get block(): number {
    return this.#words[this.#base + SLOT_BLOCK];
  }
  set block(value: number) {
    this.#words[this.#base + SLOT_BLOCK] = value;
  }
  /** Pages listed. */
  get num(): number {
    return this.#words[this.#base + SLOT_NUM];
  }
  set num(value: number) {
    this.#words[this.#base + SLOT_NUM] = value;
  }
  /** Of those, pages with data; they come first. */
  get normalNum(): number {
    return this.#words[this.#base + SLOT_NORMAL_NUM];
  }
  set normalNum(value: number) {
    this.#words[this.#base + SLOT_NORMAL_NUM] = value;
  }
  get instanceId(): number {
    return this.#words[this.#base + SLOT_INSTANCE_ID] >>> 0;
  }
  set instanceId(value: number) {
    this.#words[this.#base + SLOT_INSTANCE_ID] = value;
  }
  /** The pages are known to be zero: nothing of them is read. */
  get allZero(): boolean {
    return this.#words[this.#base + SLOT_ALL_ZERO] === 1;
  }
  set allZero(value: boolean) {
    this.#words[this.#base + SLOT_ALL_ZERO] = value ? 1 : 0;
  }
  /** The pages lie side by side from pages[0] on, and only that one is listed. */
  get range(): boolean {
    return this.#words[this.#base + SLOT_RANGE] === 1;
  }
  set range(value: boolean) {
    this.#words[this.#base + SLOT_RANGE] = value ? 1 : 0;
  }
  /** Bytes of a device-state payload. */
  get length(): number {
    return this.#words[this.#base + SLOT_LENGTH];
  }
  set length(value: number) {
    this.#words[this.#base + SLOT_LENGTH] = value;
  }
  get idstr(): string {
    const nul = this.#idstr.indexOf(0);
    return this.#idstr.toString('latin1', 0, nul < 0 ? 256 : nul);
  }
  set idstr(value: string) {
    this.#idstr.fill(0);
    this.#idstr.write(value, 0, 255, 'latin1');
  }

  /** Empty again; the bytes stay and mean nothing. */
  clear(): void {
    this.type = PAYLOAD_NONE;
    this.num = 0;
    this.normalNum = 0;
    this.allZero = false;
    this.range = false;
    this.length = 0;
  }
}

export class Control {
  readonly shared: SharedControl;
  readonly channels: number;
  readonly slots: Slot[];
  readonly #words: Int32Array;
  readonly #booted: Int32Array;
  readonly #layout: Layout;

  private constructor(shared: SharedControl) {
    this.shared = shared;
    this.channels = shared.shape.channels;
    this.#layout = new Layout(shared.shape);
    this.#words = new Int32Array(shared.control);
    this.#booted = new Int32Array(shared.booted);
    this.slots = [];
    for (let i = 0; i < this.#layout.slots; i++) {
      this.slots.push(new Slot(shared, this.#layout, this.#words, i));
    }
  }

  /**
   * Calling thread: the session's shared memory, all of it. Channel i begins with slot i.
   *
   * @param booted of threads that were started before
   */
  static create(shape: Shape, booted = makeBooted()): Control {
    const layout = new Layout(shape);
    const dataBytes = layout.slots * layout.dataBytes;
    let data: SharedArrayBuffer;
    try {
      data = new SharedArrayBuffer(dataBytes, { maxByteLength: dataBytes });
    } catch (cause) {
      const given = `${shape.channels} channels with ${layout.dataBytes} bytes each`;
      const message = `options channels, deviceStateBytes: given ${given}, allowed what memory can be had for`;
      throw new MultifdError('ERR_MULTIFD_OPTION', message, { cause });
    }
    const control = new Control({
      shape,
      control: new SharedArrayBuffer(layout.controlBytes),
      data,
      booted,
    });
    for (let id = 0; id < shape.channels; id++) control.#words[layout.channel(id) + CHANNEL_SLOT] = id;
    return control;
  }

  /** Channel thread: the same memory. */
  static attach(shared: SharedControl): Control {
    return new Control(shared);
  }

  /** The counters of a channel; written by that channel alone, so plain 8-byte stores do. */
  stats(id: number): Float64Array {
    return new Float64Array(this.shared.control, this.#layout.statsByte(id), STAT_COUNT);
  }

  #at(id: number, word: number): number {
    return this.#layout.channel(id) + word;
  }

  // ---- stop ----

  get stopped(): number {
    return Atomics.load(this.#words, WORD_STOP);
  }

  /** Anyone. Raises STOP, never lowers it, and wakes every wait of the session. */
  stop(level: number): void {
    for (;;) {
      const now = Atomics.load(this.#words, WORD_STOP);
      if (now >= level) return;
      if (Atomics.compareExchange(this.#words, WORD_STOP, now, level) === now) break;
    }
    Atomics.notify(this.#words, WORD_STOP);
    this.postReady();
    this.postProgress();
    for (let id = 0; id < this.channels; id++) this.postSem(id);
    Atomics.notify(this.#booted, BOOTED);
    this.#setProof(PROOF_STOPPED);
  }

  /** Resolves once STOP is above `level`. For the guard that every channel keeps beside its socket. */
  async stopAbove(level: number): Promise<number> {
    for (;;) {
      const now = this.stopped;
      if (now > level) return now;
      await waitChange(this.#words, WORD_STOP, now, 0);
    }
  }

  /** First error wins: true for exactly one caller. The calling thread passes -1, a channel its id. */
  claimFirstError(id: number): boolean {
    const mine = id < 0 ? FIRST_ERROR_CALLER : FIRST_ERROR_CHANNEL + id;
    return (
      Atomics.compareExchange(this.#words, WORD_FIRST_ERROR, FIRST_ERROR_NONE, mine) === FIRST_ERROR_NONE
    );
  }

  /** Threads whose modules are loaded. */
  get bootedCount(): number {
    return Atomics.load(this.#booted, BOOTED);
  }

  /** Until it is no longer `seen`, or STOP was raised. */
  waitBooted(seen: number): Promise<void> | undefined {
    return waitChange(this.#booted, BOOTED, seen, 0);
  }

  // ---- READY: channels to the calling thread ----

  get readyCount(): number {
    return Atomics.load(this.#words, WORD_READY);
  }

  postReady(): void {
    Atomics.add(this.#words, WORD_READY, 1);
    Atomics.notify(this.#words, WORD_READY);
  }

  /** Calling thread: until READY is no longer `seen`. */
  waitReady(seen: number, spin: number): Promise<void> | undefined {
    return waitChange(this.#words, WORD_READY, seen, spin);
  }

  // ---- SEM: the calling thread to one channel ----

  semCount(id: number): number {
    return Atomics.load(this.#words, this.#at(id, CHANNEL_SEM));
  }

  postSem(id: number): void {
    const index = this.#at(id, CHANNEL_SEM);
    Atomics.add(this.#words, index, 1);
    Atomics.notify(this.#words, index);
  }

  waitSem(id: number, seen: number, spin: number): Promise<void> | undefined {
    return waitChange(this.#words, this.#at(id, CHANNEL_SEM), seen, spin);
  }

  // ---- sending: the swap ----

  /** Client: may the slot of this channel be swapped? (acquire, pairs with done()) */
  isIdle(id: number): boolean {
    return Atomics.load(this.#words, this.#at(id, CHANNEL_PENDING_JOB)) === 0;
  }

  /**
   * Client: gives `slot`, filled, to an idle channel and takes the channel's empty one. pendingJob comes last
   * (release, pairs with hasJob()).
   */
  publish(id: number, slot: Slot): Slot {
    const at = this.#at(id, CHANNEL_SLOT);
    const empty = this.slots[this.#words[at]];
    if (empty.type !== PAYLOAD_NONE)
      throw new Error(`slot ${empty.index} of idle channel ${id} is not empty`);
    this.#words[at] = slot.index;
    Atomics.store(this.#words, this.#at(id, CHANNEL_PENDING_JOB), 1);
    this.postSem(id);
    return empty;
  }

  /** Channel: is a job there? (acquire, pairs with publish()) */
  hasJob(id: number): boolean {
    return Atomics.load(this.#words, this.#at(id, CHANNEL_PENDING_JOB)) === 1;
  }

  /** The slot that the channel holds. */
  slotOf(id: number): Slot {
    return this.slots[this.#words[this.#at(id, CHANNEL_SLOT)]];
  }

  /** Channel: the job's slot is empty and may be swapped (release, pairs with isIdle()). */
  done(id: number): void {
    this.slotOf(id).clear();
    Atomics.store(this.#words, this.#at(id, CHANNEL_PENDING_JOB), 0);
    this.postReady();
  }

  // ---- sending: sync ----

  requestSync(id: number): void {
    Atomics.store(this.#words, this.#at(id, CHANNEL_PENDING_SYNC), 1);
    this.postSem(id);
  }

  wantsSync(id: number): boolean {
    return Atomics.load(this.#words, this.#at(id, CHANNEL_PENDING_SYNC)) === 1;
  }

  /** Channel: the SYNC packet is out (sending), or has been read (receiving). */
  syncDone(id: number): void {
    Atomics.store(this.#words, this.#at(id, CHANNEL_PENDING_SYNC), 0);
    Atomics.add(this.#words, this.#at(id, CHANNEL_SYNC_DONE), 1);
    this.postReady();
  }

  /** pages_alloc of the SYNC packet that was read last; a plain word, which syncDone() publishes. */
  syncAlloc(id: number): number {
    return this.#words[this.#at(id, CHANNEL_SYNC_ALLOC)];
  }

  setSyncAlloc(id: number, pagesAlloc: number): void {
    this.#words[this.#at(id, CHANNEL_SYNC_ALLOC)] = pagesAlloc;
  }

  /** What SYNC packets that are sent say in pages_alloc; a plain word, which requestSync() publishes. */
  get syncPagesAlloc(): number {
    return this.#words[WORD_SYNC_PAGES_ALLOC];
  }
  set syncPagesAlloc(pagesAlloc: number) {
    this.#words[WORD_SYNC_PAGES_ALLOC] = pagesAlloc;
  }

  /** SYNC packets written or read on this channel, modulo 2^32. */
  syncsDone(id: number): number {
    return Atomics.load(this.#words, this.#at(id, CHANNEL_SYNC_DONE));
  }

  // ---- receiving: sync and delivery ----

  /** Calling thread: the channel may read on. Pairs with syncsReleased(). */
  releaseSync(id: number): void {
    Atomics.add(this.#words, this.#at(id, CHANNEL_SYNC_RELEASED), 1);
    this.postSem(id);
  }

  syncsReleased(id: number): number {
    return Atomics.load(this.#words, this.#at(id, CHANNEL_SYNC_RELEASED));
  }

  /** Channel: its own slot is filled for the calling thread (release, pairs with hasJob() there). */
  offer(id: number): void {
    Atomics.store(this.#words, this.#at(id, CHANNEL_PENDING_JOB), 1);
    this.postReady();
  }

  /** Calling thread: the payload is out of the slot (release, pairs with isIdle() in the channel). */
  taken(id: number): void {
    this.slotOf(id).clear();
    Atomics.store(this.#words, this.#at(id, CHANNEL_PENDING_JOB), 0);
    this.postSem(id);
  }

  // ---- digests of RAM ----

  /** Calling thread, once (pairs with proofAsked()): RAM is as it is to be digested. */
  askProof(): void {
    this.#setProof(PROOF_ASKED);
  }

  #setProof(bit: number): void {
    Atomics.or(this.#words, WORD_PROOF, bit);
    Atomics.notify(this.#words, WORD_PROOF);
  }

  /** Channel: waits until digests are wanted, or the session stops. @returns whether they are */
  async proofAsked(): Promise<boolean> {
    for (;;) {
      const now = Atomics.load(this.#words, WORD_PROOF);
      if (now !== 0) return (now & PROOF_STOPPED) === 0;
      await waitChange(this.#words, WORD_PROOF, now, 0);
    }
  }

  // ---- state, numbers, watchers ----

  channelState(id: number): number {
    return Atomics.load(this.#words, this.#at(id, CHANNEL_STATE));
  }

  setChannelState(id: number, state: number): void {
    Atomics.store(this.#words, this.#at(id, CHANNEL_STATE), state);
    this.postReady();
  }

  /** The next packet_num: one counter over all channels. 2^32 packets are 2 PiB of full ones. */
  nextPacketNum(): number {
    return Atomics.add(this.#words, WORD_PACKET_NUM, 1) >>> 0;
  }

  /** Do channels report their packets? A plain read: being one packet late does no harm. */
  get trace(): boolean {
    return this.#words[WORD_TRACE] !== 0;
  }
  set trace(on: boolean) {
    this.#words[WORD_TRACE] = on ? 1 : 0;
  }

  /**
   * Set once by the calling thread: what is in place is all there is to be. Channels look at it before each step and
   * before they put pages into place; one that passed that look just before is through within a write.
   */
  get frozen(): boolean {
    return Atomics.load(this.#words, WORD_FROZEN) !== 0;
  }
  freeze(): void {
    Atomics.store(this.#words, WORD_FROZEN, 1);
  }

  /** Milliseconds between two progress posts of one channel; 0: nobody listens. */
  get progressMs(): number {
    return this.#words[WORD_PROGRESS_MS];
  }
  set progressMs(ms: number) {
    this.#words[WORD_PROGRESS_MS] = ms;
  }

  get progressCount(): number {
    return Atomics.load(this.#words, WORD_PROGRESS);
  }

  postProgress(): void {
    Atomics.add(this.#words, WORD_PROGRESS, 1);
    Atomics.notify(this.#words, WORD_PROGRESS);
  }

  waitProgress(seen: number): Promise<void> | undefined {
    return waitChange(this.#words, WORD_PROGRESS, seen, 0);
  }
}

/** How many threads have loaded their modules: in memory of its own, since they are started before there is a Control. */
export function makeBooted(): SharedArrayBuffer {
  return new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
}

/** Channel thread, once its modules are loaded; `booted` is its workerData. Pairs with bootedCount. */
export function markBooted(booted: SharedArrayBuffer): void {
  const words = new Int32Array(booted);
  Atomics.add(words, BOOTED, 1);
  Atomics.notify(words, BOOTED);
}

/** Sets bits of a shared bitmap; several channels may do so at once. Says whether none of them was set before. */
export function markPages(words: Int32Array, first: number, count: number): boolean {
  return changePages(words, first, count, true);
}

/** Clears them. */
export function unmarkPages(words: Int32Array, first: number, count: number): void {
  changePages(words, first, count, false);
}

function changePages(words: Int32Array, first: number, count: number, set: boolean): boolean {
  let page = first;
  let before = 0;
  const end = first + count;
  while (page < end) {
    const bits = Math.min(32 - (page & 31), end - page);
    const mask = maskOf(page, bits);
    if (set) before |= Atomics.or(words, page >>> 5, mask) & mask;
    else Atomics.and(words, page >>> 5, ~mask);
    page += bits;
  }
  return before === 0;
}
