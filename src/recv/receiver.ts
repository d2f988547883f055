/**
 * The receiver, on the calling thread: takes the channels in, starts a worker for each, waits at sync points, and puts
 * into place what only this thread can: pages of private memory, device state, ZERO records of the main stream.
 */
import { performance } from 'node:perf_hooks';
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MultifdError, codeOf, receivedExpected } from '../errors.js';
import {
  checkReceiverOptions,
  type CheckedReceiverOptions,
  type Device,
  type ReceiverOptions,
} from '../options.js';
import { type Address } from '../transport/address.js';
import { ReceivedBitmap, sharedBitmaps, viewBitmaps } from '../ram/bitmap.js';
import { checkPageRange, BlockStates, type RAMBlock, type SessionBlock } from '../ram/block.js';
import { BlockFiles } from '../ram/file-block.js';
import type { MemorySource } from '../ram/memory.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { Session, type Stats } from '../session.js';
import {
  CHANNEL_EOF,
  CHANNEL_RUNNING,
  Control,
  PAYLOAD_DEVICE_STATE,
  STOP_RUN,
  markPages,
  type Slot,
} from '../shared/control.js';
import { SET_UP } from '../set-up.js';
import { STAT_PACKETS, slotDataBytes } from '../shared/layout.js';
import { watchStall } from '../transport/stall.js';
import { trace } from '../trace.js';
import { formatUuid } from '../wire/hello.js';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import type { ReceiveChannelTask } from './channel.js';
import type { Connection } from '../transport/connect.js';
import { freeHusks, type TakenConnection } from '../transport/descriptor.js';
import { Admission } from '../transport/admission.js';
import { HELLO_MS, Listener } from '../transport/listener.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import type { TlsSeatTask } from './tls-seat.js';
import { TlsSeats } from './tls-seats.js';

const YIELD_MS = 2;
const SPIN = 400;
/** How long a source may be waited for when somebody's handshake has failed and nobody is in. */
const REFUSED_GRACE_MS = 5000;

/** What a migration with a main stream adds; see src/migration. */
export interface ReceiverHooks {
  /** The main stream has come in. */
  main(connection: Connection, begun: Buffer): void;
  /** Takes the pages of blocks of kind stream out of a slot; the slot is empty afterwards. */
  pages?(slot: Slot): Promise<void>;
  /** No uuid was given: the first hello's holds for all channels. */
  anyUuid?: boolean;
  /** Keep bitmaps of the pages that have data, and leave zero pages unwritten. */
  present?: boolean;
}

interface ReceivedBlock {
  block: RAMBlock;
  words: Int32Array;
  present: Int32Array | undefined;
  bitmap: ReceivedBitmap;
}

export interface ReceiverStats extends Stats {
  /** Connections that were dropped because they were no channels. */
  strays: number;
}

/** The session with all that is internal of it; embedders get it from src/public-session.ts. */
export async function createReceiver(options: ReceiverOptions): Promise<Receiver> {
  const checked = checkReceiverOptions(options);
  const files = BlockFiles.open(checked.blocks, 'r+');
  let receiver: Receiver;
  try {
    receiver = new Receiver(checked);
  } catch (error) {
    await files.close();
    throw error;
  }
  receiver.files = files;
  try {
    await receiver.open();
  } catch (error) {
    await receiver.close();
    throw error;
  }
  return receiver;
}

export class Receiver extends Session {
  /** The blocks, in the order given; none until the main stream has named them. */
  blocks: readonly SessionBlock[] = [];
  /** Fulfilled when all channels have come in; rejected with the session's error. */
  readonly ready: Promise<void>;
  protected readonly terminatePoint = 'multifd_recv_terminate_threads';
  readonly #options: CheckedReceiverOptions;
  readonly #admission: Admission;
  readonly #listener: Listener;
  readonly #seats: TlsSeats | undefined;
  #states: ReceivedBlock[] = [];
  #byBlock = new BlockStates<ReceivedBlock>([]);
  /** The bitmaps of all blocks. */
  #received!: SharedArrayBuffer;
  #present: SharedArrayBuffer | undefined;
  readonly #hooks: ReceiverHooks | undefined;
  #mainDue = false;
  readonly #devices: Map<string, Device>;
  readonly #connections: (TakenConnection | undefined)[] = [];
  #address: Address;
  #syncs = 0;
  #syncing: Promise<unknown> = Promise.resolve();
  /** Channels whose slot this thread is emptying. */
  readonly #delivering = new Set<number>();
  #timer: NodeJS.Timeout | undefined;

  /** @internal use createReceiver() */
  constructor(options: CheckedReceiverOptions, hooks?: ReceiverHooks) {
    const control = Control.create({
      channels: options.channels,
      clients: 0,
      pageSize: options.pageSize,
      // Only what this thread puts into place comes through the slots.
      dataBytes: slotDataBytes(options.devices.length > 0 ? options.deviceStateBytes : 0),
    });
    super('recv-channel', control, options.pageSize, options.compression, options.signal);
    this.#options = options;
    this.#address = options.address;
    this.#hooks = hooks;
    this.#setStates(options.blocks);
    this.#devices = new Map(
      options.devices.map((device) => [`${device.idstr}/${device.instanceId}`, device]),
    );
    const { channels, maxStrays, tls } = options;
    const admission = (this.#admission = new Admission(
      channels,
      hooks?.anyUuid === true ? undefined : options.uuid,
    ));
    this.#listener = new Listener(
      { admission, maxStrays, tls },
      {
        channel: (id, connection) => this.#takeIn(id, connection),
        refused: (error) => this.fail(error),
        candidate: (connection, maxVersion) => this.#seats?.take(connection, maxVersion),
        notSecured: (error) => this.#notSecured(error),
        closed: () => this.#seats?.close(),
        ...(hooks === undefined
          ? {}
          : { main: (connection, begun) => this.#takeMain(hooks, connection, begun) }),
      },
    );
    if (tls !== undefined) this.#seats = this.#makeSeats(tls, maxStrays);
    this.#mainDue = hooks !== undefined;
    this.ready = this.until(() => this.#allRunning()).then(() => {});
    this.ready.catch(() => {});
  }

  #makeSeats(tls: CheckedTls, maxStrays: number): TlsSeats {
    const seats = new TlsSeats({
      tls,
      admission: this.#admission,
      maxStrays,
      helloMs: HELLO_MS,
      start: (id, seat, port) => {
        const { compression } = this.#options;
        const task: TlsSeatTask = { ...seat, id, compression, shared: this.control.shared };
        this.runChannel(id, task, [port]);
      },
      admitted: () => {
        this.#cameIn();
        this.#listener.closeIfComplete();
      },
      refused: (error) => this.fail(error),
      stray: (error) => {
        this.#listener.strays++;
        if (error !== undefined) this.#notSecured(error);
      },
    });
    if (this.#states.length > 0) seats.begin((id) => this.#taskOf(id));
    return seats;
  }

  /**
   * A handshake that failed. It may be anybody's, so it ends nothing as long as a source comes; but it is the source's own
   * more often than not, and who waits for it shall be told.
   */
  #notSecured(error: MultifdError): void {
    this.#tlsError = error;
    // Who began a handshake and did not go on has no credentials that could be wrong.
    const slow = codeOf(error.cause) === 'ERR_TLS_HANDSHAKE_TIMEOUT';
    if (slow || this.#grace !== undefined || this.#admission.count > 0 || this.#isMainIn) return;
    const graceMs = Math.min(REFUSED_GRACE_MS, this.#options.connectTimeoutMs);
    this.#grace = setTimeout(() => this.fail(this.#tlsError as MultifdError), graceMs);
  }
  #tlsError: MultifdError | undefined;
  #grace: NodeJS.Timeout | undefined;

  get #isMainIn(): boolean {
    return this.#hooks !== undefined && !this.#mainDue;
  }

  #setStates(blocks: readonly RAMBlock[]): void {
    this.blocks = blocks;
    const pageCounts = blocks.map((block) => block.pageCount);
    this.#received = sharedBitmaps(pageCounts);
    this.#present = this.#hooks?.present === true ? sharedBitmaps(pageCounts) : undefined;
    const words = viewBitmaps(this.#received, pageCounts);
    const present = this.#present === undefined ? [] : viewBitmaps(this.#present, pageCounts);
    this.#states = blocks.map((block, i) => ({
      block,
      words: words[i],
      present: present[i],
      bitmap: new ReceivedBitmap(words[i], this.pageSize, block.pageCount),
    }));
    this.#byBlock = new BlockStates(this.#states);
  }

  /**
   * @internal The blocks that the main stream has named: the channels that are in may start.
   *
   * @param pageSize what the stream has told; not smaller than the option, by which the slots are laid out
   */
  setBlocks(blocks: readonly RAMBlock[], pageSize = this.pageSize): void {
    this.pageSize = pageSize;
    this.#setStates(blocks);
    for (const [id, connection] of this.#connections.entries()) {
      if (connection !== undefined) this.#start(id, connection);
    }
    this.#seats?.begin((id) => this.#taskOf(id));
    if (this.#needsDelivery()) void this.#deliver();
  }

  /** @internal Bitmap words of the pages that have data. */
  presentWords(block: RAMBlock): Int32Array {
    return this.#states[block.index].present as Int32Array;
  }

  #needsDelivery(): boolean {
    if (this.#devices.size > 0 || this.#hooks?.pages !== undefined) return true;
    return this.#states.some((state) => state.block.kind === 'private');
  }

  /** @internal The VM's uuid in text, null for a VM without; undefined before any channel is in, where none was given. */
  get uuid(): string | null | undefined {
    const { uuid } = this.#admission;
    if (uuid === undefined) return undefined;
    const text = formatUuid(uuid);
    return text === 'none' ? null : text;
  }

  /** @internal Resolves when the first channel is in. */
  async firstChannel(): Promise<void> {
    if (this.#admission.count > 0) return;
    await this.orStopped(new Promise<void>((resolve) => (this.#firstIn = resolve)));
  }
  #firstIn: (() => void) | undefined;

  /** @internal Has any channel come in? */
  get hasChannels(): boolean {
    return this.#admission.count > 0;
  }

  /** @internal */
  get isRunning(): boolean {
    return this.control.stopped === STOP_RUN;
  }

  /** @internal */
  async open(): Promise<void> {
    this.checkAborted();
    await this.check();
    this.#address = await this.orStopped(
      this.#listener.listen(this.#options.address, this.#options.listenMode),
    );
    // An abort may have come in between.
    if (this.control.stopped !== STOP_RUN) this.#listener.close();
    await this.check();
    const { acceptTimeoutMs } = this.#options;
    if (acceptTimeoutMs > 0) this.#expectChannels(acceptTimeoutMs, 1);
    if (this.#states.length > 0 && this.#needsDelivery()) void this.#deliver();
  }

  /** Where it listens, with the port that was bound. */
  get address(): Address {
    return this.#address;
  }

  // ---- channels ----

  #expectChannels(ms: number, count: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const channels = receivedExpected(`channels, no other within ${ms} ms`, this.#admission.count, count);
      const main = this.#mainDue ? '; the main stream has not come in' : '';
      const have = this.#admission.count;
      const fewer =
        have > 0 && have < count
          ? `the source has fewer channels than the ${count} here: ${SET_UP.channels}: `
          : '';
      const none =
        have === 0 && this.#hooks !== undefined && !this.#mainDue
          ? 'is capability multifd on at the source? '
          : '';
      if (this.#admission.count === 0 && this.#tlsError !== undefined && !this.#isMainIn) {
        this.fail(this.#tlsError);
        return;
      }
      const tls = this.#listener.sawTls ? `; a connection came in with TLS: ${SET_UP.tls}` : '';
      this.fail(new MultifdError('ERR_MULTIFD_TIMEOUT', `${fewer}${none}${channels}${main}${tls}`));
    }, ms);
  }

  /**
   * A channel or the main stream has come in: the next one has its time from now on. Each, and not all together, since a
   * source may need a while to start 255 of them.
   */
  #arrived(): void {
    clearTimeout(this.#grace);
    const { channels, connectTimeoutMs } = this.#options;
    if (this.#admission.count === channels && !this.#mainDue) clearTimeout(this.#timer);
    else this.#expectChannels(connectTimeoutMs, channels);
  }

  #takeMain(hooks: ReceiverHooks, connection: Connection, begun: Buffer): void {
    if (this.control.stopped !== STOP_RUN) {
      connection.raw.destroy();
      return;
    }
    this.#mainDue = false;
    this.#arrived();
    hooks.main(connection, begun);
  }

  #takeIn(id: number, connection: TakenConnection): void {
    if (this.control.stopped !== STOP_RUN) {
      connection.husk.socket.destroy();
      return;
    }
    this.#cameIn();
    this.#connections[id] = connection;
    if (this.#states.length > 0) this.#start(id, connection);
  }

  /** A channel is in. */
  #cameIn(): void {
    this.#arrived();
    this.#firstIn?.();
  }

  #start(id: number, { fd, surplus }: TakenConnection): void {
    this.runChannel(id, { ...this.#taskOf(id), fd, surplus } satisfies ReceiveChannelTask);
  }

  /** Without a connection, which with TLS is there already. */
  #taskOf(id: number): ReceiveChannelTask {
    const options = this.#options;
    return {
      shared: this.control.shared,
      id,
      fd: -1,
      surplus: Buffer.alloc(0),
      pageSize: this.pageSize,
      blocks: this.#states.map(({ block }) => block.describe()),
      received: this.#received,
      present: this.#present,
      compression: options.compression,
      deviceStateBytes: options.deviceStateBytes,
      devices: [...this.#devices.keys()],
      stallTimeoutMs: options.stallTimeoutMs,
    };
  }

  #allRunning(): boolean {
    for (let id = 0; id < this.control.channels; id++) {
      if (this.control.channelState(id) < CHANNEL_RUNNING) return false;
    }
    return true;
  }

  // ---- sync ----

  /**
   * A sync point: waits for one SYNC packet on every channel, then lets the channels read on. When it resolves, every
   * page sent before that SYNC is in place. To be called once for each sync() of the sender; in QEMU's main stream, at
   * each marker.
   *
   * @throws MultifdError ERR_MULTIFD_EOF if a channel ends without it, ERR_MULTIFD_STALL, the session's error
   */
  async sync(): Promise<void> {
    this.requireOpen();
    const turn = this.#syncing.then(() => this.#sync());
    this.#syncing = turn.catch(() => {});
    try {
      await turn;
    } catch (thrown) {
      await this.broken(thrown, 'ERR_MULTIFD_WORKER', 'sync');
    }
  }

  async #sync(): Promise<void> {
    const { control } = this;
    await this.check();
    await this.ready;
    trace('multifd_recv_sync_main', () => ({ syncs: this.#syncs + 1 }));
    this.#syncs = (this.#syncs + 1) | 0;
    const unwatch = this.#watchStall();
    try {
      for (let id = 0; id < control.channels; id++) {
        trace('multifd_recv_sync_main_wait', () => ({ id }));
        await this.until(() => this.#sawSync(id), SPIN);
      }
    } finally {
      unwatch();
    }
    for (let id = 0; id < control.channels; id++) {
      trace('multifd_recv_sync_main_signal', () => ({ id }));
      control.releaseSync(id);
    }
  }

  /**
   * @internal Behind the last sync(): from here on no channel takes anything in, whatever its source sends, and none
   * fails. What is in place stays as it is.
   */
  freeze(): void {
    this.control.freeze();
  }

  /** @internal What the last SYNC packets said in pages_alloc, which nobody needs but which tells old programs from new. */
  get syncPagesAlloc(): number {
    return this.control.syncAlloc(0);
  }

  #sawSync(id: number): boolean {
    const { control } = this;
    // The state first: a channel counts its last SYNC before it says that it has ended.
    const state = control.channelState(id);
    const seen = control.syncsDone(id);
    if (seen === this.#syncs) return true;
    if (state >= CHANNEL_EOF && control.stopped === STOP_RUN) {
      this.fail(
        new MultifdError(
          'ERR_MULTIFD_EOF',
          `channel ${id} ended before its SYNC packet: ` +
            receivedExpected('SYNC packets', seen, this.#syncs) +
            (this.#sawNothing(id) ? `; has the source more channels than here (${SET_UP.channels})?` : ''),
          { channel: id },
        ),
      );
    }
    return false;
  }

  /**
   * A source whose next channel finds nobody listening any more breaks off before its first packet. Where a main stream
   * comes in there is a listener beyond the last channel, and the one too many is refused by name.
   */
  #sawNothing(id: number): boolean {
    return this.#hooks === undefined && this.control.stats(id)[STAT_PACKETS] === 0;
  }

  /** While a SYNC is due, bytes must come in on some channel, unless this side is what takes so long. */
  #watchStall(): () => void {
    const { stallTimeoutMs } = this.#options;
    const moved = (): number | undefined => (this.#delivering.size > 0 ? undefined : this.wireBytes());
    return watchStall(stallTimeoutMs, moved, () => {
      const message = `waiting for SYNC packets, nothing came in on any channel for ${stallTimeoutMs} ms`;
      this.fail(new MultifdError('ERR_MULTIFD_STALL', message));
    });
  }

  // ---- what this thread puts into place ----

  /** Empties the slots that channels offer, until the session stops. */
  async #deliver(): Promise<void> {
    const { control } = this;
    let last = performance.now();
    while (control.stopped === STOP_RUN) {
      const seen = control.readyCount;
      for (let id = 0; id < control.channels; id++) {
        if (!this.#delivering.has(id) && control.hasJob(id)) {
          this.#delivering.add(id);
          void this.#take(id);
        }
      }
      const wait = control.waitReady(seen, SPIN);
      if (wait !== undefined) await wait;
      // With many channels there is always one that offers.
      if (performance.now() - last > YIELD_MS) {
        await yieldToLoop();
        last = performance.now();
      }
    }
  }

  async #take(id: number): Promise<void> {
    const slot = this.control.slotOf(id);
    try {
      if (slot.type === PAYLOAD_DEVICE_STATE) {
        const device = this.#devices.get(`${slot.idstr}/${slot.instanceId}`);
        // The device's to keep: the slot is used again, and in Node's pool lie others' bytes beside it.
        const data = Buffer.allocUnsafeSlow(slot.length);
        slot.data.copy(data, 0, 0, slot.length);
        await device?.load(data);
      } else if (this.#hooks?.pages !== undefined) await this.#hooks.pages(slot);
      else this.#placePages(slot);
    } catch (thrown) {
      if (slot.type !== PAYLOAD_DEVICE_STATE) {
        this.fail(MultifdError.wrap(thrown, 'ERR_MULTIFD_BLOCK', 'placing pages'));
        return;
      }
      const message = `load() of device ${slot.idstr} instance ${slot.instanceId} failed`;
      this.fail(new MultifdError('ERR_MULTIFD_HOOK', message, { channel: id, cause: thrown }));
    }
    // Before taken(): the channel may offer again at once, and its post must find this thread ready for it.
    this.#delivering.delete(id);
    this.control.taken(id);
  }

  #placePages(slot: Slot): void {
    const state = this.#states[slot.block];
    const memory = state.block.memory as MemorySource;
    const size = this.pageSize;
    for (let i = 0; i < slot.num; i++) {
      const offset = slot.pages[i] * size;
      const window = memory.windowAt(offset);
      const at = offset % Windows.WINDOW_BYTES;
      const first = markPages(state.words, slot.pages[i], 1);
      if (i < slot.normalNum) slot.data.copy(window, at, i * size, (i + 1) * size);
      else if (!(first && state.block.fresh) && !isZeroRange(window, at, size)) window.fill(0, at, at + size);
    }
  }

  /**
   * Zeroes pages: the ZERO records of the main stream (mode `legacy`, QEMU < 9.0). To be called within the phase in
   * which the record came, before the sync() that ends it. Pages that are zero already are not written.
   *
   * @param offset in bytes, like `length` a multiple of the page size
   * @throws MultifdError ERR_MULTIFD_BLOCK, ERR_MULTIFD_RANGE, ERR_MULTIFD_IO, the session's error
   */
  async zeroRange(block: SessionBlock | string, offset: number, length: number): Promise<void> {
    this.requireOpen();
    await this.check();
    const state = this.#byBlock.find(block);
    const page = checkPageRange(state.block, this.pageSize, offset, length);
    const { memory } = state.block;
    try {
      if (memory === undefined) await this.#zeroFile(state.block, offset, length);
      else await this.#zeroMemory(memory, offset, length);
    } catch (thrown) {
      const code = memory === undefined ? 'ERR_MULTIFD_IO' : 'ERR_MULTIFD_BLOCK';
      await this.broken(thrown, code, `RAM block ${JSON.stringify(state.block.name)}: zero`);
    }
    markPages(state.words, page, length / this.pageSize);
  }

  async #zeroMemory(memory: MemorySource, offset: number, length: number): Promise<void> {
    let last = performance.now();
    for (let at = offset; at < offset + length;) {
      const piece = Math.min(offset + length - at, MULTIFD_PACKET_BYTES, Windows.runLimit(at));
      const window = memory.windowAt(at);
      const start = at % Windows.WINDOW_BYTES;
      if (!isZeroRange(window, start, piece)) window.fill(0, start, start + piece);
      at += piece;
      if (performance.now() - last > YIELD_MS) {
        await yieldToLoop();
        last = performance.now();
        if (this.control.stopped !== STOP_RUN) await this.check();
      }
    }
  }

  async #zeroFile(block: RAMBlock, offset: number, length: number): Promise<void> {
    const piece = Buffer.allocUnsafe(Math.min(length, MULTIFD_PACKET_BYTES));
    for (let at = offset; at < offset + length;) {
      const position = block.base + at;
      const wanted = Math.min(piece.length, offset + length - at);
      const bytesRead = await this.files.read(block, piece, 0, wanted, position);
      if (bytesRead === 0) throw new Error('the file has become shorter');
      if (!isZeroRange(piece, 0, bytesRead))
        await this.files.write(block, piece.fill(0), 0, bytesRead, position);
      at += bytesRead;
      if (this.control.stopped !== STOP_RUN) await this.check();
    }
  }

  /** Which pages of a block have come in, over the channels or through zeroRange(). Live. */
  received(block: SessionBlock | string): ReceivedBitmap {
    return this.#byBlock.find(block).bitmap;
  }

  // ---- ends ----

  /** @internal Channels that no thread has yet are broken at once: a source must not go on writing into them. */
  override async abandon(error: MultifdError): Promise<void> {
    if (this.#states.length === 0) {
      for (const connection of this.#connections) connection?.husk.socket.destroy();
      this.#connections.length = 0;
    }
    await super.abandon(error);
  }

  /** Orderly end after the last sync(): ends every channel and frees everything. Later bytes are not waited for. */
  async end(): Promise<void> {
    await this.endOnce(() => this.endOrderly());
  }

  override stats(): ReceiverStats {
    return { ...super.stats(), strays: this.#listener.strays };
  }

  protected release(): void {
    clearTimeout(this.#timer);
    clearTimeout(this.#grace);
    this.#listener.close();
    this.#seats?.release();
    freeHusks(this.#connections.flatMap((connection) => connection?.husk ?? []));
    this.#connections.length = 0;
  }
}
