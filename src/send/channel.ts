/**
 * A send channel: the whole life of one connection, in its own worker thread (piscina task, entry
 * workers/send-channel.ts).
 *
 *     connect -> hello -> RUNNING
 *       loop:  job?   RAM: page list copied, slot empty, pendingJob = 0 | zero-page detection | compression | write
 *                     device state: header | write
 *              sync?  wait for the last write | SYNC packet | write               then SYNC_DONE
 *              STOP?  END: finish the socket.  FAIL: drop it
 *              else   wait on SEM
 *
 * One packet is on its way while the next is prepared and the next job may already be handed over: of a slot of shared
 * or file-backed pages only the page list is needed, so it is copied and the slot given back at once; it may hold the
 * pages of several packets. Pages staged in the slot, and device state, are the slot's own bytes: there it stays until
 * they are compressed or with the kernel.
 *
 * A codec with threads of its own has up to two packets at a time; they go out in the order of the jobs, before anything
 * else of this channel.
 *
 * Who owns the bytes: guest RAM is the embedder's and may change at any moment; what is compressed is copied first,
 * what is sent as it is, is read by the kernel.
 */
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  report,
  runChannel,
  type Channel,
  type ChannelOutcome,
  type ChannelTask,
} from '../channel-thread.js';
import { MultifdError } from '../errors.js';
import { METHODS, type SendMethod } from '../methods/methods.js';
import { type ZeroPageDetection } from '../options.js';
import type { Address } from '../transport/address.js';
import type { BlockDescription } from '../ram/block.js';
import { copyPages } from '../ram/copy.js';
import { FileBlock } from '../ram/file-block.js';
import { fillRange, runLength } from '../ram/page-list.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import {
  CHANNEL_RUNNING,
  type Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_RAM,
  STOP_END,
  STOP_FAIL,
  STOP_RUN,
  type Slot,
} from '../shared/control.js';
import { REFUSED_PERHAPS } from '../set-up.js';
import { ChannelClock } from '../shared/clock.js';
import {
  STAT_BYTES,
  STAT_DEVICE_STATES,
  STAT_NORMAL_PAGES,
  STAT_PACKETS,
  STAT_SYNCS,
  STAT_ZERO_PAGES,
} from '../shared/layout.js';
import type { TracePoint } from '../trace.js';
import { DEVICE_STATE_HEADER_BYTES, fillDeviceState } from '../wire/device-state.js';
import { encodeHello } from '../wire/hello.js';
import {
  MULTIFD_FLAG_SYNC,
  MULTIFD_PACKET_BYTES,
  RAMBLOCK_NAME_BYTES,
  fillPacket,
  packetHeaderBytes,
  pagesPerPacket,
  type PacketToSend,
} from '../wire/packet.js';
import { Partition, normalRun } from './partition.js';
import { SendConnection } from '../transport/send-connection.js';

/** What the calling thread gives to the worker. */
export interface SendChannelTask extends ChannelTask {
  address: Address;
  uuid: Uint8Array;
  pageSize: number;
  blocks: BlockDescription[];
  level: number;
  zeroPageDetection: ZeroPageDetection;
  connectTimeoutMs: number;
  stallTimeoutMs: number;
  /** Does the migration that it is a part of say what the destination may have refused? */
  explained: boolean;
}

/** A packet of pages whose payload is made by a thread of the codec's own. */
interface CompressingPacket {
  block: number;
  normal: number;
  zero: number;
  /** The packet's page list, normal pages first. */
  pages: Uint32Array;
  made: Promise<Buffer>;
  /** The rest of the payload: pages as they are. */
  raw: readonly Uint8Array[];
  settled: boolean;
}

/** What is kept of a slot of pages. */
interface Job {
  block: number;
  num: number;
  allZero: boolean;
  /** The pages lie side by side from `first` on; else they are in #listed. */
  range: boolean;
  first: number;
}

/** How many looks at SEM before sleeping: about 10 µs. */
const SPIN = 400;
/** Packets without payload that are held back for one write while there are more to come. */
const MAX_HELD = 16;
/** Payload of method none that goes into one write, or a packet's more. */
const MAX_HELD_PAYLOAD = 4 * 2 ** 20;
/** Packets of pages from a file that go into one write: 512 KiB each, twice. */
const MAX_HELD_STAGINGS = 4;
/** Until another channel's hello is known of. */
const SETTLE_MS = 20;
/** More than the kernel holds between two ends: behind that the peer has taken something. */
const EARLY_BYTES = 16 * 2 ** 20;
const NO_PAYLOAD: readonly Uint8Array[] = [];

export function runSendChannel(task: SendChannelTask): Promise<ChannelOutcome> {
  return runChannel(
    task,
    'send channel',
    (codec) => codec.createSender(task.level),
    (control, method) => new SendChannel(task, control, method),
  );
}

class SendChannel implements Channel {
  readonly #task: SendChannelTask;
  readonly #control: Control;
  readonly #id: number;
  readonly #pageSize: number;
  readonly #stats: Float64Array;
  readonly #clock: ChannelClock;
  readonly #names: Buffer[];
  readonly #shared: (Windows | undefined)[];
  readonly #files: (FileBlock | undefined)[];
  readonly #methodFlag: number;
  readonly #method: SendMethod | undefined;
  /** A ring: what is on its way, what is held back, and what is left over at its end. */
  readonly #headers: Buffer;
  #headerTurn = 0;
  /** Those from here to #headerTurn are not in #pending yet. */
  #headersFrom = 0;
  /** Packets in #pending, and bytes of their payloads. */
  #held = 0;
  #heldPayload = 0;
  /**
   * Pages of files. Method none: those of one write on its way and of one in the making. Else one for the packet on its
   * way, one for that with the codec, and one for the packet in the making.
   */
  readonly #staging: Buffer[] = [];
  #turn = 0;
  /** Made and not yet handed to the socket. */
  readonly #pending: Uint8Array[] = [];
  /** What the method compresses: a copy of the pages. Two: one may be with the codec while the next is filled. */
  readonly #inputs: Buffer[] = [];
  #inputTurn = 0;
  /** Goes out before anything else of this channel. */
  #compressing: CompressingPacket | undefined;
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
  readonly #connection: SendConnection;
  #lastProgress = 0;
  /** Something was sent since, too soon after it to be told. */
  #unposted = false;

  constructor(task: SendChannelTask, control: Control, method: SendMethod | undefined) {
    this.#task = task;
    const { address, connectTimeoutMs, stallTimeoutMs } = task;
    const broke = (error: MultifdError): MultifdError => this.#broke(error);
    this.#connection = new SendConnection({ address, connectTimeoutMs, stallTimeoutMs, broke });
    this.#method = method;
    if (method !== undefined) {
      this.#inputs.push(
        Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
        Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
      );
    }
    this.#control = control;
    this.#id = task.id;
    this.#pageSize = task.pageSize;
    this.#stats = control.stats(task.id);
    this.#clock = new ChannelClock(this.#stats);
    this.#names = task.blocks.map((block) => {
      const name = Buffer.alloc(RAMBLOCK_NAME_BYTES);
      name.write(block.name, 'latin1');
      return name;
    });
    this.#shared = task.blocks.map((block) =>
      block.buffer === undefined ? undefined : new Windows(block.buffer, block.base, block.size),
    );
    this.#files = [];
    this.#methodFlag = METHODS[task.compression].flag;
    this.#headers = Buffer.alloc(3 * (MAX_HELD + 2) * packetHeaderBytes(task.pageSize));
    this.#listed = new Uint32Array(control.slotOf(task.id).pages.length);
    this.#queued = new Uint32Array(pagesPerPacket(task.pageSize));
    this.#partition = new Partition(task.pageSize);
  }

  async run(): Promise<void> {
    const { blocks } = this.#task;
    if (blocks.some((block) => block.kind === 'file')) {
      const count = this.#method === undefined ? 2 * MAX_HELD_STAGINGS : 3;
      for (let i = 0; i < count; i++) this.#staging.push(Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES));
      for (const block of blocks) this.#files.push(block.kind === 'file' ? new FileBlock(block) : undefined);
    }
    void this.#guard();
    await this.#connection.connect().catch((thrown: unknown) => this.#notConnected(thrown));
    this.#hold(encodeHello({ uuid: this.#task.uuid, id: this.#id }));
    await this.#startWrite();
    await this.#connection.flushed();
    this.#control.setChannelState(this.#id, CHANNEL_RUNNING);
    this.#trace('multifd_send_thread_start', {});
    await this.#loop();
    if (this.#control.stopped !== STOP_FAIL) await this.#connection.finish();
    this.#trace('multifd_send_thread_end', {});
  }

  async #loop(): Promise<void> {
    const control = this.#control;
    const id = this.#id;
    this.#clock.idle();
    for (;;) {
      const seen = control.semCount(id);
      // Before the job: what was published before STOP said END is seen then, or else STOP is seen the next time.
      const { stopped } = control;
      if (stopped === STOP_FAIL) return;
      // Before the job, so that every job published before this sync goes out before its SYNC packet.
      const sync = control.wantsSync(id);
      const job = control.hasJob(id);
      const compressed = this.#compressing?.settled === true;
      if (!job && !sync && !compressed) {
        if (stopped === STOP_END && this.#compressing === undefined) return;
        if (this.#connection.broken !== undefined) throw this.#connection.broken;
        const wait = control.waitSem(id, seen, SPIN);
        if (wait === undefined) continue;
        if (this.#unposted) this.#postProgress(performance.now());
        await wait;
        continue;
      }
      this.#clock.busy();
      if (job) await this.#sendJob();
      else await this.#sendCompressed();
      if (sync) await this.#sendSync();
      this.#clock.idle();
      const { progressMs } = control;
      if (progressMs > 0) {
        const now = performance.now();
        this.#unposted = now - this.#lastProgress < progressMs;
        if (!this.#unposted) this.#postProgress(now);
      }
    }
  }

  #postProgress(now: number): void {
    this.#unposted = false;
    this.#lastProgress = now;
    this.#control.postProgress();
  }

  async #sendJob(): Promise<void> {
    const slot = this.#control.slotOf(this.#id);
    if (slot.type === PAYLOAD_RAM) await this.#sendPages(slot);
    else if (slot.type === PAYLOAD_DEVICE_STATE) await this.#sendDeviceState(slot);
    else throw new MultifdError('ERR_MULTIFD_WORKER', `a job with payload type ${slot.type}`);
  }

  async #sendPages(slot: Slot): Promise<void> {
    const { block, num, allZero, range } = slot;
    const job: Job = { block, num, allZero, range, first: slot.pages[0] };
    const staged = this.#shared[block] === undefined && this.#files[block] === undefined;
    if (!range) this.#listed.set(slot.pages.subarray(0, num));
    // All that was needed of the slot: the next job may come while this one is worked on.
    if (!staged) this.#control.done(this.#id);
    for (let at = 0; at < num;) {
      if (!staged) {
        at += this.#holdPackets(job, at);
        // What is held waits for more if that is there already: one system call for both.
        if (at === num && this.#heldPayload === 0 && this.#control.hasJob(this.#id)) return;
        if (this.#held > 0) await this.#startWrite();
        if (at === num) return;
        if (!this.#detected) {
          await this.#sendCompressed();
          continue;
        }
      }
      const count = this.#detected ? this.#partition.num : this.#takePages(job, at);
      at += count;
      await this.#sendPacketOf(block, count, allZero, staged ? slot : undefined);
    }
  }

  /** The next packet's pages into #queued. */
  #takePages({ num, range, first }: Job, at: number): number {
    const count = Math.min(this.#queued.length, num - at);
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
    const windows = this.#shared[job.block];
    const file = this.#files[job.block];
    const partition = this.#partition;
    let done = 0;
    while (at + done < job.num && this.#held < MAX_HELD && this.#heldPayload < MAX_HELD_PAYLOAD) {
      const run = this.#holdRun(job, at + done);
      done += run;
      if (run > 0) continue;
      const count = this.#takePages(job, at + done);
      const staging = this.#staging[this.#turn];
      if (file !== undefined && !job.allZero) this.#readFile(file, count, staging);
      this.#detectZeroPages(count, job.allZero, windows, staging);
      const { normal } = partition;
      this.#zeroesAhead = normal === 0 ? 2 : 0;
      this.#detected = normal > 0 && this.#method !== undefined;
      if (this.#detected || this.#compressing !== undefined) break;
      const payload = this.#pieces(windows, staging, 0, normal);
      this.#sendRam(job.block, normal, count - normal, partition.pages, payload);
      done += count;
      if (normal === 0) continue;
      // Of a file's pages each packet has a staging buffer, however few they are.
      this.#heldPayload +=
        file === undefined ? normal * this.#pageSize : MAX_HELD_PAYLOAD / MAX_HELD_STAGINGS;
      if (file !== undefined) this.#nextStaging();
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
    const windows = this.#shared[block];
    const size = this.#pageSize;
    const limit = this.#queued.length;
    const page = first + at;
    const packets = MAX_HELD - this.#held;
    // What the codec has goes first; then this is asked again.
    if (!range || this.#compressing !== undefined) return 0;
    if (allZero) return this.#holdZeroRun(block, page, Math.min(num - at, packets * limit));
    if (windows === undefined) return 0;
    const window = windows.windowAt(page * size);
    const offset = (page * size) % Windows.WINDOW_BYTES;
    const left = Math.min(num - at, Windows.runLimit(page * size) / size);
    const detects = this.#task.zeroPageDetection === 'multifd';
    if (detects && this.#zeroesAhead > 0) {
      const count = Math.min(left, limit * Math.min(packets, this.#zeroesAhead));
      const zero = isZeroRange(window, offset, count * size);
      this.#zeroesAhead = zero ? 2 * this.#zeroesAhead : 0;
      if (zero) return this.#holdZeroRun(block, page, count);
    }
    if (this.#method !== undefined) return 0;
    const room = Math.ceil((MAX_HELD_PAYLOAD - this.#heldPayload) / (limit * size));
    let count = Math.min(left, limit * Math.min(packets, room));
    if (detects) count = normalRun(window, offset, size, count);
    // What does not fill a packet goes with the pages behind it.
    if (count < left) count -= count % limit;
    for (let i = 0; i < count; i += limit) {
      const normal = Math.min(limit, count - i);
      this.#sendRam(block, normal, 0, page + i, [windows.view((page + i) * size, normal * size)]);
    }
    this.#heldPayload += count * size;
    return count;
  }

  #holdZeroRun(block: number, page: number, count: number): number {
    const limit = this.#queued.length;
    for (let i = 0; i < count; i += limit)
      this.#sendRam(block, 0, Math.min(limit, count - i), page + i, NO_PAYLOAD);
    return count;
  }

  /**
   * The pages of #queued as one packet.
   *
   * @param staged the slot, if it holds the pages' bytes: given back as soon as they are not needed any more
   */
  async #sendPacketOf(block: number, num: number, allZero: boolean, staged: Slot | undefined): Promise<void> {
    const windows = this.#shared[block];
    const file = this.#files[block];
    // Where page `i` lies, unless it is shared: in the slot, or read from the file in one go.
    const staging = staged !== undefined ? staged.data : this.#staging[this.#turn];
    if (!this.#detected && file !== undefined && !allZero) this.#readFile(file, num, staging);
    if (!this.#detected) this.#detectZeroPages(num, allZero, windows, staging);
    this.#detected = false;
    const { normal } = this.#partition;
    const method = this.#method;
    let payload: readonly Uint8Array[];
    if (method === undefined || normal === 0) {
      payload = this.#pieces(windows, staging, 0, normal);
    } else {
      // What lies in the slot must be out of it when the slot is given back.
      if (staged === undefined) this.#partition.sortOut(windows, staging);
      else this.#partition.packed = normal;
      const { packed } = this.#partition;
      const input = this.#inputs[this.#inputTurn];
      let filled = 0;
      for (const piece of this.#pieces(windows, staging, 0, packed)) {
        copyPages(piece, 0, input, filled, piece.length);
        filled += piece.length;
      }
      if (staged !== undefined) this.#control.done(this.#id);
      const made = method.compress(input.subarray(0, filled), packed < normal);
      const raw = packed < normal ? method.raw(this.#pieces(windows, staging, packed, normal)) : NO_PAYLOAD;
      if (made instanceof Promise) {
        // The next page that is read from a file must not go where these are.
        this.#nextStaging();
        const pages = this.#partition.pages.slice(0, num);
        await this.#compressAside({ block, normal, zero: num - normal, pages, made, raw, settled: false });
        return;
      }
      payload = made.length > 0 ? [made, ...raw] : raw;
    }
    await this.#sendCompressed();
    // Only a packet with pages keeps its staging busy, and only such a one waits for the write before it: a packet of
    // zero pages that took a turn would let the next one read over bytes that are still on their way.
    if (normal > 0) this.#nextStaging();
    this.#sendRam(block, normal, num - normal, this.#partition.pages, payload);

    await this.#startWrite();
    if (staged === undefined) return;
    // Method none: the kernel reads the pages from the slot.
    if (normal > 0 && this.#method === undefined) await this.#connection.flushed();
    if (normal === 0 || this.#method === undefined) this.#control.done(this.#id);
  }

  /** @param pages as in PacketToSend */
  #sendRam(
    block: number,
    normal: number,
    zero: number,
    pages: Uint32Array | number,
    payload: readonly Uint8Array[],
  ): void {
    let payloadBytes = 0;
    for (const piece of payload) payloadBytes += piece.length;
    this.#sendPacket(
      {
        flags: this.#methodFlag,
        normalPages: normal,
        zeroPages: zero,
        nextPacketSize: payloadBytes,
        packetNum: this.#control.nextPacketNum(),
        ramblock: this.#names[block],
        pages,
      },
      payload,
    );
    this.#stats[STAT_NORMAL_PAGES] += normal;
    this.#stats[STAT_ZERO_PAGES] += zero;
  }

  /**
   * Leaves a packet to the codec's thread and sends the one that was there before it: with two under way, that thread
   * has work while this one copies and writes. Its end posts SEM, the word that the loop sleeps on.
   */
  async #compressAside(packet: CompressingPacket): Promise<void> {
    const settled = (): void => {
      packet.settled = true;
      this.#control.postSem(this.#id);
    };
    packet.made.then(settled, settled);
    this.#inputTurn ^= 1;
    const earlier = this.#compressing;
    this.#compressing = packet;
    if (earlier !== undefined) await this.#sendMade(earlier);
  }

  /** Sends the packet that the codec has, if there is one, and waits for it if need be. */
  async #sendCompressed(): Promise<void> {
    const packet = this.#compressing;
    if (packet === undefined) return;
    this.#compressing = undefined;
    await this.#sendMade(packet);
  }

  async #sendMade({ block, normal, zero, pages, made, raw }: CompressingPacket): Promise<void> {
    const payload = [await made, ...raw];
    this.#sendRam(block, normal, zero, pages, payload);
    await this.#startWrite();
  }

  /** Reads the queued pages into `staging`, page i at i * pageSize, neighbours in one call. */
  #readFile(file: FileBlock, num: number, staging: Buffer): void {
    const size = this.#pageSize;
    const pages = this.#queued;
    for (let i = 0; i < num;) {
      let run = 1;
      while (i + run < num && pages[i + run] === pages[i] + run) run++;
      file.read(staging, i * size, run * size, pages[i] * size);
      i += run;
    }
  }

  /** Fills #partition with what of #queued has data, and what is zero. */
  #detectZeroPages(num: number, allZero: boolean, windows: Windows | undefined, staging: Buffer): void {
    const partition = this.#partition;
    if (allZero) partition.all(this.#queued, num, 'zero');
    else if (this.#task.zeroPageDetection !== 'multifd') partition.all(this.#queued, num, 'normal');
    else if (windows !== undefined) partition.detect(this.#queued, num, windows);
    else partition.detectStaged(this.#queued, num, staging);
  }

  /** From normal page `i` on, how many lie side by side. */
  #runLength(windows: Windows | undefined, i: number): number {
    const { pages, positions, normal } = this.#partition;
    if (windows === undefined) return runLength(positions, i, normal - i);
    const limit = Windows.runLimit(pages[i] * this.#pageSize) / this.#pageSize;
    return runLength(pages, i, Math.min(normal - i, limit));
  }

  /** The normal pages `from` to `to`: runs of neighbours go out, or are copied, as one piece. */
  #pieces(windows: Windows | undefined, staging: Buffer, from: number, to: number): Uint8Array[] {
    const pieces: Uint8Array[] = [];
    for (let i = from; i < to;) {
      const run = Math.min(this.#runLength(windows, i), to - i);
      pieces.push(this.#piece(windows, staging, i, run));
      i += run;
    }
    return pieces;
  }

  #nextStaging(): void {
    this.#turn = (this.#turn + 1) % Math.max(1, this.#staging.length);
  }

  #piece(windows: Windows | undefined, staging: Buffer, i: number, run: number): Uint8Array {
    const size = this.#pageSize;
    const { pages, positions } = this.#partition;
    if (windows !== undefined) return windows.view(pages[i] * size, run * size);
    return staging.subarray(positions[i] * size, (positions[i] + run) * size);
  }

  async #sendDeviceState(slot: Slot): Promise<void> {
    await this.#sendCompressed();
    const at = this.#nextHeader(DEVICE_STATE_HEADER_BYTES);
    const header = this.#headers.subarray(at, at + DEVICE_STATE_HEADER_BYTES);
    fillDeviceState(header, { idstr: slot.idstr, instanceId: slot.instanceId, nextPacketSize: slot.length });
    this.#hold(slot.data.subarray(0, slot.length));
    this.#stats[STAT_PACKETS] += 1;
    this.#stats[STAT_DEVICE_STATES] += 1;
    await this.#startWrite();
    await this.#connection.flushed();
    this.#control.done(this.#id);
  }

  async #sendSync(): Promise<void> {
    await this.#sendCompressed();
    this.#sendPacket(
      {
        flags: MULTIFD_FLAG_SYNC,
        normalPages: 0,
        zeroPages: 0,
        nextPacketSize: 0,
        packetNum: this.#control.nextPacketNum(),
        ramblock: undefined,
        pages: this.#queued,
        pagesAlloc: this.#control.syncPagesAlloc,
      },
      NO_PAYLOAD,
    );
    this.#stats[STAT_SYNCS] += 1;
    await this.#startWrite();
    await this.#connection.flushed();
    this.#control.syncDone(this.#id);
  }

  /** Adds a packet to what is written next. */
  #sendPacket(packet: PacketToSend, payload: readonly Uint8Array[]): void {
    const header = this.#nextHeader(packetHeaderBytes(this.#pageSize));
    fillPacket(this.#headers, this.#pageSize, packet, header);
    for (const piece of payload) this.#hold(piece);
    this.#held++;
    this.#stats[STAT_PACKETS] += 1;
    if (this.#control.trace) {
      this.#trace('multifd_send_fill', {
        packetNum: packet.packetNum,
        normal: packet.normalPages,
        zero: packet.zeroPages,
        flags: packet.flags,
        nextPacketSize: packet.nextPacketSize,
      });
    }
  }

  /** Where there is room for the next header: headers side by side go out as one piece. */
  #nextHeader(bytes: number): number {
    if (this.#headerTurn + bytes > this.#headers.length) {
      this.#holdHeaders();
      this.#headerTurn = 0;
      this.#headersFrom = 0;
    }
    const at = this.#headerTurn;
    this.#headerTurn += bytes;
    this.#stats[STAT_BYTES] += bytes;
    return at;
  }

  #holdHeaders(): void {
    if (this.#headerTurn > this.#headersFrom)
      this.#pending.push(this.#headers.subarray(this.#headersFrom, this.#headerTurn));
    this.#headersFrom = this.#headerTurn;
  }

  /** Behind the headers that there are. */
  #hold(piece: Uint8Array): void {
    this.#holdHeaders();
    this.#stats[STAT_BYTES] += piece.length;
    this.#pending.push(piece);
  }

  #trace(point: TracePoint, data: Record<string, unknown>): void {
    if (this.#control.trace) report(point, { id: this.#id, ...data });
  }

  // ---- the connection ----

  /** The loop may be asleep on SEM. */
  #broke(error: MultifdError): MultifdError {
    this.#control.postSem(this.#id);
    return this.#refusedPerhaps(error);
  }

  /** A receiver listens until it has all the channels that it expects, or has refused one. */
  async #notConnected(thrown: unknown): Promise<never> {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECT', 'connect');
    // It has a hello a moment before the channel says so here.
    if (this.#control.stopped === STOP_RUN && !this.#task.explained) await sleep(SETTLE_MS);
    for (let id = 0; id < this.#control.channels; id++) {
      if (this.#control.channelState(id) >= CHANNEL_RUNNING) throw this.#refusedPerhaps(error);
    }
    throw error;
  }

  /** A receiver that refuses says so by closing its channels. */
  #refusedPerhaps(error: MultifdError): MultifdError {
    const isEarly = this.#stats[STAT_BYTES] <= EARLY_BYTES;
    const isClosed = error.code === 'ERR_MULTIFD_CONNECTION' || error.code === 'ERR_MULTIFD_CONNECT';
    if (!isClosed || !isEarly || this.#task.explained) return error;
    return new MultifdError(error.code, `${error.message}; ${REFUSED_PERHAPS}`, {
      ...error,
      cause: error.cause,
    });
  }

  /** Hands all that is held to the connection, in one system call, as soon as nothing else is on its way. */
  async #startWrite(): Promise<void> {
    const connection = this.#connection;
    if (connection.writing || connection.broken !== undefined) await connection.flushed();
    if (connection.peerEnded) {
      const error = new MultifdError('ERR_MULTIFD_CONNECTION', 'the peer closed the channel');
      throw this.#refusedPerhaps(error);
    }
    this.#holdHeaders();
    const pieces = this.#pending;
    if (pieces.length === 0) return;
    connection.write(pieces);
    pieces.length = 0;
    this.#held = 0;
    this.#heldPayload = 0;
  }

  /** STOP = FAIL takes the socket away, whatever the loop is waiting for. */
  async #guard(): Promise<void> {
    let level = STOP_RUN;
    while (level < STOP_FAIL) level = await this.#control.stopAbove(level);
    this.#connection.break(new MultifdError('ERR_MULTIFD_CLOSED', 'stopped'));
  }

  /** Frees everything; waits until the descriptor is closed. */
  async close(): Promise<void> {
    this.#clock.stop();
    await this.#connection.close();
  }
}
