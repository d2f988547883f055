/**
 * A send channel: the whole life of one connection, in its own worker thread (piscina task, entry
 * workers/send-channel.ts).
 *
 *     connect -> hello -> RUNNING
 *       loop:  job?   RAM: zero-page detection | header | compression | write     then slot empty, pendingJob = 0
 *                     device state: header | write
 *              sync?  wait for the last write | SYNC packet | write               then SYNC_DONE
 *              STOP?  END: finish the socket.  FAIL: drop it
 *              else   wait on SEM
 *
 * One packet may be on its way while the next is prepared: a slot of shared or file-backed pages is given back as
 * soon as its offsets are in the header, since nothing else of it is needed. Pages staged in the slot, and device
 * state, are the slot's own bytes: there the slot stays until the kernel has them.
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
import {
  STAT_BUSY_MS,
  STAT_BYTES,
  STAT_DEVICE_STATES,
  STAT_IDLE_MS,
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

/** Posts an event to the calling thread. */
export type Report = (point: TracePoint, data: Record<string, unknown>) => void;

/** How many looks at SEM before sleeping: about 10 µs. */
const SPIN = 400;
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
  readonly #names: Buffer[];
  readonly #shared: (Windows | undefined)[];
  readonly #files: (FileBlock | undefined)[];
  readonly #methodFlag: number;
  readonly #method: SendMethod | undefined;
  /** Two of each: one for the packet on its way, one for the packet in the making. */
  readonly #headers: Buffer[];
  readonly #staging: Buffer[] = [];
  #turn = 0;
  /** What the method compresses: a copy of the pages. */
  readonly #input: Buffer | undefined;
  /** Positions in the slot: normal pages first, then zero pages. */
  readonly #order: Uint16Array;
  readonly #queued: Uint32Array;
  #socket: net.Socket | undefined;
  #broken: MultifdError | undefined;
  #wakeWriter: (() => void) | undefined;
  #writing = false;
  #peerEnded = false;
  #lastProgress = 0;

  constructor(task: SendChannelTask, control: Control, report: Report) {
    this.#task = task;
    this.#control = control;
    this.#report = report;
    this.#id = task.id;
    this.#pageSize = task.pageSize;
    this.#stats = control.stats(task.id);
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
    if (this.#method !== undefined) this.#input = Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES);
    const headerBytes = Math.max(packetHeaderBytes(task.pageSize), DEVICE_STATE_HEADER_BYTES);
    this.#headers = [Buffer.alloc(headerBytes), Buffer.alloc(headerBytes)];
    this.#order = new Uint16Array(pagesPerPacket(task.pageSize));
    this.#queued = new Uint32Array(pagesPerPacket(task.pageSize));
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
    await this.#write([encodeHello({ uuid: this.#task.uuid, id: this.#id })], 64);
    this.#control.setChannelState(this.#id, CHANNEL_RUNNING);
    this.#trace('multifd_send_thread_start', {});
    await this.#loop();
    await this.#finish();
    this.#trace('multifd_send_thread_end', {});
  }

  async #loop(): Promise<void> {
    const control = this.#control;
    const id = this.#id;
    let since = performance.now();
    for (;;) {
      const seen = control.semCount(id);
      if (control.stopped === STOP_FAIL) return;
      // Before the job, so that every job published before this sync goes out before its SYNC packet.
      const sync = control.wantsSync(id);
      const job = control.hasJob(id);
      if (!job && !sync) {
        if (control.stopped === STOP_END) return;
        if (this.#broken !== undefined) throw this.#broken;
        const wait = control.waitSem(id, seen, SPIN);
        if (wait !== undefined) await wait;
        continue;
      }
      const begun = performance.now();
      this.#stats[STAT_IDLE_MS] += begun - since;
      if (job) await this.#sendJob();
      if (sync) await this.#sendSync();
      since = performance.now();
      this.#stats[STAT_BUSY_MS] += since - begun;
      const { progressMs } = control;
      if (progressMs > 0 && since - this.#lastProgress >= progressMs) {
        this.#lastProgress = since;
        control.postProgress();
      }
    }
  }

  async #sendJob(): Promise<void> {
    const slot = this.#control.slotOf(this.#id);
    if (slot.type === PAYLOAD_RAM) await this.#sendPages(slot);
    else if (slot.type === PAYLOAD_DEVICE_STATE) await this.#sendDeviceState(slot);
    else throw new MultifdError('ERR_MULTIFD_WORKER', `a job with payload type ${slot.type}`);
  }

  async #sendPages(slot: Slot): Promise<void> {
    const block = slot.block;
    const num = slot.num;
    const size = this.#pageSize;
    const turn = (this.#turn ^= 1);
    const windows = this.#shared[block];
    const file = this.#files[block];
    const staged = windows === undefined && file === undefined;
    // Where page `i` of the slot lies, unless it is shared: in the slot, or read from the file in one go.
    const staging = staged ? slot.data : this.#staging[turn];
    if (file !== undefined) this.#readFile(file, slot, staging);

    const normal = this.#detectZeroPages(slot, windows, staging);
    const zero = num - normal;
    slot.normalNum = normal;

    // Runs of neighbours go out, or are copied, as one piece.
    const chunks: Buffer[] = [];
    let payloadBytes = normal * size;
    if (normal > 0) {
      const input = this.#input;
      let filled = 0;
      for (let i = 0; i < normal;) {
        const run = this.#runLength(slot, windows, i, normal);
        const piece = this.#piece(slot, windows, staging, i, run);
        if (input === undefined) chunks.push(piece);
        else piece.copy(input, filled);
        filled += run * size;
        i += run;
      }
      if (input !== undefined && this.#method !== undefined) {
        const made = this.#method.compress(input.subarray(0, filled));
        const payload = made instanceof Promise ? await made : made;
        payloadBytes = payload.length;
        chunks.push(payload);
      }
    }
    this.#permute(slot);
    const header = this.#headers[turn];
    const packetNum = this.#control.nextPacketNum();
    fillPacket(header, size, {
      flags: this.#methodFlag,
      normalPages: normal,
      zeroPages: zero,
      nextPacketSize: payloadBytes,
      packetNum,
      ramblock: this.#names[block],
      pages: slot.pages,
    });
    const headerBytes = packetHeaderBytes(size);
    chunks.unshift(header.subarray(0, headerBytes));
    this.#trace('multifd_send_fill', {
      packetNum,
      normal,
      zero,
      flags: this.#methodFlag,
      nextPacketSize: payloadBytes,
    });

    const inSlot = staged && this.#input === undefined && normal > 0;
    await this.#flushed();
    const write = this.#startWrite(chunks);
    if (!inSlot) this.#control.done(this.#id);
    this.#count(headerBytes + payloadBytes, normal, zero);
    if (inSlot) {
      await write;
      await this.#flushed();
      this.#control.done(this.#id);
    }
  }

  /** Reads the slot's pages into `staging`, page i at i * pageSize, neighbours in one call. */
  #readFile(file: FileBlock, slot: Slot, staging: Buffer): void {
    const size = this.#pageSize;
    const { pages, num } = slot;
    for (let i = 0; i < num;) {
      let run = 1;
      while (i + run < num && pages[i + run] === pages[i] + run) run++;
      file.read(staging, i * size, run * size, pages[i] * size);
      i += run;
    }
  }

  /**
   * Fills #order with the slot's positions, normal pages first, in queueing order, then zero pages.
   *
   * @returns the number of normal pages
   */
  #detectZeroPages(slot: Slot, windows: Windows | undefined, staging: Buffer): number {
    const order = this.#order;
    const num = slot.num;
    if (this.#task.zeroPageDetection !== 'multifd') {
      for (let i = 0; i < num; i++) order[i] = i;
      return num;
    }
    const size = this.#pageSize;
    const { pages } = slot;
    const first = pages[0] * size;
    // All-zero batches of neighbours are the bulk of a fresh guest: one look at all of it, at memory speed.
    if (pages[num - 1] === pages[0] + num - 1 && this.#ascends(pages, num)) {
      let zero: boolean;
      if (windows === undefined) zero = isZeroRange(staging, 0, num * size);
      else {
        const window = windows.windowAt(first);
        zero =
          num * size <= Windows.runLimit(first) &&
          isZeroRange(window, first % Windows.WINDOW_BYTES, num * size);
      }
      if (zero) {
        for (let i = 0; i < num; i++) order[i] = i;
        return 0;
      }
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

  #ascends(pages: Uint32Array, num: number): boolean {
    for (let i = 1; i < num; i++) if (pages[i] !== pages[0] + i) return false;
    return true;
  }

  /** From position `i` of the order on, how many normal pages lie side by side in memory. */
  #runLength(slot: Slot, windows: Windows | undefined, i: number, normal: number): number {
    const order = this.#order;
    let run = 1;
    if (windows === undefined) {
      while (i + run < normal && order[i + run] === order[i] + run) run++;
      return run;
    }
    const first = slot.pages[order[i]];
    const limit = Math.min(normal - i, Windows.runLimit(first * this.#pageSize) / this.#pageSize);
    while (run < limit && slot.pages[order[i + run]] === first + run) run++;
    return run;
  }

  #piece(slot: Slot, windows: Windows | undefined, staging: Buffer, i: number, run: number): Buffer {
    const size = this.#pageSize;
    const position = this.#order[i];
    if (windows !== undefined) return windows.view(slot.pages[position] * size, run * size);
    return staging.subarray(position * size, (position + run) * size);
  }

  /** Puts the slot's page list itself into the order. */
  #permute(slot: Slot): void {
    const { pages, num } = slot;
    const queued = this.#queued;
    for (let i = 0; i < num; i++) queued[i] = pages[i];
    for (let i = 0; i < num; i++) pages[i] = queued[this.#order[i]];
  }

  async #sendDeviceState(slot: Slot): Promise<void> {
    const header = this.#headers[(this.#turn ^= 1)];
    fillDeviceState(header, { idstr: slot.idstr, instanceId: slot.instanceId, nextPacketSize: slot.length });
    await this.#write(
      [header.subarray(0, DEVICE_STATE_HEADER_BYTES), slot.data.subarray(0, slot.length)],
      DEVICE_STATE_HEADER_BYTES + slot.length,
    );
    this.#stats[STAT_PACKETS] += 1;
    this.#stats[STAT_DEVICE_STATES] += 1;
    this.#control.done(this.#id);
  }

  async #sendSync(): Promise<void> {
    const header = this.#headers[(this.#turn ^= 1)];
    const packetNum = this.#control.nextPacketNum();
    fillPacket(header, this.#pageSize, {
      flags: MULTIFD_FLAG_SYNC,
      normalPages: 0,
      zeroPages: 0,
      nextPacketSize: 0,
      packetNum,
      ramblock: undefined,
      pages: this.#queued,
    });
    this.#trace('multifd_send_fill', {
      packetNum,
      normal: 0,
      zero: 0,
      flags: MULTIFD_FLAG_SYNC,
      nextPacketSize: 0,
    });
    const headerBytes = packetHeaderBytes(this.#pageSize);
    await this.#write([header.subarray(0, headerBytes)], headerBytes);
    this.#stats[STAT_PACKETS] += 1;
    this.#stats[STAT_SYNCS] += 1;
    this.#control.syncDone(this.#id);
  }

  #count(bytes: number, normal: number, zero: number): void {
    this.#stats[STAT_BYTES] += bytes;
    this.#stats[STAT_PACKETS] += 1;
    this.#stats[STAT_NORMAL_PAGES] += normal;
    this.#stats[STAT_ZERO_PAGES] += zero;
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
    // Node takes partly written data for progress.
    socket.setTimeout(stallTimeoutMs);
    socket.on('timeout', () => {
      if (!this.#writing) return;
      this.#break(
        new MultifdError('ERR_MULTIFD_STALL', `the peer has read nothing for ${stallTimeoutMs} ms`),
      );
    });
    socket.setKeepAlive(true, 10_000);
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

  /** Writes everything and waits until the kernel has it. */
  async #write(chunks: Buffer[], bytes: number): Promise<void> {
    await this.#flushed();
    await this.#startWrite(chunks);
    await this.#flushed();
    this.#stats[STAT_BYTES] += bytes;
  }

  /** Hands one packet to the socket; nothing else may be on its way. */
  #startWrite(chunks: Buffer[]): void {
    if (this.#broken !== undefined) throw this.#broken;
    if (this.#peerEnded) throw new MultifdError('ERR_MULTIFD_CONNECTION', 'the peer closed the channel');
    const socket = this.#socket as net.Socket;
    this.#writing = true;
    socket.cork();
    const last = chunks.length - 1;
    for (let i = 0; i < last; i++) socket.write(chunks[i]);
    socket.write(chunks[last], this.#written);
    socket.uncork();
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
