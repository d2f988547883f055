/**
 * The sender as embedders see it, on the calling thread: the session and its calls, put together from pieces of one idea
 * each. The way of a page, top to bottom:
 *
 *     queuePage, queueRange, queueZeroRange        queueDeviceState
 *            |                                            |
 *     ram-client.ts    one call after the other    device-client.ts   one call after the other
 *        |      \--> deferred.ts, legacy-zero-pages.ts      |           (both: noted now, sent or reported at the sync)
 *     ram-slot.ts      pages into the slot                |
 *            |                                            |
 *            +--> bandwidth.ts, turns.ts: may it go now? -+
 *                            |
 *                     hand-over.ts     an idle channel (READY), the slots swapped, pendingJob = 1
 *     ---- src/shared/control.ts ------------------------------------------------------- channel's thread ----
 *                     channel.ts       the slot's pages as packets on its socket
 *
 * Who owns the bytes: guest RAM is the embedder's, and shared with the channels only by kind; a slot is its client's until
 * the hand-over and the channel's after it. Nothing on this thread but the two clients writes into a slot.
 *
 * sync() ends a phase: what is in the slot, the second copies, the legacy zero pages, device state that came before; then
 * one SYNC packet on every channel.
 *
 * The event loop: nothing here blocks, and what never has to wait takes turns (turns.ts).
 */
import { MultifdError, receivedExpected } from '../errors.js';
import {
  checkMaxBandwidth,
  checkSenderOptions,
  type AnySenderOptions,
  type CheckedSenderOptions,
} from '../options.js';
import { formatAddress } from '../transport/address.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import { loadTls } from '../transport/tls/loaded.js';
import type { PageBitmap } from '../ram/bitmap.js';
import { checkPageRange, BlockStates, type RAMBlock, type SessionBlock } from '../ram/block.js';
import { BlockFiles } from '../ram/file-block.js';
import { ChannelThreads } from '../channel-pool.js';
import { Proof } from '../proof.js';
import { Session } from '../session.js';
import { CHANNEL_RUNNING, Control, STOP_RUN } from '../shared/control.js';
import { slotDataBytes } from '../shared/layout.js';
import { trace } from '../trace.js';
import { pagesPerPacket } from '../wire/packet.js';
import { Bandwidth } from './bandwidth.js';
import { channelTasks, type SenderParts } from './channel-tasks.js';
import { DeviceClient } from './device-client.js';
import { HandOver, SPIN } from './hand-over.js';
import { LegacyZeroPages } from './legacy-zero-pages.js';
import { RamClient } from './ram-client.js';
import { RamSlot } from './ram-slot.js';
import type { SessionAccess } from './session-access.js';
import { Turns } from './turns.js';

/** The RAM client and the device-state client. */
const CLIENTS = 2;
/**
 * Packets that a slot may hold, by choice: with 16 hand-overs no longer show in the profile of an all-zero guest. Packets
 * that take milliseconds to compress are better spread over the channels.
 */
const MAX_PACKETS = 16;
const MAX_PACKETS_COMPRESSED = 4;
/** For the next thread to start, beside connecting. */
const START_MS = 30_000;

/**
 * The session with all that is internal of it; embedders get it from src/public-session.ts.
 *
 * @param explained for a migration, which itself says what the destination may have refused
 * @param tls of a migration, which has checked the option
 * @param threads of a migration, which has started them: the session's, once there is one
 * @param parts of a live migration
 */
export async function createSender(
  options: AnySenderOptions,
  explained = false,
  tls?: CheckedTls,
  threads?: ChannelThreads,
  parts?: SenderParts,
): Promise<Sender> {
  if (tls === undefined) await loadTls((options as Partial<AnySenderOptions> | null | undefined)?.tls);
  const checked = checkSenderOptions(options, tls);
  const files = BlockFiles.open(checked.blocks, 'r');
  let sender: Sender;
  try {
    sender = new Sender(checked, explained, threads, parts);
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
  readonly #parts: SenderParts;
  readonly #proof: Proof | undefined;
  readonly #byBlock: BlockStates<{ block: RAMBlock }>;
  readonly #bandwidth: Bandwidth;
  readonly #ram: RamClient;
  readonly #device: DeviceClient;
  #syncs = 0;

  /** @internal use createSender() */
  constructor(
    options: CheckedSenderOptions,
    explained: boolean,
    threads?: ChannelThreads,
    parts: SenderParts = {},
  ) {
    const { channels, compression, pageSize } = options;
    const shape = {
      channels,
      clients: CLIENTS,
      pageSize,
      dataBytes: slotDataBytes(options.deviceStateBytes),
      packets: maxPackets(options),
    };
    const control = Control.create(shape, threads?.booted);
    const { booted } = control.shared;
    const own = threads ?? new ChannelThreads('send-channel', channels, compression, booted);
    super(own, control, pageSize, options.signal);
    this.#options = options;
    this.#explained = explained;
    this.#parts = parts;
    this.blocks = options.blocks;
    this.#byBlock = new BlockStates(options.blocks.map((block) => ({ block })));
    const session: SessionAccess = {
      control,
      check: () => this.check(),
      until: (condition, spin) => this.until(condition, spin),
      sleep: (ms) => this.sleep(ms),
      orStopped: (wait) => this.orStopped(wait),
      fail: (error) => this.fail(error),
      broken: (thrown, code, what) => this.broken(thrown, code, what),
      wireBytes: () => this.wireBytes(),
      readFile: (...read) => this.files.read(...read),
    };
    this.#proof = parts.proof && new Proof(session, options.blocks, parts.proof);
    const turns = new Turns(session);
    const bandwidth = new Bandwidth(options.maxBandwidth, session);
    const handOver = new HandOver(session, turns);
    const packetPages = pagesPerPacket(options.pageSize);
    const maxPages = packetPages * maxPackets(options);
    const slot = new RamSlot(
      control.slots[options.channels],
      { pageSize: options.pageSize, packetPages, maxPages },
      { handOver, bandwidth, turns },
    );
    const legacy = options.zeroPageDetection === 'legacy' ? new LegacyZeroPages(options, session) : undefined;
    this.#bandwidth = bandwidth;
    this.#ram = new RamClient(options.blocks, packetPages, session, { slot, legacy, bandwidth, turns });
    this.#device = new DeviceClient(control.slots[options.channels + 1], options.deviceStateBytes, session, {
      handOver,
      bandwidth,
    });
  }

  /** @internal */
  async open(): Promise<void> {
    this.checkAborted();
    const options = this.#options;
    for (const task of channelTasks(options, this.control.shared, this.#explained, this.#parts)) {
      const { id, address } = task;
      trace('multifd_new_send_channel_async', () => ({ id, address: formatAddress(address) }));
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
      const ram = this.#byBlock.find(block).block;
      const page = checkPageRange(ram, this.pageSize, offset, this.pageSize);
      return this.#ram.queue(ram, page, 1);
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
      const ram = this.#byBlock.find(block).block;
      const page = checkPageRange(ram, this.pageSize, offset, length);
      return this.#ram.queue(ram, page, length / this.pageSize);
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
    await this.#device.queue(idstr, instanceId, data);
  }

  /**
   * Queues pages that are zero whatever their memory or file holds; to be used in mode `multifd`. Otherwise as
   * queueRange(), but each page at most once between two syncs.
   */
  async queueZeroRange(block: SessionBlock | string, offset: number, length: number): Promise<void> {
    this.requireOpen();
    const ram = this.#byBlock.find(block).block;
    const first = checkPageRange(ram, this.pageSize, offset, length);
    const turn = this.#ram.queueZero(ram, first, length / this.pageSize);
    if (turn !== undefined) await turn;
  }

  /** @internal Queues the pages of a bitmap, of which `count` bits are set, as queueRange() would run by run. */
  async queueBits(block: SessionBlock | string, bits: PageBitmap, count: number): Promise<void> {
    this.requireOpen();
    await this.#ram.queueBits(this.#byBlock.find(block).block, bits, count);
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
    const ram = this.#byBlock.find(block).block;
    await this.#ram.queueBytes(ram, pages, normal, num, data);
  }

  /** Hands over what is queued, device state as well; resolves when channels have taken it. */
  async flush(): Promise<void> {
    this.requireOpen();
    const devices = this.#device.tail;
    await this.#ram.exclusive(async () => {
      await this.#ram.flush();
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
    const devices = this.#device.tail;
    await this.#ram.exclusive(() => this.#sync(devices));
  }

  /** @internal Behind the last sync(), the guest standing still: digests of all of its memory. */
  prove(): Proof {
    const proof = this.#proof as Proof;
    proof.begin();
    return proof;
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
      this.#ram.exclusive(async () => {
        await this.#ram.flush();
        await this.#device.tail;
        await this.endOrderly();
      }),
    );
  }

  /**
   * Bytes a second on the wire, all channels together; 0 for no limit. May be set at any time; what channels have already
   * (up to 8 MiB each, where there was no limit) still goes out at once.
   */
  get maxBandwidth(): number {
    return this.#bandwidth.limit;
  }
  set maxBandwidth(bytesPerSecond: number) {
    this.#bandwidth.limit = checkMaxBandwidth(bytesPerSecond);
    this.wakeSleepers();
  }

  /** @param devices the device-state client's calls that come before it */
  async #sync(devices: Promise<unknown>): Promise<void> {
    const { control } = this;
    trace('multifd_send_sync_main', () => ({ syncs: this.#syncs + 1 }));
    await this.#ram.finishPhase();
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
    await this.#ram.beginPhase();
  }

  protected release(): void {}
}

function maxPackets(options: CheckedSenderOptions): number {
  return options.compression === 'none' ? MAX_PACKETS : MAX_PACKETS_COMPRESSED;
}
