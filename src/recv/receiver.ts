/**
 * The receiver as embedders see it, on the calling thread: put together from pieces of one idea each.
 *
 *     arrivals.ts    who comes in: main and channels, plain or through TLS (tls-seats.ts), and until when
 *     channel.ts     on a channel's thread: states (the packets), intake.ts (its bytes), placement.ts (its pages)
 *     here           blocks and their bitmaps, sync points, ends
 *     delivery.ts    what only this thread can put into place: pages of private memory, device state, a relay's pages
 *     zeroing.ts     ZERO records of the main stream
 *
 * Who owns the bytes: guest RAM of the blocks is the channels' to write from open() on, and the embedder's again, for the
 * pages of a phase, when its sync() has returned.
 */
import { MultifdError, receivedExpected } from '../errors.js';
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
import { Proof, proofTableOf } from '../proof.js';
import type { Stats } from '../session-stats.js';
import { ChannelThreads } from '../channel-pool.js';
import { Session } from '../session.js';
import { CHANNEL_EOF, CHANNEL_RUNNING, Control, STOP_RUN, markPages, type Slot } from '../shared/control.js';
import { SET_UP } from '../set-up.js';
import { STAT_PACKETS, slotDataBytes } from '../shared/layout.js';
import { watchStall } from '../transport/stall.js';
import { trace } from '../trace.js';
import { formatUuid } from '../wire/hello.js';
import { loadTls } from '../transport/tls/loaded.js';
import { Arrivals, type ArrivalsHooks } from './arrivals.js';
import type { ReceiveChannelTask } from './channel.js';
import { Delivery } from './delivery.js';
import { zeroFile, zeroMemory } from './zeroing.js';
import type { Connection } from '../transport/connect.js';

const SPIN = 400;

/** What a migration with a main stream adds; see src/migration. */
export interface ReceiverHooks {
  /** The main stream has come in; without it, it was in before. */
  main?(connection: Connection, begun: Buffer): void;
  /** As in arrivals.ts. */
  kept?: ArrivalsHooks['kept'];
  /** Takes the pages of blocks of kind stream out of a slot; the slot is empty afterwards. */
  pages?(slot: Slot): Promise<void>;
  /** In place of `devices`: takes the DEVICE_STATE packets of any. The payload is the slot's until it is done. */
  deviceState?(idstr: string, instanceId: number, payload: Buffer): void | Promise<void>;
  /** No uuid was given: the first hello's holds for all channels. */
  anyUuid?: boolean;
  /** Keep bitmaps of the pages that have data, and leave zero pages unwritten. */
  present?: boolean;
  /** Can make digests of all of RAM: prove(). */
  proof?: boolean;
}

/** Bitmaps of a session that this one carries on, and what it is to mark as it goes: sharedBitmaps(). */
export interface CarriedPages {
  /** Pages that have come. */
  received: SharedArrayBuffer;
  /** Those whose bytes are in place; cleared by its owner. */
  arrived: SharedArrayBuffer;
}

interface ReceivedBlock {
  block: RAMBlock;
  words: Int32Array;
  arrived: Int32Array | undefined;
  present: Int32Array | undefined;
  bitmap: ReceivedBitmap;
}

export interface ReceiverStats extends Stats {
  /** Connections that were dropped because they were no channels. */
  strays: number;
}

/** The session with all that is internal of it; embedders get it from src/public-session.ts. */
export async function createReceiver(options: ReceiverOptions): Promise<Receiver> {
  await loadTls((options as Partial<ReceiverOptions> | null | undefined)?.tls);
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
  readonly #arrivals: Arrivals;
  readonly #delivery: Delivery;
  #states: ReceivedBlock[] = [];
  #byBlock = new BlockStates<ReceivedBlock>([]);
  /** The bitmaps of all blocks. */
  #received!: SharedArrayBuffer;
  #present: SharedArrayBuffer | undefined;
  #proof: SharedArrayBuffer | undefined;
  #arrived: SharedArrayBuffer | undefined;
  readonly #hooks: ReceiverHooks | undefined;
  readonly #devices: Map<string, Device>;
  #address: Address;
  #syncs = 0;
  #syncing: Promise<unknown> = Promise.resolve();

  /** @internal use createReceiver() */
  constructor(options: CheckedReceiverOptions, hooks?: ReceiverHooks) {
    const control = Control.create({
      channels: options.channels,
      clients: 0,
      pageSize: options.pageSize,
      // Only what this thread puts into place comes through the slots.
      dataBytes: slotDataBytes(
        options.devices.length > 0 || hooks?.deviceState !== undefined ? options.deviceStateBytes : 0,
      ),
    });
    const { booted } = control.shared;
    const threads = new ChannelThreads('recv-channel', options.channels, options.compression, booted);
    super(threads, control, options.pageSize, options.signal);
    this.#options = options;
    this.#address = options.address;
    this.#hooks = hooks;
    this.#setStates(options.blocks);
    this.#devices = new Map(
      options.devices.map((device) => [`${device.idstr}/${device.instanceId}`, device]),
    );
    this.#arrivals = new Arrivals(options, hooks, {
      control,
      fail: (error) => this.fail(error),
      start: (id, task, transfer) => this.runChannel(id, task, transfer),
      taskOf: (id) => this.#taskOf(id),
    });
    if (this.#states.length > 0) this.#arrivals.begin();
    this.#delivery = new Delivery({
      control,
      devices: this.#devices,
      pages: hooks?.pages === undefined ? undefined : (slot) => hooks.pages?.(slot) as Promise<void>,
      deviceState:
        hooks?.deviceState === undefined ? undefined : async (...packet) => hooks.deviceState?.(...packet),
      fail: (error) => this.fail(error),
    });
    this.ready = this.until(() => this.#allRunning()).then(() => {});
    this.ready.catch(() => {});
  }

  #setStates(blocks: readonly RAMBlock[], carried?: CarriedPages): void {
    this.blocks = blocks;
    const pageCounts = blocks.map((block) => block.pageCount);
    this.#received = carried?.received ?? sharedBitmaps(pageCounts);
    this.#arrived = carried?.arrived;
    this.#present = this.#hooks?.present === true ? sharedBitmaps(pageCounts) : undefined;
    this.#proof = this.#hooks?.proof === true ? proofTableOf(blocks) : undefined;
    const words = viewBitmaps(this.#received, pageCounts);
    const arrived = carried === undefined ? [] : viewBitmaps(carried.arrived, pageCounts);
    const present = this.#present === undefined ? [] : viewBitmaps(this.#present, pageCounts);
    this.#states = blocks.map((block, i) => ({
      block,
      words: words[i],
      arrived: arrived[i],
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
  setBlocks(blocks: readonly RAMBlock[], pageSize = this.pageSize, carried?: CarriedPages): void {
    this.pageSize = pageSize;
    this.#setStates(blocks, carried);
    this.#arrivals.begin();
    this.#delivery.start(this.#states, pageSize);
  }

  /** @internal Bitmap words of the pages that have data. */
  presentWords(block: RAMBlock): Int32Array {
    return this.#states[block.index].present as Int32Array;
  }

  /** @internal The VM's uuid in text, null for a VM without; undefined before any channel is in, where none was given. */
  get uuid(): string | null | undefined {
    const { uuid } = this.#arrivals;
    if (uuid === undefined) return undefined;
    const text = formatUuid(uuid);
    return text === 'none' ? null : text;
  }

  /** @internal Resolves when the first channel is in. */
  async firstChannel(): Promise<void> {
    await this.orStopped(this.#arrivals.firstIn);
  }

  /** @internal Has any channel come in? */
  get hasChannels(): boolean {
    return this.#arrivals.count > 0;
  }

  /** @internal */
  get isRunning(): boolean {
    return this.control.stopped === STOP_RUN;
  }

  /** @internal */
  async open(): Promise<void> {
    this.checkAborted();
    await this.check();
    this.#address = await this.orStopped(this.#arrivals.listen());
    // An abort may have come in between.
    if (this.control.stopped !== STOP_RUN) this.#arrivals.close();
    await this.check();
    this.#arrivals.expectFirst();
    if (this.#states.length > 0) this.#delivery.start(this.#states, this.pageSize);
  }

  /** Where it listens, with the port that was bound. */
  get address(): Address {
    return this.#address;
  }

  // ---- channels ----

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
      proof: this.#proof,
      arrived: this.#arrived,
      compression: options.compression,
      deviceStateBytes: options.deviceStateBytes,
      devices: this.#hooks?.deviceState === undefined ? [...this.#devices.keys()] : undefined,
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

  /** @internal Resolves when the source has ended each channel, or the session stops. Before all of them run that is not seen. */
  async channelsEnded(): Promise<void> {
    const { control } = this;
    await this.until(() => {
      for (let id = 0; id < control.channels; id++) if (control.channelState(id) < CHANNEL_EOF) return false;
      return true;
    });
  }

  /**
   * @internal Behind the last sync(): from here on no channel takes anything in, whatever its source sends, and none
   * fails. What is in place stays as it is.
   */
  freeze(): void {
    this.control.freeze();
  }

  /** @internal Behind freeze(): digests of all of RAM. */
  prove(): Proof {
    const access = {
      control: this.control,
      until: (condition: () => boolean, spin: number) => this.until(condition, spin),
      fail: (error: MultifdError) => this.fail(error),
    };
    const blocks = this.#states.map(({ block }) => block);
    const proof = new Proof(access, blocks, this.#proof as SharedArrayBuffer);
    proof.begin();
    return proof;
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
    const moved = (): number | undefined => (this.#delivery.busy ? undefined : this.wireBytes());
    return watchStall(stallTimeoutMs, moved, () => {
      const message = `waiting for SYNC packets, nothing came in on any channel for ${stallTimeoutMs} ms`;
      this.fail(new MultifdError('ERR_MULTIFD_STALL', message));
    });
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
      const check = async (): Promise<void> => {
        if (this.control.stopped !== STOP_RUN) await this.check();
      };
      if (memory === undefined) await zeroFile(this.files, state.block, offset, length, check);
      else await zeroMemory(memory, offset, length, check);
    } catch (thrown) {
      const code = memory === undefined ? 'ERR_MULTIFD_IO' : 'ERR_MULTIFD_BLOCK';
      await this.broken(thrown, code, `RAM block ${JSON.stringify(state.block.name)}: zero`);
    }
    markPages(state.words, page, length / this.pageSize);
  }

  /** Which pages of a block have come in, over the channels or through zeroRange(). Live. */
  received(block: SessionBlock | string): ReceivedBitmap {
    return this.#byBlock.find(block).bitmap;
  }

  // ---- ends ----

  /** @internal Channels that no thread has yet are broken at once: a source must not go on writing into them. */
  override async abandon(error: MultifdError): Promise<void> {
    if (this.#states.length === 0) this.#arrivals.abandon();
    await super.abandon(error);
  }

  /** Orderly end after the last sync(): ends every channel and frees everything. Later bytes are not waited for. */
  async end(): Promise<void> {
    await this.endOnce(() => this.endOrderly());
  }

  /** @internal As in arrivals.ts: what a session that is aborted while a good source is waited for has not told yet. */
  get refused(): MultifdError | undefined {
    return this.#arrivals.refused;
  }

  override stats(): ReceiverStats {
    return { ...super.stats(), strays: this.#arrivals.strays };
  }

  protected release(): void {
    this.#arrivals.release();
  }
}
