/**
 * The queueing side, on the calling thread: pages into slots, slots to idle channels, sync points.
 *
 *     queuePage, queueRange --> RAM client's slot ----+   hand-over: wait for an idle channel (READY), search on from
 *     queueDeviceState ------> device client's slot --+-> where the last search ended, swap the slots, pendingJob = 1
 *
 * A slot is handed over when it holds a packet's pages and a channel is idle, or else when it is full (the pages of
 * several packets, which the channel sends one after the other: a hand-over costs as much as a packet of zero pages),
 * when the block changes, and at flush() and sync().
 *
 * A page queued again before the next sync. Its first copy may sit in any channel, and nothing orders two channels
 * but a sync; a second copy on another channel could be overtaken by the first and lose. So a page that is queued
 * again within a phase is only noted (`deferred`), and sync() sends its final content once more on *every* channel:
 * whichever channel had the first copy, the final one comes after it. Zero pages of mode `legacy` travel on the main
 * stream, which is not ordered with the channels either: they too are only noted until the sync, and a page that
 * stops being zero before it is taken off the list.
 *
 * The event loop: nothing here blocks. Where channels are so fast that queueing never has to wait, it yields every
 * YIELD_MS by itself.
 */
import { performance } from 'node:perf_hooks';
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { types } from 'node:util';
import { MultifdError, receivedExpected } from '../errors.js';
import { integer } from '../option-checks.js';
import {
  checkMaxBandwidth,
  checkSenderOptions,
  isIdstr,
  type AnySenderOptions,
  type CheckedSenderOptions,
} from '../options.js';
import { formatAddress } from '../transport/address.js';
import { PageBitmap } from '../ram/bitmap.js';
import { checkPageRange, BlockStates, type RAMBlock, type SessionBlock } from '../ram/block.js';
import { BlockFiles } from '../ram/file-block.js';
import type { MemorySource } from '../ram/memory.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { Session } from '../session.js';
import {
  CHANNEL_RUNNING,
  Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_RAM,
  STOP_RUN,
  type Slot,
} from '../shared/control.js';
import { slotDataBytes } from '../shared/layout.js';
import { trace } from '../trace.js';
import { MULTIFD_PACKET_BYTES, pagesPerPacket } from '../wire/packet.js';
import type { SendChannelTask } from './channel.js';

/** The RAM client and the device-state client. */
const CLIENTS = 2;
const YIELD_MS = 2;
/** Queued without a wait between two looks at the clock. */
const QUICK_PAGES = 64;
/** How many looks for an idle channel before sleeping: about 10 µs. */
const SPIN = 400;
const ANY_CHANNEL = -1;
/**
 * Packets that a slot may hold, by choice: with 16 hand-overs no longer show in the profile of an all-zero guest. Packets
 * that take milliseconds to compress are better spread over the channels.
 */
const MAX_PACKETS = 16;
const MAX_PACKETS_COMPRESSED = 4;
/** maxBandwidth: how much may go out at once after a pause, in milliseconds of the rate. */
const BURST_MS = 100;
const MAX_SLEEP_MS = 60_000;
/** For the next thread to start, beside connecting. */
const START_MS = 30_000;
const RESOLVED = Promise.resolve();

/** What the RAM client keeps of a block. */
interface QueuedBlock {
  block: RAMBlock;
  /** Queued since the last sync: the first copy is in a slot or under way. */
  queued: PageBitmap;
  /** Queued again since; made when it is first needed. */
  deferred: PageBitmap | undefined;
  /** Mode legacy: zero when last queued. */
  zero: PageBitmap | undefined;
}

/**
 * The session with all that is internal of it; embedders get it from src/public-session.ts.
 *
 * @param explained for a migration, which itself says what the destination may have refused
 */
export async function createSender(options: AnySenderOptions, explained = false): Promise<Sender> {
  const checked = checkSenderOptions(options);
  const files = BlockFiles.open(checked.blocks, 'r');
  let sender: Sender;
  try {
    sender = new Sender(checked, explained);
  } catch (error) {
    await files.close();
    throw error;
  }
  sender.files = files;
  try {
    await sender.open();
  } catch (error) {
    await sender.close();
    throw error;
  }
  return sender;
}

export class Sender extends Session {
  /** The blocks, in the order given. */
  readonly blocks: readonly SessionBlock[];
  protected readonly terminatePoint = 'multifd_send_terminate_threads';
  protected override readonly errorPoint = 'multifd_send_error';
  readonly #options: CheckedSenderOptions;
  readonly #explained: boolean;
  readonly #states: QueuedBlock[];
  readonly #byBlock: BlockStates<QueuedBlock>;
  /** Pages of a packet, and of the fullest slot. */
  readonly #pages: number;
  readonly #maxPages: number;
  readonly #legacy: boolean;
  #ramSlot: Slot;
  #deviceSlot: Slot;
  /** Calls of each client, one after the other. */
  #ramTail: Promise<unknown> = RESOLVED;
  #ramBusy = 0;
  #deviceTail: Promise<unknown> = RESOLVED;
  /** Hand-overs wait in the order they came. */
  #nextTicket = 0;
  #serving = 0;
  #nextChannel = 0;
  #syncs = 0;
  #hasDeferred = false;
  #lastYield = performance.now();
  #quickPages = 0;
  #maxBandwidth: number;
  #tokens = 0;
  #tokenTime = performance.now();
  #tokenBytes = 0;
  readonly #scratch: Buffer | undefined;

  /** @internal use createSender() */
  constructor(options: CheckedSenderOptions, explained: boolean) {
    const control = Control.create({
      channels: options.channels,
      clients: CLIENTS,
      pageSize: options.pageSize,
      dataBytes: slotDataBytes(options.deviceStateBytes),
      packets: maxPackets(options),
    });
    super('send-channel', control, options.pageSize, options.compression, options.signal);
    this.#options = options;
    this.#explained = explained;
    this.blocks = options.blocks;
    this.#pages = pagesPerPacket(options.pageSize);
    this.#maxPages = this.#pages * maxPackets(options);
    this.#legacy = options.zeroPageDetection === 'legacy';
    this.#ramSlot = control.slots[options.channels];
    this.#deviceSlot = control.slots[options.channels + 1];
    this.#maxBandwidth = options.maxBandwidth;
    this.#states = options.blocks.map((block) => ({
      block,
      queued: new PageBitmap(block.pageCount),
      deferred: undefined,
      zero: this.#legacy ? new PageBitmap(block.pageCount) : undefined,
    }));
    this.#byBlock = new BlockStates(this.#states);
    if (this.#legacy && options.blocks.some((block) => block.kind === 'file')) {
      this.#scratch = Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES);
    }
  }

  /** @internal */
  async open(): Promise<void> {
    this.checkAborted();
    const options = this.#options;
    const { compression } = options;
    const blocks = options.blocks.map((block) => block.describe());
    for (let id = 0; id < options.channels; id++) {
      const task: SendChannelTask = {
        shared: this.control.shared,
        id,
        address: options.address,
        uuid: options.uuid,
        pageSize: options.pageSize,
        blocks,
        compression,
        level: compression === 'zlib' ? options.zlibLevel : options.zstdLevel,
        zeroPageDetection: options.zeroPageDetection,
        connectTimeoutMs: options.connectTimeoutMs,
        stallTimeoutMs: options.stallTimeoutMs,
        explained: this.#explained,
      };
      trace('multifd_new_send_channel_async', () => ({ id, address: formatAddress(options.address) }));
      this.runChannel(id, task);
    }
    let running = 0;
    const late = setTimeout(() => {
      const message = receivedExpected(`channels, no other within ${START_MS} ms`, running, options.channels);
      this.fail(new MultifdError('ERR_MULTIFD_TIMEOUT', message));
    }, options.connectTimeoutMs + START_MS);
    try {
      await this.until(() => {
        const now = this.#runningCount();
        if (now > running) late.refresh();
        running = now;
        return running === options.channels;
      });
    } finally {
      clearTimeout(late);
    }
  }

  #runningCount(): number {
    let running = 0;
    for (let id = 0; id < this.control.channels; id++) {
      if (this.control.channelState(id) >= CHANNEL_RUNNING) running++;
    }
    return running;
  }

  // ---- queueing ----

  /**
   * Queues one page. Resolves when the next may be queued (back-pressure), not when the page is sent; its content is
   * read some time before sync() resolves, so a page that changes later must be queued again.
   *
   * @param block the block or its name
   * @param offset in bytes, a multiple of the page size
   * @throws MultifdError ERR_MULTIFD_BLOCK, ERR_MULTIFD_RANGE, the session's error
   */
  queuePage(block: SessionBlock | string, offset: number): Promise<void> {
    try {
      this.requireOpen();
      const state = this.#byBlock.find(block);
      const page = checkPageRange(state.block, this.pageSize, offset, this.pageSize);
      return this.#queueRange(state, page, 1);
    } catch (error) {
      return Promise.reject(MultifdError.wrap(error, 'ERR_MULTIFD_OPTION', 'queuePage'));
    }
  }

  /**
   * Queues `length` bytes from `offset` on, both multiples of the page size; otherwise as queuePage().
   *
   * @throws MultifdError ERR_MULTIFD_BLOCK, ERR_MULTIFD_RANGE, the session's error
   */
  queueRange(block: SessionBlock | string, offset: number, length: number): Promise<void> {
    try {
      this.requireOpen();
      const state = this.#byBlock.find(block);
      const page = checkPageRange(state.block, this.pageSize, offset, length);
      return this.#queueRange(state, page, length / this.pageSize);
    } catch (error) {
      return Promise.reject(MultifdError.wrap(error, 'ERR_MULTIFD_OPTION', 'queueRange'));
    }
  }

  /**
   * Queues a DEVICE_STATE packet (QEMU >= 10.0). The bytes are copied before this resolves.
   *
   * @param idstr the device's idstr, 1 to 255 printable ASCII characters
   * @param instanceId 0 to 2^32-1
   * @param data 1 to `deviceStateBytes` bytes
   * @throws MultifdError ERR_MULTIFD_OPTION, the session's error
   */
  async queueDeviceState(idstr: string, instanceId: number, data: Uint8Array): Promise<void> {
    this.requireOpen();
    if (typeof idstr !== 'string' || !isIdstr(idstr)) {
      throw new MultifdError(
        'ERR_MULTIFD_OPTION',
        `option idstr: given ${JSON.stringify(idstr)}, allowed 1 to 255 printable ASCII characters`,
      );
    }
    integer('instanceId', instanceId, undefined, 0, 0xffffffff);
    if (!types.isUint8Array(data)) {
      const given = Object.prototype.toString.call(data);
      throw new MultifdError('ERR_MULTIFD_OPTION', `option data: given ${given}, allowed a Uint8Array`);
    }
    const length = data.byteLength;
    integer('data.length', length, undefined, 1, this.#options.deviceStateBytes);
    const turn = this.#deviceTail.then(async () => {
      await this.check();
      if (data.byteLength !== length) {
        const changed = `given ${length} bytes, ${data.byteLength} when its turn came`;
        throw new MultifdError('ERR_MULTIFD_OPTION', `option data: ${changed}, allowed no change`);
      }
      const slot = this.#deviceSlot;
      slot.type = PAYLOAD_DEVICE_STATE;
      slot.idstr = idstr;
      slot.instanceId = instanceId;
      slot.length = length;
      slot.data.set(data);
      await this.#throttle();
      this.#deviceSlot = await this.#handOver(slot, ANY_CHANNEL);
    });
    this.#deviceTail = turn.catch(() => {});
    try {
      await turn;
    } catch (thrown) {
      await this.broken(thrown, 'ERR_MULTIFD_OPTION', 'queueing device state');
    }
  }

  /**
   * Queues pages that are zero whatever their memory or file holds; to be used in mode `multifd`. Otherwise as
   * queueRange(), but each page at most once between two syncs.
   */
  async queueZeroRange(block: SessionBlock | string, offset: number, length: number): Promise<void> {
    this.requireOpen();
    const state = this.#byBlock.find(block);
    const first = checkPageRange(state.block, this.pageSize, offset, length);
    const end = first + length / this.pageSize;
    try {
      if (this.#tryQueue(state, first, end - first, true)) return;
    } catch (thrown) {
      await this.broken(thrown, 'ERR_MULTIFD_BLOCK', 'queueing pages');
    }
    await this.#exclusive(async () => {
      const room = this.#room(state);
      for (let page = first; page < end;) {
        if (!this.#takes(state, true, room)) await this.#flush(ANY_CHANNEL);
        const { num } = this.#ramSlot;
        const count = Math.min(end - page, room - num);
        this.#appendAll(state, page, count, true, undefined);
        page += count;
        if (num + count >= room) await this.#flush(ANY_CHANNEL);
      }
    });
  }

  /**
   * @internal Queues pages of a block of kind stream with their bytes: `normal` pages, whose data lies in `data` one
   * after the other, then zero pages. Copied before it resolves.
   */
  async queuePages(
    block: SessionBlock,
    pages: Uint32Array,
    normal: number,
    num: number,
    data: Buffer,
  ): Promise<void> {
    const state = this.#byBlock.find(block);
    const size = this.pageSize;
    await this.#exclusive(async () => {
      for (let i = 0; i < num; i++) {
        const allZero = i >= normal;
        if (!this.#takes(state, allZero, this.#pages)) await this.#flush(ANY_CHANNEL);
        const slot = this.#ramSlot;
        if (!allZero) data.copy(slot.data, slot.num * size, i * size, (i + 1) * size);
        this.#list(state, pages[i], 1, allZero);
        if (slot.num >= this.#pages) await this.#flush(ANY_CHANNEL);
      }
    });
  }

  /** Hands over what is queued, device state as well; resolves when channels have taken it. */
  async flush(): Promise<void> {
    this.requireOpen();
    const devices = this.#deviceTail;
    await this.#exclusive(async () => {
      await this.#flush(ANY_CHANNEL);
      await devices;
    });
  }

  /**
   * A sync point: flushes, then one SYNC packet on every channel. When it resolves, all of it is with the kernel;
   * everything queued before, by calls that are still waiting as well, is in place at the receiver once its sync() has
   * returned.
   */
  async sync(): Promise<void> {
    this.requireOpen();
    // Of this moment: calls that come later may be on either side of the sync point.
    const devices = this.#deviceTail;
    await this.#exclusive(() => this.#sync(devices));
  }

  /** @internal What SYNC packets say in pages_alloc from now on (at first 0, as a new QEMU's): a relay says what its source does. */
  set syncPagesAlloc(pagesAlloc: number) {
    this.control.syncPagesAlloc = pagesAlloc;
  }

  /**
   * Orderly end after the last sync(): flushes, ends every channel after its last byte, frees everything. Pages queued
   * since the last sync() are sent, but nothing tells the receiver that they are there; what only a sync() sends (the
   * final content of pages queued again, zero pages of mode legacy) is not.
   */
  async end(): Promise<void> {
    await this.endOnce(() =>
      this.#exclusive(async () => {
        await this.#flush(ANY_CHANNEL);
        await this.#deviceTail;
        await this.endOrderly();
      }),
    );
  }

  /**
   * Bytes a second on the wire, all channels together; 0 for no limit. May be set at any time; what channels have already
   * (up to 8 MiB each, where there was no limit) still goes out at once.
   */
  get maxBandwidth(): number {
    return this.#maxBandwidth;
  }
  set maxBandwidth(bytesPerSecond: number) {
    this.#maxBandwidth = checkMaxBandwidth(bytesPerSecond);
    this.#tokens = 0;
    this.#tokenTime = performance.now();
    this.#tokenBytes = this.wireBytes();
    this.wakeSleepers();
  }

  // ---- the RAM client ----

  #queueRange(state: QueuedBlock, page: number, count: number): Promise<void> {
    try {
      if (this.#tryQueue(state, page, count, false)) return RESOLVED;
    } catch (thrown) {
      return this.broken(thrown, 'ERR_MULTIFD_BLOCK', 'queueing pages');
    }
    return this.#exclusive(() => this.#queue(state, page, count));
  }

  /** Runs the RAM client's calls one after the other. */
  async #exclusive(call: () => Promise<void>): Promise<void> {
    this.#ramBusy++;
    const before = this.#ramTail;
    const turn = (async () => {
      if (this.#ramBusy > 1) await before;
      await this.check();
      await call();
    })();
    this.#ramTail = turn.catch(() => {});
    try {
      await turn;
    } catch (thrown) {
      await this.broken(thrown, 'ERR_MULTIFD_BLOCK', 'queueing pages');
    } finally {
      this.#ramBusy--;
    }
  }

  /**
   * Pages that the slot has room for, without waiting for anything, and without the promises that waiting costs; false, and
   * nothing done, if that cannot be.
   */
  #tryQueue(state: QueuedBlock, first: number, count: number, allZero: boolean): boolean {
    if (this.#ramBusy > 0 || this.#maxBandwidth > 0 || this.control.stopped !== STOP_RUN) return false;
    if (count === 0 || (this.#legacy && state.block.memory === undefined)) return false;
    // Calls that never wait would keep the event loop from turning.
    this.#quickPages += count;
    if (this.#quickPages >= QUICK_PAGES) {
      this.#quickPages = 0;
      if (performance.now() - this.#lastYield > YIELD_MS) return false;
    }
    const room = this.#room(state);
    if (!this.#takes(state, allZero, room)) return false;
    const { num } = this.#ramSlot;
    if (count > 1 && count > this.#ahead(num, room)) return false;
    // What a block's memory() calls has to wait for its turn: the slot is being filled.
    this.#ramBusy++;
    this.#appendAll(state, first, count, allZero, undefined);
    this.#ramBusy--;
    // With all channels busy a full slot stays until the next call, which then waits.
    this.#offer();
    return true;
  }

  /**
   * How many pages may come next: to the end of a packet while a channel waits for work (and as far as #read() reads), else
   * as many as there is room for.
   */
  #ahead(num: number, room: number): number {
    const whole = this.#legacy || this.#findIdle(ANY_CHANNEL) >= 0;
    return whole ? this.#pages - (num % this.#pages) : room - num;
  }

  /** Does the slot have room for a page of this block, within `room` pages? */
  #takes(state: QueuedBlock, allZero: boolean, room: number): boolean {
    const slot = this.#ramSlot;
    const { num } = slot;
    return num === 0 || (slot.block === state.block.index && slot.allZero === allZero && num < room);
  }

  /** How many pages a slot may hold: with their bytes one packet, and with a limit of bandwidth no more than that either. */
  #room(state: QueuedBlock): number {
    const { kind } = state.block;
    const staged = kind === 'private' || kind === 'stream';
    return staged || this.#maxBandwidth > 0 ? this.#pages : this.#maxPages;
  }

  /** At the end of a packet: gives the slot to a channel that is idle, if there is one. */
  #offer(): void {
    const slot = this.#ramSlot;
    const { num } = slot;
    if (num === 0 || num % this.#pages !== 0 || this.#nextTicket !== this.#serving) return;
    const id = this.#findIdle(ANY_CHANNEL);
    if (id >= 0) this.#ramSlot = this.#swap(id, slot);
  }

  async #queue(state: QueuedBlock, first: number, count: number): Promise<void> {
    const end = first + count;
    const packet = this.#pages;
    let page = first;
    while (page < end) {
      // Towards the end ever less, so that all channels have work until then.
      const share = Math.floor((end - page) / (2 * this.control.channels * packet)) * packet;
      const room = Math.min(this.#room(state), Math.max(packet, share));
      if (!this.#takes(state, false, room)) await this.#flush(ANY_CHANNEL);
      const { num } = this.#ramSlot;
      const count = Math.min(end - page, this.#ahead(num, room));
      const scratch =
        this.#legacy && state.block.memory === undefined
          ? await this.#read(state, page, page + count)
          : undefined;
      this.#appendAll(state, page, count, false, scratch);
      page += count;
      if (this.#ramSlot.num >= room) await this.#flush(ANY_CHANNEL);
      else {
        this.#offer();
        if (performance.now() - this.#lastYield > YIELD_MS) await this.#yield();
      }
    }
  }

  /**
   * Pages into the slot, which has room for them.
   *
   * @param allZero they are zero whatever their memory holds
   * @param scratch as in #append()
   */
  #appendAll(
    state: QueuedBlock,
    first: number,
    count: number,
    allZero: boolean,
    scratch: Buffer | undefined,
  ): void {
    if (allZero) {
      this.#list(state, first, count, true);
    } else if (state.zero !== undefined || state.queued.hasAny(first, count)) {
      for (let i = 0; i < count; i++) this.#append(state, first + i, scratch, i);
    } else {
      state.queued.setRange(first, count);
      this.#put(state, first, count);
    }
  }

  /**
   * One page into the slot, which has room, unless it was queued in this phase or is zero in mode legacy.
   *
   * @param scratch mode legacy on a file: pages read from it, this one at position `i`
   */
  #append(state: QueuedBlock, page: number, scratch: Buffer | undefined, i: number): void {
    if (state.queued.has(page)) {
      state.deferred ??= new PageBitmap(state.block.pageCount);
      state.deferred.testAndSet(page);
      this.#hasDeferred = true;
      return;
    }
    if (state.zero !== undefined) {
      if (this.#isZero(state, page, scratch, i)) {
        state.zero.testAndSet(page);
        return;
      }
      state.zero.delete(page);
    }
    state.queued.testAndSet(page);
    this.#put(state, page, 1);
  }

  /** Pages side by side, with their bytes if those are private memory, into the slot, which has room for them. */
  #put(state: QueuedBlock, page: number, count: number): void {
    if (state.block.kind === 'private') {
      const { num, data } = this.#ramSlot;
      for (let i = 0; i < count; i++) {
        const offset = (page + i) * this.pageSize;
        const at = offset % Windows.WINDOW_BYTES;
        const window = (state.block.memory as MemorySource).windowAt(offset);
        window.copy(data, (num + i) * this.pageSize, at, at + this.pageSize);
      }
    }
    this.#list(state, page, count, false);
  }

  /** Pages side by side into the slot's page list. */
  #list(state: QueuedBlock, page: number, count: number, allZero: boolean): void {
    const slot = this.#ramSlot;
    const { num, pages } = slot;
    if (num === 0) {
      slot.type = PAYLOAD_RAM;
      slot.block = state.block.index;
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

  #isZero(state: QueuedBlock, page: number, scratch: Buffer | undefined, i: number): boolean {
    if (scratch !== undefined) return isZeroRange(scratch, i * this.pageSize, this.pageSize);
    const offset = page * this.pageSize;
    const window = (state.block.memory as MemorySource).windowAt(offset);
    return isZeroRange(window, offset % Windows.WINDOW_BYTES, this.pageSize);
  }

  async #read(state: QueuedBlock, first: number, end: number): Promise<Buffer> {
    const scratch = this.#scratch as Buffer;
    const { block } = state;
    const length = (end - first) * this.pageSize;
    try {
      let done = 0;
      while (done < length) {
        const position = block.base + first * this.pageSize + done;
        const bytesRead = await this.files.read(block, scratch, done, length - done, position);
        if (bytesRead === 0) throw new Error('the file has become shorter');
        done += bytesRead;
      }
    } catch (thrown) {
      await this.broken(thrown, 'ERR_MULTIFD_IO', `RAM block ${JSON.stringify(block.name)}: read`);
    }
    return scratch;
  }

  /** Hands the RAM client's slot over if anything is in it. */
  async #flush(target: number): Promise<void> {
    if (this.#ramSlot.num === 0) return;
    if (this.#maxBandwidth > 0) await this.#throttle();
    if (performance.now() - this.#lastYield > YIELD_MS) await this.#yield();
    this.#ramSlot = await this.#handOver(this.#ramSlot, target);
  }

  async #yield(): Promise<void> {
    await yieldToLoop();
    this.#lastYield = performance.now();
    if (this.control.stopped !== STOP_RUN) await this.check();
  }

  /** @param devices the device-state client's calls that come before it */
  async #sync(devices: Promise<unknown>): Promise<void> {
    const { control } = this;
    trace('multifd_send_sync_main', () => ({ syncs: this.#syncs + 1 }));
    await this.#flush(ANY_CHANNEL);
    if (this.#hasDeferred) await this.#sendDeferred();
    if (this.#legacy) await this.#reportZeroPages();
    await devices;
    // One of them may have been what stopped the session.
    if (control.stopped !== STOP_RUN) await this.check();
    this.#syncs = (this.#syncs + 1) | 0;
    for (let id = 0; id < control.channels; id++) {
      trace('multifd_send_sync_main_signal', () => ({ id }));
      control.requestSync(id);
    }
    for (let id = 0; id < control.channels; id++) {
      trace('multifd_send_sync_main_wait', () => ({ id }));
      await this.until(() => control.syncsDone(id) === this.#syncs, SPIN);
    }
    await this.#clear((state) => state.queued);
  }

  /** The final content of every page that was queued more than once, on every channel. */
  async #sendDeferred(): Promise<void> {
    for (let id = 0; id < this.control.channels; id++) {
      for (const state of this.#states) {
        if (state.deferred === undefined) continue;
        for (const { page, count } of state.deferred.runs()) {
          for (let i = 0; i < count; i++) {
            this.#put(state, page + i, 1);
            if (this.#ramSlot.num >= this.#pages) await this.#flush(id);
          }
        }
        await this.#flush(id);
      }
    }
    await this.#clear((state) => state.deferred);
    this.#hasDeferred = false;
  }

  /** A bitmap of each block, in turns of the event loop: all of 4 TiB queued are 128 MiB to be cleared. */
  async #clear(bitmapOf: (state: QueuedBlock) => PageBitmap | undefined): Promise<void> {
    for (const state of this.#states) {
      const steps = bitmapOf(state)?.clearing();
      while (steps?.next().done === false) {
        if (performance.now() - this.#lastYield > YIELD_MS) await this.#yield();
      }
    }
  }

  async #reportZeroPages(): Promise<void> {
    for (const state of this.#states) {
      if (state.zero === undefined) continue;
      for (const { page, count } of state.zero.runs()) {
        try {
          await this.orStopped(this.#hook(state.block, page * this.pageSize, count * this.pageSize));
        } catch (thrown) {
          if (this.control.stopped === STOP_RUN) {
            this.fail(new MultifdError('ERR_MULTIFD_HOOK', 'onZeroPages failed', { cause: thrown }));
          }
        }
        if (this.control.stopped !== STOP_RUN) await this.check();
        if (performance.now() - this.#lastYield > YIELD_MS) await this.#yield();
      }
      state.zero.clear();
    }
  }

  async #hook(block: RAMBlock, offset: number, length: number): Promise<void> {
    await this.#options.onZeroPages?.(block, offset, length);
  }

  // ---- hand-over ----

  /** Gives the slot to `target`, or to any idle channel, and returns the empty slot that comes back. */
  async #handOver(slot: Slot, target: number): Promise<Slot> {
    let id =
      this.#nextTicket === this.#serving && this.control.stopped === STOP_RUN ? this.#findIdle(target) : -1;
    if (id < 0) {
      const ticket = this.#nextTicket++;
      const slept = await this.until(
        () => this.#serving === ticket && (id = this.#findIdle(target)) >= 0,
        SPIN,
      );
      if (slept) this.#lastYield = performance.now();
      this.#serving++;
      // Whoever is next in line may be asleep on READY with a channel idle.
      if (this.#serving !== this.#nextTicket) this.control.postReady();
    }
    return this.#swap(id, slot);
  }

  #swap(id: number, slot: Slot): Slot {
    this.#nextChannel = (id + 1) % this.control.channels;
    return this.control.publish(id, slot);
  }

  /** From a rotating start, so that equally fast channels get equal shares. */
  #findIdle(target: number): number {
    const { control } = this;
    if (target !== ANY_CHANNEL) return control.isIdle(target) ? target : -1;
    for (let i = 0; i < control.channels; i++) {
      const id = (this.#nextChannel + i) % control.channels;
      if (control.isIdle(id)) return id;
    }
    return -1;
  }

  /** maxBandwidth: a bucket that fills with the rate and is emptied by what the channels have sent. */
  async #throttle(): Promise<void> {
    while (this.#maxBandwidth > 0 && this.control.stopped === STOP_RUN) {
      const now = performance.now();
      const bytes = this.wireBytes();
      const rate = this.#maxBandwidth / 1000;
      const filled = this.#tokens + (now - this.#tokenTime) * rate;
      this.#tokens = Math.min(filled, BURST_MS * rate) - (bytes - this.#tokenBytes);
      this.#tokenTime = now;
      this.#tokenBytes = bytes;
      if (this.#tokens >= 0) return;
      await this.sleep(Math.min(Math.ceil(-this.#tokens / rate), MAX_SLEEP_MS));
    }
    if (this.control.stopped !== STOP_RUN) await this.check();
  }

  protected release(): void {}
}

function maxPackets(options: CheckedSenderOptions): number {
  return options.compression === 'none' ? MAX_PACKETS : MAX_PACKETS_COMPRESSED;
}
