/**
 * A receive channel's states: takes over a connection whose hello the listener has read, in its own worker thread
 * (piscina task, entry workers/recv-channel.ts).
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
 * The way of a page, and who has what is not a state:
 *
 *     socket --> intake.ts --> headers.ts --> payload.ts: read, decoded --> placement.ts: shared RAM, a file
 *                (bytes, to what the state wants)                       --> calling-thread.ts: private memory
 *
 * The kernel reads straight into what the state wants: for method none guest RAM itself, run by run, unless the runs are
 * short. An end of the connection is clean in START with nothing read, and an error anywhere else.
 *
 * Who owns the bytes: guest RAM is the channel's to write until sync() of the receiver returns; headers and compressed
 * payloads lie in the channel's own memory.
 */
import {
  report,
  runChannel,
  type Channel,
  type ChannelOutcome,
  type ChannelTask,
} from '../channel-thread.js';
import { MultifdError, codeOf } from '../errors.js';
import { proveWhenAsked } from '../proof-thread.js';
import type { ReceiveMethod } from '../methods/methods.js';
import { CHANNEL_EOF, CHANNEL_RUNNING, type Control, STOP_RUN } from '../shared/control.js';
import { ChannelClock } from '../shared/clock.js';
import {
  STAT_BYTES,
  STAT_DEVICE_STATES,
  STAT_NORMAL_PAGES,
  STAT_PACKETS,
  STAT_SYNCS,
  STAT_ZERO_PAGES,
} from '../shared/layout.js';
import type { Connection } from '../transport/connect.js';
import { ReceiveConnection } from '../transport/receive-connection.js';
import type { TracePoint } from '../trace.js';
import type { DeviceStateHeader } from '../wire/device-state.js';
import { HELLO_BYTES } from '../wire/hello.js';
import type { PacketHeader } from '../wire/packet.js';
import { CallingThread } from './calling-thread.js';
import { endedInside, hintAtPageSize, stalledInside, type ChannelPosition } from './channel-errors.js';
import { Headers, type HeaderOptions } from './headers.js';
import { Intake, type IntakeStates } from './intake.js';
import { Payload } from './payload.js';
import type { PlacementOptions } from './placement.js';

/** What the calling thread gives to the worker. */
export interface ReceiveChannelTask extends ChannelTask, HeaderOptions, PlacementOptions {
  /** The connection's descriptor; the worker closes it. Of no account where TLS was spoken before. */
  fd: number;
  /** What was read beyond the hello. */
  surplus: Uint8Array;
  /** With option verify: ProofTable. */
  proof: SharedArrayBuffer | undefined;
  stallTimeoutMs: number;
}

type State = 'START' | 'HEADER' | 'DEVICE_HEADER' | 'PAYLOAD' | 'DEVICE_PAYLOAD';

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
  readonly #stats: Float64Array;
  readonly #headers: Headers;
  /** The RAM packet in hand. */
  readonly #packet: PacketHeader;
  readonly #payload: Payload;
  readonly #callingThread: CallingThread;

  #state: State = 'START';
  readonly #intake: Intake;
  #device: DeviceStateHeader | undefined;
  readonly #secured: Connection | undefined;
  #connection: ReceiveConnection | undefined;
  #paused = true;
  #settle: ((error?: MultifdError) => void) | undefined;
  #ended = false;
  readonly #clock: ChannelClock;

  constructor(
    task: ReceiveChannelTask,
    control: Control,
    method: ReceiveMethod | undefined,
    secured: Connection | undefined,
  ) {
    this.#secured = secured;
    this.#task = task;
    this.#control = control;
    this.#id = task.id;
    this.#stats = control.stats(task.id);
    this.#clock = new ChannelClock(this.#stats);
    this.#headers = new Headers(task);
    this.#packet = this.#headers.packet;
    this.#payload = new Payload(task, control, method);
    this.#callingThread = new CallingThread(control, task.id);
    this.#intake = new Intake(this, this.#stats, this.#headers.bytes, Buffer.from(task.surplus));
    this.#expect('START', this.#headers.start);
  }

  async run(): Promise<void> {
    // First of all: from here on the descriptor is this thread's to close.
    this.#control.setChannelState(this.#id, CHANNEL_RUNNING);
    // The listener has read the hello.
    this.#stats[STAT_BYTES] += HELLO_BYTES;
    this.#open();
    this.#payload.openFiles();
    this.#clock.idle();
    this.#trace('multifd_recv_thread_start', { ...this.#connection?.secured });
    const { proof, blocks } = this.#task;
    const proving = proveWhenAsked(this.#control, proof, blocks);
    proving.catch((thrown: unknown) =>
      this.#settle?.(MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'option verify')),
    );
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
    // Its source may have ended the channel before.
    await proving;
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
      stalled: () => this.#settle?.(stalledInside(this.#position, this.#task.stallTimeoutMs)),
    });
  }

  #endOfStream(): void {
    if (this.#ended) return;
    if (this.#intake.atStart || this.#control.frozen) {
      this.#control.setChannelState(this.#id, CHANNEL_EOF);
      this.#settle?.();
      return;
    }
    this.#settle?.(endedInside(this.#position));
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
    if (this.#headers.isDeviceState(bytes, at)) return false;
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
    this.#settle?.(hintAtPageSize(error, this.#position));
  }

  get #position(): ChannelPosition {
    return {
      state: this.#state,
      have: this.#intake.have,
      wanted: this.#intake.wanted,
      packets: this.#stats[STAT_PACKETS],
      pageSize: this.#task.pageSize,
    };
  }

  #expect(state: State, want: Uint8Array): void {
    this.#state = state;
    this.#intake.expect(want, state === 'START');
  }

  // ---- the states ----

  #step(): void {
    switch (this.#state) {
      case 'START':
        if (this.#headers.startsDeviceState()) this.#expect('DEVICE_HEADER', this.#headers.deviceRest);
        else this.#expect('HEADER', this.#headers.rest);
        return;
      case 'HEADER':
        this.#takeHeader();
        return;
      case 'PAYLOAD': {
        const want = this.#payload.next(this.#packet);
        if (want !== undefined) this.#expect('PAYLOAD', want);
        else this.#decode();
        return;
      }
      case 'DEVICE_HEADER': {
        const device = (this.#device = this.#headers.unfillDevice());
        const { data } = this.#control.slotOf(this.#id);
        this.#expect('DEVICE_PAYLOAD', data.subarray(0, device.nextPacketSize));
        return;
      }
      case 'DEVICE_PAYLOAD':
        this.#stats[STAT_DEVICE_STATES] += 1;
        this.#pauseFor(this.#offerDeviceState(this.#device as DeviceStateHeader));
        return;
    }
  }

  /** A RAM header is there: in its own buffer, or where it came in. */
  #takeHeader(bytes?: Buffer, at?: number): void {
    const packet = this.#headers.unfill(bytes, at);
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
    if (packet.normalPages > 0) this.#expect('PAYLOAD', this.#payload.begin(packet));
    else this.#place();
  }

  #decode(): void {
    const decoding = this.#payload.decode(this.#packet);
    if (decoding === undefined) {
      this.#place();
      return;
    }
    this.#pauseFor(
      decoding.then((own) => {
        this.#payload.takeDecoded(this.#packet, own);
        this.#place();
      }),
    );
  }

  /** The packet's pages are decoded, or in shared RAM already: puts them in place, then the zero pages. */
  #place(): void {
    if (this.#control.frozen) {
      this.#rest();
      return;
    }
    const packet = this.#packet;
    if (packet.normalPages + packet.zeroPages > 0 && !this.#payload.place(packet)) {
      this.#pauseFor(this.#offerPages());
      return;
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
    this.#expect('START', this.#headers.start);
    this.#callingThread.progress();
  }

  // ---- what has to be waited for ----

  /** Reads nothing until `step` is done. `step` may have called #pauseFor itself for what comes next. */
  #pauseFor(step: Promise<void>): void {
    this.#paused = true;
    this.#waits++;
    step.then(
      () => {
        this.#waits--;
        if (this.#waits > 0 || this.#ended || this.#isOver) return;
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

  /** SYNC was read: stops until the calling thread has seen it on every channel. */
  #sync(pagesAlloc: number): Promise<void> {
    this.#stats[STAT_SYNCS] += 1;
    // What it waits for now is the other channels and the calling thread.
    this.#clock.idle();
    return this.#callingThread.sync(pagesAlloc);
  }

  async #offerPages(): Promise<void> {
    await this.#callingThread.offerPages(this.#packet);
    if (!this.#isOver) this.#complete();
  }

  async #offerDeviceState(device: DeviceStateHeader): Promise<void> {
    await this.#callingThread.offerDeviceState(device);
    if (!this.#isOver) this.#nextPacket();
  }

  /**
   * Has the wait ended on STOP? Then rests: the slot may still be the calling thread's, and the guard, which ends the channel,
   * may be a step behind.
   */
  get #isOver(): boolean {
    if (this.#control.stopped === STOP_RUN) return false;
    this.#rest();
    return true;
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
