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
 * One packet is on its way while the next is prepared and the one after may already be handed over: of a slot of
 * shared or file-backed pages only the page list is needed, so it is copied (512 bytes) and the slot given back at
 * once. Pages staged in the slot, and device state, are the slot's own bytes: there it stays until they are compressed
 * or with the kernel.
 *
 * A codec with threads of its own has up to two packets at a time; they go out in the order of the jobs, before anything
 * else of this channel.
 *
 * Who owns the bytes: guest RAM is the embedder's and may change at any moment; what is compressed is copied first,
 * what is sent as it is, is read by the kernel.
 */
import net from 'node:net';
import { performance } from 'node:perf_hooks';
import { MultifdError, type PlainError } from '../errors.js';
import { METHODS, type SendMethod } from '../methods/methods.js';
import { formatAddress, type Address, type Compression, type ZeroPageDetection } from '../options.js';
import type { BlockDescription } from '../ram/block.js';
import { copyPages } from '../ram/copy.js';
import { FileBlock } from '../ram/file-block.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import {
  CHANNEL_ENDED,
  CHANNEL_RUNNING,
  Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_RAM,
  STOP_END,
  STOP_FAIL,
  STOP_RUN,
  type SharedControl,
  type Slot,
} from '../shared/control.js';
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

/** What the calling thread gives to the worker. */
export interface SendChannelTask {
  shared: SharedControl;
  id: number;
  address: Address;
  uuid: Uint8Array;
  pageSize: number;
  blocks: BlockDescription[];
  compression: Compression;
  level: number;
  zeroPageDetection: ZeroPageDetection;
  connectTimeoutMs: number;
  stallTimeoutMs: number;
}

/** How a channel ended; `error` is set if it was not by STOP, and `first` if it is the session's first. */
export interface ChannelOutcome {
  error?: PlainError;
  first?: boolean;
}

/** A packet of pages whose payload is made by a thread of the codec's own. */
interface CompressingPacket {
  block: number;
  normal: number;
  zero: number;
  /** The packet's page list, normal pages first. */
  pages: Uint32Array;
  payload: Promise<Buffer>;
  settled: boolean;
}

/** Posts an event to the calling thread. */
export type Report = (point: TracePoint, data: Record<string, unknown>) => void;

/** How many looks at SEM before sleeping: about 10 µs. */
const SPIN = 400;
/** Packets without payload that are held back for one write while jobs keep coming. */
const MAX_HELD = 8;
/** See #watchStall(); the slack is for a thread that gets no processor. */
const STALL_PERIODS = 4;
const STALL_SLACK_MS = 100;
/** At an orderly end, how long the peer may take to read what is left. */
const FINISH_TIMEOUT_MS = 10_000;

export async function runSendChannel(task: SendChannelTask, report: Report): Promise<ChannelOutcome> {
  const control = Control.attach(task.shared);
  const channel = new SendChannel(task, control, report);
  try {
    await channel.run();
    return {};
  } catch (thrown) {
    // After STOP whatever breaks is a consequence: the reason is with whoever said STOP.
    if (control.stopped === STOP_FAIL) return {};
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'send channel').onChannel(task.id);
    const first = control.claimFirstError(task.id);
    control.stop(STOP_FAIL);
    return { error: error.toPlain(), first };
  } finally {
    await channel.close();
    control.setChannelState(task.id, CHANNEL_ENDED);
  }
}

class SendChannel {
  readonly #task: SendChannelTask;
  readonly #control: Control;
  readonly #report: Report;
  readonly #id: number;
  readonly #pageSize: number;
  readonly #stats: Float64Array;
  readonly #clock: ChannelClock;
  readonly #names: Buffer[];
  readonly #shared: (Windows | undefined)[];
  readonly #files: (FileBlock | undefined)[];
  readonly #methodFlag: number;
  readonly #method: SendMethod | undefined;
  /** Enough for all that is on its way and all that is held back. */
  readonly #headers: Buffer[];
  #headerTurn = 0;
  /** Pages of files. Two: one for the packet on its way, one for the packet in the making. */
  readonly #staging: Buffer[] = [];
  #turn = 0;
  /** Made and not yet handed to the socket. */
  readonly #pending: Buffer[] = [];
  /** What the method compresses: a copy of the pages. Two: one may be with the codec while the next is filled. */
  readonly #inputs: Buffer[] = [];
  #inputTurn = 0;
  /** Goes out before anything else of this channel. */
  #compressing: CompressingPacket | undefined;
  /** Positions in the slot: normal pages first, then zero pages. */
  readonly #order: Uint16Array;
  /** The slot's page list, copied; and the same in the packet's order. */
  readonly #queued: Uint32Array;
  readonly #pages: Uint32Array;
  #socket: net.Socket | undefined;
  #broken: MultifdError | undefined;
  #wakeWriter: (() => void) | undefined;
  #writing = false;
  #peerEnded = false;
  #lastProgress = 0;
  /** Something was sent since, too soon after it to be told. */
  #unposted = false;

  constructor(task: SendChannelTask, control: Control, report: Report) {
    this.#task = task;
    this.#control = control;
    this.#report = report;
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
    this.#method = METHODS[task.compression].createSender?.(task.level);
    if (this.#method !== undefined) {
      this.#inputs.push(
        Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
        Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
      );
    }
    const headerBytes = Math.max(packetHeaderBytes(task.pageSize), DEVICE_STATE_HEADER_BYTES);
    this.#headers = Array.from({ length: 2 * (MAX_HELD + 1) }, () => Buffer.alloc(headerBytes));
    this.#order = new Uint16Array(pagesPerPacket(task.pageSize));
    this.#queued = new Uint32Array(pagesPerPacket(task.pageSize));
    this.#pages = new Uint32Array(pagesPerPacket(task.pageSize));
  }

  async run(): Promise<void> {
    const { blocks } = this.#task;
    if (blocks.some((block) => block.kind === 'file')) {
      this.#staging.push(
        Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
        Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
      );
      for (const block of blocks)
        this.#files.push(block.kind === 'file' ? new FileBlock(block, 'r') : undefined);
    }
    void this.#guard();
    await this.#connect();
    this.#hold(encodeHello({ uuid: this.#task.uuid, id: this.#id }));
    await this.#startWrite();
    await this.#flushed();
    this.#control.setChannelState(this.#id, CHANNEL_RUNNING);
    this.#trace('multifd_send_thread_start', {});
    await this.#loop();
    await this.#finish();
    this.#trace('multifd_send_thread_end', {});
  }

  async #loop(): Promise<void> {
    const control = this.#control;
    const id = this.#id;
    this.#clock.idle();
    for (;;) {
      const seen = control.semCount(id);
      if (control.stopped === STOP_FAIL) return;
      // Before the job, so that every job published before this sync goes out before its SYNC packet.
      const sync = control.wantsSync(id);
      const job = control.hasJob(id);
      const compressed = this.#compressing?.settled === true;
      if (!job && !sync && !compressed) {
        if (control.stopped === STOP_END && this.#compressing === undefined) return;
        if (this.#broken !== undefined) throw this.#broken;
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
    const { block, num, allZero } = slot;
    const size = this.#pageSize;
    const windows = this.#shared[block];
    const file = this.#files[block];
    const staged = windows === undefined && file === undefined;
    const queued = this.#queued;
    queued.set(slot.pages);
    // All that was needed of the slot: the next job may come while this one is worked on.
    if (!staged) this.#control.done(this.#id);
    // Where page `i` of the slot lies, unless it is shared: in the slot, or read from the file in one go.
    const staging = staged ? slot.data : this.#staging[this.#turn];
    if (file !== undefined && !allZero) this.#readFile(file, num, staging);

    const normal = allZero ? this.#allZero(num) : this.#detectZeroPages(num, windows, staging);
    const chunks: Buffer[] = [];
    let payloadBytes = normal * size;
    if (normal > 0) {
      const input = this.#inputs[this.#inputTurn];
      let filled = 0;
      // Runs of neighbours go out, or are copied, as one piece.
      for (let i = 0; i < normal;) {
        const run = this.#runLength(windows, i, normal);
        const piece = this.#piece(windows, staging, i, run);
        if (input === undefined) chunks.push(piece);
        else copyPages(piece, 0, input, filled, run * size);
        filled += run * size;
        i += run;
      }
      if (input !== undefined && this.#method !== undefined) {
        if (staged) this.#control.done(this.#id);
        const payload = this.#method.compress(input.subarray(0, filled));
        if (payload instanceof Promise) {
          await this.#compressAside({
            block,
            normal,
            zero: num - normal,
            pages: this.#ordered(num).slice(0, num),
            payload,
            settled: false,
          });
          return;
        }
        payloadBytes = payload.length;
        chunks.push(payload);
      }
    }
    await this.#sendCompressed();
    // Only a packet with pages keeps its staging busy, and only such a one waits for the write before it: a packet of
    // zero pages that took a turn would let the next one read over bytes that are still on their way.
    if (normal > 0) this.#turn ^= 1;
    this.#sendRam(block, normal, num - normal, this.#ordered(num), payloadBytes, chunks);

    const inSlot = staged && normal > 0 && this.#method === undefined;
    // A packet without payload waits for the next one if that is there already: one system call for both.
    const hold = normal === 0 && this.#pending.length < MAX_HELD && this.#control.hasJob(this.#id) && !staged;
    if (!hold) await this.#startWrite();
    if (inSlot) await this.#flushed();
    if (inSlot || (staged && normal === 0)) this.#control.done(this.#id);
  }

  #sendRam(
    block: number,
    normal: number,
    zero: number,
    pages: Uint32Array,
    payloadBytes: number,
    payload: Buffer[],
  ): void {
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
    packet.payload.then(settled, settled);
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

  async #sendMade({ block, normal, zero, pages, payload }: CompressingPacket): Promise<void> {
    const bytes = await payload;
    this.#sendRam(block, normal, zero, pages, bytes.length, [bytes]);
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

  /**
   * Partitions: fills #order with the positions of the queued pages, normal pages first, in queueing order, then zero
   * pages.
   *
   * @returns the number of normal pages
   */
  #detectZeroPages(num: number, windows: Windows | undefined, staging: Buffer): number {
    const order = this.#order;
    if (this.#task.zeroPageDetection !== 'multifd') {
      for (let i = 0; i < num; i++) order[i] = i;
      return num;
    }
    const size = this.#pageSize;
    const pages = this.#queued;
    if (this.#isOneZeroRun(num, windows, staging)) {
      for (let i = 0; i < num; i++) order[i] = i;
      return 0;
    }
    let normal = 0;
    let zeroes = 0;
    for (let i = 0; i < num; i++) {
      const offset = pages[i] * size;
      const zero =
        windows === undefined
          ? isZeroRange(staging, i * size, size)
          : isZeroRange(windows.windowAt(offset), offset % Windows.WINDOW_BYTES, size);
      // Zero pages from the end, backwards; turned round below.
      if (zero) order[num - ++zeroes] = i;
      else order[normal++] = i;
    }
    order.subarray(normal, num).reverse();
    return normal;
  }

  #allZero(num: number): number {
    for (let i = 0; i < num; i++) this.#order[i] = i;
    return 0;
  }

  /** All-zero batches of neighbours are the bulk of a fresh guest: one look at all of it, at memory speed. */
  #isOneZeroRun(num: number, windows: Windows | undefined, staging: Buffer): boolean {
    const size = this.#pageSize;
    if (windows === undefined) return isZeroRange(staging, 0, num * size);
    const pages = this.#queued;
    for (let i = 1; i < num; i++) if (pages[i] !== pages[0] + i) return false;
    const first = pages[0] * size;
    if (num * size > Windows.runLimit(first)) return false;
    return isZeroRange(windows.windowAt(first), first % Windows.WINDOW_BYTES, num * size);
  }

  /** From position `i` of the order on, how many normal pages lie side by side in memory. */
  #runLength(windows: Windows | undefined, i: number, normal: number): number {
    const order = this.#order;
    let run = 1;
    if (windows === undefined) {
      while (i + run < normal && order[i + run] === order[i] + run) run++;
      return run;
    }
    const pages = this.#queued;
    const first = pages[order[i]];
    const limit = Math.min(normal - i, Windows.runLimit(first * this.#pageSize) / this.#pageSize);
    while (run < limit && pages[order[i + run]] === first + run) run++;
    return run;
  }

  #piece(windows: Windows | undefined, staging: Buffer, i: number, run: number): Buffer {
    const size = this.#pageSize;
    const position = this.#order[i];
    if (windows !== undefined) return windows.view(this.#queued[position] * size, run * size);
    return staging.subarray(position * size, (position + run) * size);
  }

  /** The page list in the order of the packet. */
  #ordered(num: number): Uint32Array {
    const ordered = this.#pages;
    for (let i = 0; i < num; i++) ordered[i] = this.#queued[this.#order[i]];
    return ordered;
  }

  async #sendDeviceState(slot: Slot): Promise<void> {
    await this.#sendCompressed();
    const header = this.#nextHeader().subarray(0, DEVICE_STATE_HEADER_BYTES);
    fillDeviceState(header, { idstr: slot.idstr, instanceId: slot.instanceId, nextPacketSize: slot.length });
    this.#hold(header);
    this.#hold(slot.data.subarray(0, slot.length));
    this.#stats[STAT_PACKETS] += 1;
    this.#stats[STAT_DEVICE_STATES] += 1;
    await this.#startWrite();
    await this.#flushed();
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
        pages: this.#pages,
      },
      [],
    );
    this.#stats[STAT_SYNCS] += 1;
    await this.#startWrite();
    await this.#flushed();
    this.#control.syncDone(this.#id);
  }

  /** Adds a packet to what is written next. */
  #sendPacket(packet: PacketToSend, payload: Buffer[]): void {
    const header = this.#nextHeader().subarray(0, packetHeaderBytes(this.#pageSize));
    fillPacket(header, this.#pageSize, packet);
    this.#hold(header);
    for (const piece of payload) this.#hold(piece);
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

  #nextHeader(): Buffer {
    this.#headerTurn = (this.#headerTurn + 1) % this.#headers.length;
    return this.#headers[this.#headerTurn];
  }

  #hold(piece: Buffer): void {
    this.#pending.push(piece);
    this.#stats[STAT_BYTES] += piece.length;
  }

  #trace(point: TracePoint, data: Record<string, unknown>): void {
    if (this.#control.trace) this.#report(point, { id: this.#id, ...data });
  }

  // ---- the socket ----

  async #connect(): Promise<void> {
    const { address, connectTimeoutMs, stallTimeoutMs } = this.#task;
    const socket = net.connect({ ...address, noDelay: true, allowHalfOpen: true } as net.NetConnectOpts);
    this.#socket = socket;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(
          new MultifdError(
            'ERR_MULTIFD_TIMEOUT',
            `no connection to ${formatAddress(address)} within ${connectTimeoutMs} ms`,
          ),
        );
      }, connectTimeoutMs);
      socket.once('connect', () => {
        clearTimeout(timer);
        resolve();
      });
      socket.once('error', (error) => {
        clearTimeout(timer);
        reject(
          MultifdError.wrap(error, 'ERR_MULTIFD_CONNECT', `cannot connect to ${formatAddress(address)}`),
        );
      });
      socket.once('close', () => {
        clearTimeout(timer);
        reject(
          new MultifdError('ERR_MULTIFD_CONNECT', `connection to ${formatAddress(address)} was given up`),
        );
      });
    });
    socket.removeAllListeners('close');
    socket.removeAllListeners('error');
    socket.on('error', (error) => {
      this.#break(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'connection broke'));
    });
    socket.on('close', () => {
      this.#break(new MultifdError('ERR_MULTIFD_CONNECTION', 'connection was closed'));
    });
    // A receiver never writes; reading is how its end, or its nonsense, is noticed. A real one closes its channels as
    // soon as it has loaded everything, so an end is a failure only if something is still to be sent.
    socket.on('data', () => {
      this.#break(new MultifdError('ERR_MULTIFD_PROTOCOL', 'received data, expected none on a send channel'));
    });
    socket.on('end', () => {
      this.#peerEnded = true;
      if (this.#writing)
        this.#break(new MultifdError('ERR_MULTIFD_CONNECTION', 'the peer closed the channel'));
    });
    this.#watchStall(socket, stallTimeoutMs);
    socket.setKeepAlive(true, 10_000);
  }

  /**
   * Node takes partly written data for progress, and lets a period pass in which there was some; so it is asked four
   * times as often, and four periods in a row without any are a stall: after one stallTimeoutMs, or a quarter more.
   */
  #watchStall(socket: net.Socket, stallTimeoutMs: number): void {
    const periodMs = Math.ceil(stallTimeoutMs / STALL_PERIODS);
    let periods = 0;
    let last = 0;
    socket.setTimeout(periodMs);
    socket.on('timeout', () => {
      const now = performance.now();
      // A period that was not silent, or not waited for, lies between.
      if (!this.#writing || now - last > 1.5 * periodMs + STALL_SLACK_MS) periods = 0;
      last = now;
      if (this.#writing && ++periods >= STALL_PERIODS) {
        const message = `the peer has read nothing for ${stallTimeoutMs} ms`;
        this.#break(new MultifdError('ERR_MULTIFD_STALL', message));
      } else socket.setTimeout(periodMs);
    });
  }

  #break(error: MultifdError): void {
    if (this.#broken !== undefined) return;
    this.#broken = error;
    this.#writing = false;
    this.#wakeWriter?.();
    this.#socket?.destroy();
    // The loop may be asleep on SEM.
    this.#control.postSem(this.#id);
  }

  /** Hands all that is held to the socket, in one system call, as soon as nothing else is on its way. */
  async #startWrite(): Promise<void> {
    if (this.#writing || this.#broken !== undefined) await this.#flushed();
    if (this.#peerEnded) throw new MultifdError('ERR_MULTIFD_CONNECTION', 'the peer closed the channel');
    const socket = this.#socket as net.Socket;
    const pieces = this.#pending;
    const last = pieces.length - 1;
    if (last < 0) return;
    this.#writing = true;
    socket.cork();
    for (let i = 0; i < last; i++) socket.write(pieces[i]);
    socket.write(pieces[last], this.#written);
    socket.uncork();
    pieces.length = 0;
  }

  readonly #written = (error?: Error | null): void => {
    if (error !== undefined && error !== null) {
      this.#break(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'write failed'));
      return;
    }
    this.#writing = false;
    this.#wakeWriter?.();
  };

  /** Until nothing is on its way. */
  async #flushed(): Promise<void> {
    if (this.#writing) {
      await new Promise<void>((resolve) => {
        this.#wakeWriter = resolve;
      });
      this.#wakeWriter = undefined;
    }
    if (this.#broken !== undefined) throw this.#broken;
  }

  /** STOP = FAIL takes the socket away, whatever the loop is waiting for. */
  async #guard(): Promise<void> {
    let level = STOP_RUN;
    while (level < STOP_FAIL) level = await this.#control.stopAbove(level);
    this.#break(new MultifdError('ERR_MULTIFD_CLOSED', 'stopped'));
  }

  /** Orderly end: everything written, then FIN. */
  async #finish(): Promise<void> {
    if (this.#control.stopped === STOP_FAIL) return;
    await this.#flushed();
    const socket = this.#socket as net.Socket;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, FINISH_TIMEOUT_MS);
      const done = (): void => {
        clearTimeout(timer);
        resolve();
      };
      socket.end(done);
      socket.once('close', done);
    });
  }

  /** Frees everything; waits until the descriptor is closed. */
  async close(): Promise<void> {
    this.#clock.stop();
    const socket = this.#socket;
    if (socket !== undefined && !socket.closed) {
      await new Promise<void>((resolve) => {
        socket.once('close', () => resolve());
        socket.destroy();
      });
    }
    this.#method?.close();
    for (const file of this.#files) file?.close();
  }
}
