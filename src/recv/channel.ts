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
 * The bytes come in through the intake (intake.ts), the kernel reading straight into what the state wants: for method none
 * guest RAM itself, run by run, unless the runs are short. Pages go where the placement says (placement.ts).
 * An end of the connection is clean in START with nothing read, and an error anywhere else.
 *
 * Who owns the bytes: guest RAM is the channel's to write until sync() of the receiver returns; the header and the
 * payload buffer are the channel's own, so nothing that was checked can change afterwards.
 */
import { performance } from 'node:perf_hooks';
import {
  report,
  runChannel,
  type Channel,
  type ChannelOutcome,
  type ChannelTask,
} from '../channel-thread.js';
import { MultifdError, codeOf, receivedExpected } from '../errors.js';
import { METHODS, type ReceiveMethod } from '../methods/methods.js';
import { quote } from '../printable.js';
import type { BlockDescription } from '../ram/block.js';
import {
  CHANNEL_EOF,
  CHANNEL_RUNNING,
  type Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_RAM,
  STOP_RUN,
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
import type { Connection } from '../transport/connect.js';
import { ReceiveConnection } from '../transport/receive-connection.js';
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
import { Intake, type IntakeStates } from './intake.js';
import { Placement } from './placement.js';

/** What the calling thread gives to the worker. */
export interface ReceiveChannelTask extends ChannelTask {
  /** The connection's descriptor; the worker closes it. Of no account where TLS was spoken before. */
  fd: number;
  /** What was read beyond the hello. */
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
/** @param secured the connection, where this thread has done its TLS handshake and read its hello */
export function runReceiveChannel(task: ReceiveChannelTask, secured?: Connection): Promise<ChannelOutcome> {
  return runChannel(
    task,
    'receive channel',
    (codec) => codec.createReceiver(task.pageSize),
    (control, method) => new ReceiveChannel(task, control, method, secured),
  );
}

class ReceiveChannel implements Channel, IntakeStates {
  packetNum: number | undefined;
  readonly #task: ReceiveChannelTask;
  readonly #control: Control;
  readonly #id: number;
  readonly #pageSize: number;
  readonly #stats: Float64Array;
  readonly #placement: Placement;
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
  readonly #intake: Intake;
  /** PAYLOAD of method none into shared RAM: the page that the next run begins with. */
  #nextPage = 0;
  /** The payload of method none lies in guest RAM already, not in #pages. */
  #direct = false;
  #device: { idstr: string; instanceId: number } | undefined;
  readonly #secured: Connection | undefined;
  #connection: ReceiveConnection | undefined;
  #paused = true;
  #syncsSeen = 0;
  #settle: ((error?: MultifdError) => void) | undefined;
  #ended = false;
  readonly #clock: ChannelClock;
  #lastProgress = 0;

  constructor(
    task: ReceiveChannelTask,
    control: Control,
    method: ReceiveMethod | undefined,
    secured: Connection | undefined,
  ) {
    this.#secured = secured;
    this.#task = task;
    this.#method = method;
    if (method !== undefined) this.#payload = Buffer.allocUnsafeSlow(MAX_PAYLOAD_BYTES);
    this.#control = control;
    this.#id = task.id;
    this.#pageSize = task.pageSize;
    this.#stats = control.stats(task.id);
    this.#clock = new ChannelClock(this.#stats);
    const byName = new Map(task.blocks.map((block, index) => [block.name, { index, size: block.size }]));
    this.#expectation = {
      pageSize: task.pageSize,
      methodFlag: METHODS[task.compression].flag,
      findBlock: (name) => byName.get(name),
    };
    this.#header = Buffer.alloc(Math.max(packetHeaderBytes(task.pageSize), DEVICE_STATE_HEADER_BYTES));
    this.#packet = new PacketHeader(task.pageSize);
    this.#headerBytes = packetHeaderBytes(task.pageSize);
    this.#pages = Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES);
    this.#placement = new Placement(task, this.#pages);
    this.#start = this.#header.subarray(0, PACKET_START_BYTES);
    this.#intake = new Intake(this, this.#stats, this.#headerBytes, Buffer.from(task.surplus));
    this.#expect('START', this.#start);
  }

  async run(): Promise<void> {
    // First of all: from here on the descriptor is this thread's to close.
    this.#control.setChannelState(this.#id, CHANNEL_RUNNING);
    // The listener has read the hello.
    this.#stats[STAT_BYTES] += HELLO_BYTES;
    this.#open();
    this.#placement.openFiles();
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
      this.#intake.feed();
      if (!this.resting) this.#connection?.resume();
    });
    this.#trace('multifd_recv_thread_end', {});
  }

  // ---- the connection ----

  #open(): void {
    const intake = this.#intake;
    this.#connection = new ReceiveConnection({
      from: this.#secured ?? this.#task.fd,
      intake,
      stallTimeoutMs: this.#task.stallTimeoutMs,
      // Between packets a source may be silent as long as it likes; inside one it may not.
      moved: () => (this.#paused || intake.atStart ? undefined : this.#stats[STAT_BYTES]),
      ended: () => this.#endOfStream(),
      broke: (error) => {
        // A source that closes with a ticket of TLS 1.3 unread resets: between packets that is its end, judged by its SYNCs.
        const isEnd = this.#secured !== undefined && intake.atStart && codeOf(error.cause) === 'ECONNRESET';
        if (this.#control.frozen || isEnd) this.#endOfStream();
        else this.#settle?.(error);
      },
      stalled: () => {
        const error = new MultifdError(
          'ERR_MULTIFD_STALL',
          `inside a packet (${this.#state}) the peer has sent nothing for ${this.#task.stallTimeoutMs} ms: ` +
            receivedExpected('bytes', intake.have, intake.wanted),
        );
        this.#settle?.(this.#hintAtPageSize(error));
      },
    });
  }

  #endOfStream(): void {
    if (this.#ended) return;
    if (this.#intake.atStart || this.#control.frozen) {
      this.#control.setChannelState(this.#id, CHANNEL_EOF);
      this.#settle?.();
      return;
    }
    const error = new MultifdError(
      'ERR_MULTIFD_EOF',
      `the channel ended inside a packet (${this.#state}): ` +
        receivedExpected('bytes', this.#intake.have, this.#intake.wanted),
    );
    this.#settle?.(this.#hintAtPageSize(error));
  }

  /** STOP takes the socket away; at an orderly end the calling thread wants no more bytes either. */
  async #guard(): Promise<void> {
    await this.#control.stopAbove(STOP_RUN);
    this.#settle?.();
  }

  // ---- IntakeStates ----

  get resting(): boolean {
    return this.#paused || this.#ended;
  }

  get hasPayloads(): boolean {
    return this.#packet.normalPages > 0;
  }

  busy(): void {
    this.#clock.busy();
  }

  /** Between packets, and not waiting for anybody here, the channel waits for the source. */
  idle(): void {
    if (!this.#paused && this.#intake.atStart) this.#clock.idle();
  }

  takeHeader(bytes: Buffer, at: number): boolean {
    if (this.#control.frozen) {
      this.#rest();
      return true;
    }
    // Its magic and version are looked at with all the rest.
    const flags = bytes.readUInt32BE(at + PACKET_START_BYTES - 4);
    if ((flags & MULTIFD_FLAG_DEVICE_STATE) !== 0) return false;
    try {
      this.#takeHeader(bytes, at);
    } catch (thrown) {
      this.#fail(thrown);
    }
    return true;
  }

  /** On to the next state, and on to the failure if there is one. */
  advance(): void {
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
    const bytes = PACKET_START_BYTES + this.#intake.have;
    for (let size = 2 * this.#pageSize; size <= MAX_PAGE_SIZE; size *= 2) {
      if (bytes % packetHeaderBytes(size) === 0) return true;
    }
    return false;
  }

  #expect(state: State, want: Uint8Array): void {
    this.#state = state;
    this.#intake.expect(want, state === 'START');
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
        this.#pauseFor(this.#offerDeviceState(this.#intake.wanted));
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
    this.#direct = this.#placement.isDirect(packet);
    if (this.#direct) {
      this.#nextPage = 0;
      this.#expectRun();
    } else {
      this.#nextPage = packet.normalPages;
      this.#expect('PAYLOAD', this.#pagesBuffer().subarray(0, packet.nextPacketSize));
    }
  }

  /** Method none into shared RAM: the next pages that lie side by side. */
  #expectRun(): void {
    const packet = this.#packet;
    const page = this.#nextPage;
    const run = this.#placement.runLength(packet, page, packet.normalPages);
    this.#nextPage += run;
    this.#expect('PAYLOAD', this.#placement.view(packet, page, run));
  }

  /** Where pages are put together: for private memory in the slot, since the calling thread takes them from there. */
  #pagesBuffer(): Buffer {
    return this.#placement.reaches(this.#packet.block) ? this.#pages : this.#control.slotOf(this.#id).data;
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
    if (packet.normalPages + packet.zeroPages > 0) {
      if (!this.#placement.reaches(packet.block)) {
        this.#pauseFor(this.#offerPages());
        return;
      }
      this.#placement.place(packet, this.#method === undefined && this.#direct ? undefined : pages);
    }
    this.#complete();
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
        this.#intake.feed();
        this.idle();
        if (!this.resting) this.#connection?.resume();
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
    this.#ended = true;
    await this.#connection?.close();
  }
}
