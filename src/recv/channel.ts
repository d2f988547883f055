/**
 * A receive channel: takes over a connection whose hello the listener has read, in its own worker thread (piscina
 * task, entry workers/recv-channel.ts).
 *
 *     state     wants                         then
 *     START     12 bytes: magic, version,     HEADER, or DEVICE_HEADER if bit DEVICE_STATE is set
 *               flags
 *     HEADER    the rest of the RAM header    checked; PAYLOAD if a page has data, else the packet is complete
 *     DEVICE_HEADER  the rest of 276 bytes    checked; DEVICE_PAYLOAD
 *     PAYLOAD   next_packet_size bytes        decoded and put in place; zero pages; SYNC
 *     DEVICE_PAYLOAD                          offered to the calling thread
 *     PAUSED    nothing: the socket is not read while a decoder, the calling thread or a SYNC is waited for,
 *               and for good once the session is frozen, behind the last SYNC of a migration into a file
 *
 * The kernel reads straight into the view that the state wants: for method none into guest RAM itself, run by run,
 * unless the runs are short. Headers come through the landing: one header at a time while packets have a payload, up to
 * 16 in one read while they have none.
 * An end of the connection is clean in START with nothing read, and an error anywhere else.
 *
 * Who owns the bytes: guest RAM is the channel's to write until sync() of the receiver returns; the header and the
 * payload buffer are the channel's own, so nothing that was checked can change afterwards.
 */
import net from 'node:net';
import { performance } from 'node:perf_hooks';
import {
  report,
  runChannel,
  type Channel,
  type ChannelOutcome,
  type ChannelTask,
} from '../channel-thread.js';
import { MultifdError, receivedExpected } from '../errors.js';
import { METHODS, type ReceiveMethod } from '../methods/methods.js';
import { quote } from '../printable.js';
import { viewBitmaps } from '../ram/bitmap.js';
import type { BlockDescription } from '../ram/block.js';
import { FileBlock } from '../ram/file-block.js';
import { runLength } from '../ram/page-list.js';
import { Windows } from '../ram/windows.js';
import { copyPages } from '../ram/copy.js';
import { isZeroRange } from '../ram/zero-page.js';
import {
  CHANNEL_EOF,
  CHANNEL_RUNNING,
  type Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_RAM,
  STOP_RUN,
  markPages,
  unmarkPages,
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
import { SET_UP } from '../set-up.js';
import { watchStall } from '../transport/stall.js';
import type { TracePoint } from '../trace.js';
import { DEVICE_STATE_HEADER_BYTES, unfillDeviceState } from '../wire/device-state.js';
import { HELLO_BYTES } from '../wire/hello.js';
import {
  MAX_PAGE_SIZE,
  MAX_PAYLOAD_BYTES,
  MULTIFD_FLAG_DEVICE_STATE,
  MULTIFD_PACKET_BYTES,
  PACKET_START_BYTES,
  PacketHeader,
  packetHeaderBytes,
  unfillPacket,
  unfillPacketStart,
  type PacketExpectation,
} from '../wire/packet.js';

/** What the calling thread gives to the worker. */
export interface ReceiveChannelTask extends ChannelTask {
  /** The connection's descriptor; the worker closes it. */
  fd: number;
  /** What the listener read beyond the hello. */
  surplus: Uint8Array;
  pageSize: number;
  blocks: BlockDescription[];
  /** Bitmaps of received pages: viewBitmaps(). */
  received: SharedArrayBuffer;
  /** A bitmap for each block: 1 where the page has data. Zero pages are then noted here and not written. */
  present: SharedArrayBuffer | undefined;
  deviceStateBytes: number;
  /** `idstr/instanceId` of the devices whose state is taken. */
  devices: string[];
  stallTimeoutMs: number;
}

type State = 'START' | 'HEADER' | 'DEVICE_HEADER' | 'PAYLOAD' | 'DEVICE_PAYLOAD';

/** How many looks at a word before sleeping: about 10 µs. */
const SPIN = 400;
/** Headers that one read may bring: as many as a send channel holds back. */
const LANDING_PACKETS = 16;
/** Method none into shared memory: runs below this on average are read as one and copied. A read costs about 4 µs. */
const DIRECT_RUN_BYTES = 32768;

export function runReceiveChannel(task: ReceiveChannelTask): Promise<ChannelOutcome> {
  return runChannel(
    task,
    'receive channel',
    (codec) => codec.createReceiver(task.pageSize),
    (control, method) => new ReceiveChannel(task, control, method),
  );
}

class ReceiveChannel implements Channel {
  packetNum: number | undefined;
  readonly #task: ReceiveChannelTask;
  readonly #control: Control;
  readonly #id: number;
  readonly #pageSize: number;
  readonly #stats: Float64Array;
  readonly #shared: (Windows | undefined)[];
  readonly #files: (FileBlock | undefined)[] = [];
  readonly #received: Int32Array[];
  readonly #present: Int32Array[] | undefined;
  readonly #expectation: PacketExpectation;
  readonly #method: ReceiveMethod | undefined;
  readonly #header: Buffer;
  readonly #start: Buffer;
  readonly #headerBytes: number;
  readonly #packet: PacketHeader;
  /** A compressed payload. */
  readonly #payload: Buffer | undefined;
  /** Decoded pages, or pages on their way to a file. */
  readonly #pages: Buffer;

  #state: State = 'START';
  /** The bytes wanted now, and how many of them are there. */
  #want: Uint8Array;
  #have = 0;
  /** PAYLOAD of method none into shared RAM: the page that the next run begins with. */
  #nextPage = 0;
  /** The payload of method none lies in guest RAM already, not in #pages. */
  #direct = false;
  #device: { idstr: string; instanceId: number } | undefined;
  /** Bytes that were read before the state that takes them was known. */
  #surplus: Buffer;
  #surplusAt = 0;
  #surplusEnd: number;
  readonly #landing: Buffer;
  #landed = true;

  #socket: net.Socket | undefined;
  #unwatch: (() => void) | undefined;
  #paused = true;
  #syncsSeen = 0;
  #settle: ((error?: MultifdError) => void) | undefined;
  #ended = false;
  readonly #clock: ChannelClock;
  #lastProgress = 0;

  constructor(task: ReceiveChannelTask, control: Control, method: ReceiveMethod | undefined) {
    this.#task = task;
    this.#method = method;
    if (method !== undefined) this.#payload = Buffer.allocUnsafeSlow(MAX_PAYLOAD_BYTES);
    this.#control = control;
    this.#id = task.id;
    this.#pageSize = task.pageSize;
    this.#stats = control.stats(task.id);
    this.#clock = new ChannelClock(this.#stats);
    this.#shared = task.blocks.map((block) =>
      block.buffer === undefined ? undefined : new Windows(block.buffer, block.base, block.size),
    );
    const pageCounts = task.blocks.map((block) => block.size / task.pageSize);
    this.#received = viewBitmaps(task.received, pageCounts);
    this.#present = task.present === undefined ? undefined : viewBitmaps(task.present, pageCounts);
    const byName = new Map(task.blocks.map((block, index) => [block.name, { index, size: block.size }]));
    this.#expectation = {
      pageSize: task.pageSize,
      methodFlag: METHODS[task.compression].flag,
      findBlock: (name) => byName.get(name),
    };
    this.#header = Buffer.alloc(Math.max(packetHeaderBytes(task.pageSize), DEVICE_STATE_HEADER_BYTES));
    this.#packet = new PacketHeader(task.pageSize);
    this.#headerBytes = packetHeaderBytes(task.pageSize);
    this.#landing = Buffer.allocUnsafeSlow(LANDING_PACKETS * this.#headerBytes);
    this.#pages = Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES);
    this.#start = this.#header.subarray(0, PACKET_START_BYTES);
    this.#want = this.#start;
    this.#surplus = Buffer.from(task.surplus);
    this.#surplusEnd = this.#surplus.length;
  }

  async run(): Promise<void> {
    // First of all: from here on the descriptor is this thread's to close.
    this.#control.setChannelState(this.#id, CHANNEL_RUNNING);
    // The listener has read the hello.
    this.#stats[STAT_BYTES] += HELLO_BYTES;
    this.#open();
    for (const block of this.#task.blocks) {
      this.#files.push(block.kind === 'file' ? new FileBlock(block) : undefined);
    }
    this.#clock.idle();
    this.#trace('multifd_recv_thread_start', {});
    await new Promise<void>((resolve, reject) => {
      this.#settle = (error) => {
        if (this.#ended) return;
        this.#ended = true;
        if (error === undefined) resolve();
        else reject(error);
      };
      void this.#guard();
      this.#paused = false;
      this.#feed();
      if (!this.#paused && !this.#ended) this.#socket?.resume();
    });
    this.#trace('multifd_recv_thread_end', {});
  }

  // ---- the socket ----

  #open(): void {
    const socket = new net.Socket({
      fd: this.#task.fd,
      readable: true,
      writable: true,
      allowHalfOpen: true,
      onread: {
        // Node asks for the next view right after each read, also when that read has paused the channel: what is
        // wanted then is not known yet, and the first read after the pause goes to the landing.
        buffer: () => {
          this.#landed = this.#paused || this.#ended || this.#state === 'START';
          if (!this.#landed) return this.#want.subarray(this.#have);
          // Payload that lands here is copied, so no more than a header is asked for where one may follow.
          return this.#packet.normalPages > 0 ? this.#landing.subarray(0, this.#headerBytes) : this.#landing;
        },
        callback: (count) => {
          this.#clock.busy();
          if (this.#landed) {
            this.#surplus = this.#landing;
            this.#surplusAt = 0;
            this.#surplusEnd = count;
            this.#feed();
          } else this.#filled(count);
          this.#maybeIdle();
          return !this.#paused && !this.#ended;
        },
      },
    });
    this.#socket = socket;
    socket.pause();
    socket.on('error', (error) => {
      if (this.#control.frozen) this.#endOfStream();
      else this.#settle?.(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'connection broke'));
    });
    socket.on('end', () => this.#endOfStream());
    socket.on('close', () => this.#endOfStream());
    // Between packets a source may be silent as long as it likes; inside one it may not.
    const { stallTimeoutMs } = this.#task;
    const moved = (): number | undefined =>
      this.#paused || this.#atStart() ? undefined : this.#stats[STAT_BYTES];
    this.#unwatch = watchStall(stallTimeoutMs, moved, () => {
      const error = new MultifdError(
        'ERR_MULTIFD_STALL',
        `inside a packet (${this.#state}) the peer has sent nothing for ${stallTimeoutMs} ms: ` +
          receivedExpected('bytes', this.#have, this.#want.length),
      );
      this.#settle?.(this.#hintAtPageSize(error));
    });
    socket.setKeepAlive(true, 10_000);
  }

  /** Between packets, and not waiting for anybody here, the channel waits for the source. */
  #maybeIdle(): void {
    if (!this.#paused && this.#atStart()) this.#clock.idle();
  }

  #atStart(): boolean {
    return this.#state === 'START' && this.#have === 0;
  }

  #endOfStream(): void {
    if (this.#ended) return;
    if (this.#atStart() || this.#control.frozen) {
      this.#control.setChannelState(this.#id, CHANNEL_EOF);
      this.#settle?.();
      return;
    }
    const error = new MultifdError(
      'ERR_MULTIFD_EOF',
      `the channel ended inside a packet (${this.#state}): ` +
        receivedExpected('bytes', this.#have, this.#want.length),
    );
    this.#settle?.(this.#hintAtPageSize(error));
  }

  /** STOP takes the socket away; at an orderly end the calling thread wants no more bytes either. */
  async #guard(): Promise<void> {
    await this.#control.stopAbove(STOP_RUN);
    this.#settle?.();
  }

  /** Bytes that came with the hello, or to the landing, go through the same states. */
  #feed(): void {
    while (this.#surplusAt < this.#surplusEnd && !this.#paused && !this.#ended) {
      if (this.#feedHeader()) continue;
      const at = this.#surplusAt;
      const count = Math.min(this.#surplusEnd - at, this.#want.length - this.#have);
      this.#surplus.copy(this.#want, this.#have, at, at + count);
      this.#surplusAt += count;
      this.#filled(count);
    }
  }

  /** A whole header is decoded where it lies. */
  #feedHeader(): boolean {
    const at = this.#surplusAt;
    if (this.#control.frozen) {
      this.#rest();
      return true;
    }
    if (this.#state !== 'START' || this.#have > 0 || this.#surplusEnd - at < this.#headerBytes) return false;
    // Its magic and version are looked at with all the rest.
    const flags = this.#surplus.readUInt32BE(at + PACKET_START_BYTES - 4);
    if ((flags & MULTIFD_FLAG_DEVICE_STATE) !== 0) return false;
    this.#surplusAt += this.#headerBytes;
    this.#stats[STAT_BYTES] += this.#headerBytes;
    try {
      this.#takeHeader(this.#surplus, at);
    } catch (thrown) {
      this.#fail(thrown);
    }
    return true;
  }

  #filled(count: number): void {
    this.#have += count;
    this.#stats[STAT_BYTES] += count;
    if (this.#have === this.#want.length) this.#advance();
  }

  /** Everything that the state wanted is there: on to the next, and on to the failure if there is one. */
  #advance(): void {
    if (this.#control.frozen) {
      this.#rest();
      return;
    }
    try {
      this.#step();
    } catch (thrown) {
      this.#fail(thrown);
    }
  }

  /** Frozen: reads no more, until STOP ends it. */
  #rest(): void {
    this.#paused = true;
    this.#waits++;
  }

  #fail(thrown: unknown): void {
    if (this.#control.frozen) {
      this.#rest();
      return;
    }
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'receive channel');
    this.#settle?.(this.#hintAtPageSize(error));
  }

  /**
   * A header's length depends on the page size, and nothing in it tells that: a source with another one shows itself by a
   * second packet that does not begin where it should, by more pages than one has room for, or by headers that are shorter
   * and have an end where one of ours goes on.
   */
  #hintAtPageSize(error: MultifdError): MultifdError {
    const isLost = error.code === 'ERR_MULTIFD_MAGIC' && this.#stats[STAT_PACKETS] > 0;
    const isShort = this.#state === 'HEADER' && this.#endsWithShorterHeaders();
    if (!isLost && !isShort && error.code !== 'ERR_MULTIFD_PAGES_ALLOC') return error;
    const hint = `are the source's pages of another size than ${this.#pageSize} (${SET_UP.pageSize})?`;
    return new MultifdError(error.code, `${error.message}; ${hint}`, { ...error, cause: error.cause });
  }

  #endsWithShorterHeaders(): boolean {
    const bytes = PACKET_START_BYTES + this.#have;
    for (let size = 2 * this.#pageSize; size <= MAX_PAGE_SIZE; size *= 2) {
      if (bytes % packetHeaderBytes(size) === 0) return true;
    }
    return false;
  }

  #expect(state: State, want: Uint8Array): void {
    this.#state = state;
    this.#want = want;
    this.#have = 0;
  }

  // ---- the states ----

  #step(): void {
    switch (this.#state) {
      case 'START': {
        const flags = unfillPacketStart(this.#header);
        if ((flags & MULTIFD_FLAG_DEVICE_STATE) !== 0) {
          this.#expect('DEVICE_HEADER', this.#header.subarray(PACKET_START_BYTES, DEVICE_STATE_HEADER_BYTES));
        } else {
          this.#expect(
            'HEADER',
            this.#header.subarray(PACKET_START_BYTES, packetHeaderBytes(this.#pageSize)),
          );
        }
        return;
      }
      case 'HEADER':
        this.#takeHeader(this.#header, 0);
        return;
      case 'PAYLOAD':
        if (this.#method === undefined && this.#nextPage < this.#packet.normalPages) this.#expectRun();
        else this.#decode();
        return;
      case 'DEVICE_HEADER': {
        const device = unfillDeviceState(this.#header, this.#task.deviceStateBytes);
        if (!this.#task.devices.includes(`${device.idstr}/${device.instanceId}`)) {
          throw new MultifdError(
            'ERR_MULTIFD_DEVICE_STATE',
            receivedExpected(
              'device state for',
              `${quote(device.idstr)} instance ${device.instanceId}`,
              (this.#task.devices.length === 0 ? 'no device' : `one of ${this.#task.devices.join(', ')}`) +
                ` (${SET_UP.devices})`,
            ),
          );
        }
        this.#device = device;
        const { data } = this.#control.slotOf(this.#id);
        this.#expect('DEVICE_PAYLOAD', data.subarray(0, device.nextPacketSize));
        return;
      }
      case 'DEVICE_PAYLOAD':
        this.#stats[STAT_DEVICE_STATES] += 1;
        this.#pauseFor(this.#offerDeviceState(this.#want.length));
        return;
    }
  }

  #takeHeader(bytes: Buffer, at: number): void {
    const packet = this.#packet;
    unfillPacket(bytes, this.#expectation, packet, at);
    this.packetNum = packet.packetNum;
    if (this.#control.trace) {
      this.#trace('multifd_recv_unfill', {
        packetNum: packet.packetNum,
        normal: packet.normalPages,
        zero: packet.zeroPages,
        flags: packet.flags,
        nextPacketSize: packet.nextPacketSize,
      });
    }
    if (packet.normalPages > 0) this.#expectPayload();
    else this.#place();
  }

  #expectPayload(): void {
    const packet = this.#packet;
    if (this.#payload !== undefined) {
      this.#expect('PAYLOAD', this.#payload.subarray(0, packet.nextPacketSize));
      return;
    }
    this.#direct = this.#shared[packet.block] !== undefined && this.#runsAreLong();
    if (this.#direct) {
      this.#nextPage = 0;
      this.#expectRun();
    } else {
      this.#nextPage = packet.normalPages;
      this.#expect('PAYLOAD', this.#pagesBuffer().subarray(0, packet.nextPacketSize));
    }
  }

  #runsAreLong(): boolean {
    const { normalPages } = this.#packet;
    let runs = 0;
    for (let i = 0; i < normalPages; i += this.#runLength(i, normalPages)) runs++;
    return (normalPages * this.#pageSize) / runs >= Math.min(DIRECT_RUN_BYTES, normalPages * this.#pageSize);
  }

  /** Method none into shared RAM: the next pages that lie side by side. */
  #expectRun(): void {
    const run = this.#runLength(this.#nextPage, this.#packet.normalPages);
    const windows = this.#shared[this.#packet.block] as Windows;
    const page = this.#packet.pages[this.#nextPage];
    this.#nextPage += run;
    this.#expect('PAYLOAD', windows.view(page * this.#pageSize, run * this.#pageSize));
  }

  /** Where pages are put together: for private memory in the slot, since the calling thread takes them from there. */
  #pagesBuffer(): Buffer {
    const { block } = this.#packet;
    const direct = this.#shared[block] !== undefined || this.#files[block] !== undefined;
    return direct ? this.#pages : this.#control.slotOf(this.#id).data;
  }

  #decode(): void {
    const method = this.#method;
    if (method === undefined) {
      this.#place();
      return;
    }
    const bytes = this.#packet.normalPages * this.#pageSize;
    const buffer = this.#pagesBuffer();
    const pages = buffer.subarray(0, bytes);
    const payload = (this.#payload as Buffer).subarray(0, this.#packet.nextPacketSize);
    const decoding = method.decompress(payload, pages);
    if (decoding === undefined) this.#place();
    else this.#pauseFor(decoding.then((own) => this.#placeDecoded(buffer, own ?? pages)));
  }

  /** @param decoded the codec's own buffer, or what it has filled of `buffer` */
  #placeDecoded(buffer: Buffer, decoded: Buffer): void {
    if (buffer === this.#pages) this.#place(decoded);
    else {
      // Private memory: the calling thread takes the pages from the slot.
      if (decoded.buffer !== buffer.buffer) decoded.copy(buffer);
      this.#place();
    }
  }

  /** The packet's pages are decoded, or in shared RAM already: puts them in place, then the zero pages. */
  #place(pages = this.#pages): void {
    if (this.#control.frozen) {
      this.#rest();
      return;
    }
    const packet = this.#packet;
    const size = this.#pageSize;
    const { block, normalPages } = packet;
    if (normalPages + packet.zeroPages > 0) {
      const windows = this.#shared[block];
      const file = this.#files[block];
      if (windows === undefined && file === undefined) {
        this.#pauseFor(this.#offerPages());
        return;
      }
      const direct = this.#method === undefined && this.#direct;
      for (let i = 0; i < normalPages;) {
        const run = this.#runLength(i, normalPages);
        const offset = packet.pages[i] * size;
        if (windows !== undefined) {
          if (!direct) {
            const window = windows.windowAt(offset);
            copyPages(pages, i * size, window, offset % Windows.WINDOW_BYTES, run * size);
          }
        } else file?.write(pages, i * size, run * size, offset);
        markPages(this.#received[block], packet.pages[i], run);
        if (this.#present !== undefined) markPages(this.#present[block], packet.pages[i], run);
        i += run;
      }
      this.#zeroPages(windows, file);
    }
    this.#complete();
  }

  /**
   * A zero page that is zero already is not written: fresh memory stays without frames, a sparse file sparse, and
   * reading is faster than writing anyway.
   */
  #zeroPages(windows: Windows | undefined, file: FileBlock | undefined): void {
    const packet = this.#packet;
    const size = this.#pageSize;
    const end = packet.normalPages + packet.zeroPages;
    const { fresh } = this.#task.blocks[packet.block];
    for (let i = packet.normalPages; i < end;) {
      const run = this.#runLength(i, end);
      const offset = packet.pages[i] * size;
      const bytes = run * size;
      const first = markPages(this.#received[packet.block], packet.pages[i], run);
      if (fresh && first) {
        i += run;
        continue;
      }
      if (this.#present !== undefined) {
        unmarkPages(this.#present[packet.block], packet.pages[i], run);
      } else if (windows !== undefined) {
        const window = windows.windowAt(offset);
        const at = offset % Windows.WINDOW_BYTES;
        if (!isZeroRange(window, at, bytes)) window.fill(0, at, at + bytes);
      } else if (file !== undefined) {
        file.read(this.#pages, 0, bytes, offset);
        if (!isZeroRange(this.#pages, 0, bytes)) {
          this.#pages.fill(0, 0, bytes);
          file.write(this.#pages, 0, bytes, offset);
        }
      }
      i += run;
    }
  }

  /** From entry `i` of the page list on, before `end`, how many pages lie side by side in one window. */
  #runLength(i: number, end: number): number {
    const { pages } = this.#packet;
    const limit = Windows.runLimit(pages[i] * this.#pageSize) / this.#pageSize;
    return runLength(pages, i, Math.min(end - i, limit));
  }

  /** The packet is in place. */
  #complete(): void {
    const packet = this.#packet;
    this.#stats[STAT_NORMAL_PAGES] += packet.normalPages;
    this.#stats[STAT_ZERO_PAGES] += packet.zeroPages;
    const { sync, pagesAlloc } = packet;
    this.#nextPacket();
    if (sync) this.#pauseFor(this.#sync(pagesAlloc));
  }

  #nextPacket(): void {
    this.#stats[STAT_PACKETS] += 1;
    this.packetNum = undefined;
    this.#expect('START', this.#start);
    const { progressMs } = this.#control;
    if (progressMs === 0) return;
    const now = performance.now();
    if (now - this.#lastProgress < progressMs) return;
    this.#lastProgress = now;
    this.#control.postProgress();
  }

  // ---- what has to be waited for ----

  /** Reads nothing until `step` is done. `step` may have called #pauseFor itself for what comes next. */
  #pauseFor(step: Promise<void>): void {
    this.#paused = true;
    this.#waits++;
    step.then(
      () => {
        this.#waits--;
        if (this.#waits > 0 || this.#ended) return;
        this.#paused = false;
        this.#clock.busy();
        this.#feed();
        this.#maybeIdle();
        if (!this.#paused && !this.#ended) this.#socket?.resume();
      },
      (thrown: unknown) => this.#fail(thrown),
    );
  }
  #waits = 0;

  /** SYNC was read: says so and stops until the calling thread has seen it on every channel. */
  async #sync(pagesAlloc: number): Promise<void> {
    const control = this.#control;
    this.#stats[STAT_SYNCS] += 1;
    // What it waits for now is the other channels and the calling thread.
    this.#clock.idle();
    if (control.progressMs > 0) control.postProgress();
    this.#syncsSeen = (this.#syncsSeen + 1) | 0;
    control.setSyncAlloc(this.#id, pagesAlloc);
    control.syncDone(this.#id);
    await this.#until(() => control.syncsReleased(this.#id) === this.#syncsSeen);
  }

  async #offerPages(): Promise<void> {
    const packet = this.#packet;
    const slot = this.#control.slotOf(this.#id);
    slot.type = PAYLOAD_RAM;
    slot.block = packet.block;
    slot.num = packet.normalPages + packet.zeroPages;
    slot.normalNum = packet.normalPages;
    slot.pages.set(packet.pages);
    this.#control.offer(this.#id);
    await this.#until(() => this.#control.isIdle(this.#id));
    this.#complete();
  }

  async #offerDeviceState(bytes: number): Promise<void> {
    const slot = this.#control.slotOf(this.#id);
    slot.type = PAYLOAD_DEVICE_STATE;
    slot.idstr = this.#device?.idstr ?? '';
    slot.instanceId = this.#device?.instanceId ?? 0;
    slot.length = bytes;
    this.#control.offer(this.#id);
    await this.#until(() => this.#control.isIdle(this.#id));
    this.#nextPacket();
  }

  async #until(condition: () => boolean): Promise<void> {
    const control = this.#control;
    for (;;) {
      const seen = control.semCount(this.#id);
      if (condition() || control.stopped !== STOP_RUN) return;
      const wait = control.waitSem(this.#id, seen, SPIN);
      if (wait !== undefined) await wait;
    }
  }

  #trace(point: TracePoint, data: Record<string, unknown>): void {
    if (this.#control.trace) report(point, { id: this.#id, ...data });
  }

  /** Frees everything; waits until the descriptor is closed. */
  async close(): Promise<void> {
    this.#clock.stop();
    this.#unwatch?.();
    this.#ended = true;
    const socket = this.#socket;
    if (socket !== undefined && !socket.closed) {
      await new Promise<void>((resolve) => {
        socket.once('close', () => resolve());
        socket.destroy();
      });
    }
  }
}
