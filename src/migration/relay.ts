/**
 * Passes a live migration on while it runs, with other channels, another method or level on the other side, and nothing
 * stored.
 *
 *     source                     calling thread                                  destination
 *     main stream    -->  item by item, every byte as it is        -->  main stream
 *     channels       -->  decoded; pages copied from slot to slot  -->  channels, encoded anew
 *     SYNC + marker  -->  receiver.sync(), sender.sync(), marker   -->  SYNC + marker
 *                    <--  messages of the return path as they are  <--   opened here if the source has not
 *
 * Pages are handed to the sender before the receiving channel reads on, so all that came before a SYNC goes out before
 * the SYNC of the other side.
 */
import type net from 'node:net';
import { MultifdError, receivedExpected } from '../errors.js';
import {
  checkAddress,
  checkReceiverOptions,
  type Address,
  type Compression,
  type SenderOptions,
  type ZeroPageDetection,
} from '../options.js';
import { makeBlocks } from '../ram/block.js';
import { Receiver, type ReceiverHooks, type ReceiverStats } from '../recv/receiver.js';
import { createSender, type Sender } from '../send/sender.js';
import type { Stats } from '../session.js';
import type { Slot } from '../shared/control.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { encodeCommand } from '../stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH, COMMAND_PING } from '../stream/records.js';
import { encodeSwitchoverAck, readReturnPath } from '../stream/return-path.js';
import { MainConnection } from './main-connection.js';
import { CONNECT_TIMEOUT_MS, callHook, checkOutgoing, requireOptions } from './options.js';
import { PING_VALUE, connectMain, explain, withLimit } from './send.js';
import { checkSwitchoverAck, type SwitchoverAck } from './switchover-ack.js';
import { watchMigration } from './watch.js';

/** One side of a relay. */
export interface RelaySide {
  /** Default 2. */
  channels?: number;
  /** Default `none`. */
  compression?: Compression;
}

export interface RelayMigrationOptions {
  /** Where the source connects. */
  listen: Address | string;
  /** Where the destination waits. */
  to: Address | string;
  in?: RelaySide;
  out?: RelaySide & {
    zlibLevel?: number;
    zstdLevel?: number;
    /** For pages that come with data; `multifd` only to a QEMU from 9.0 on. Default `none`: the source has looked. */
    zeroPageDetection?: Exclude<ZeroPageDetection, 'legacy'>;
    maxBandwidth?: number;
  };
  /**
   * With the return path: the SWITCHOVER_ACK for which a source with capability switchover-ack waits. Default `auto`: the
   * destination's is passed on. `always`: one is sent in its place, at once; `never`: none is.
   */
  switchoverAck?: SwitchoverAck;
  pageSize?: number;
  /** The VM's uuid in text. */
  uuid?: string;
  stallTimeoutMs?: number;
  /** Milliseconds for all connections to be there, once the first is (default 8000). */
  connectTimeoutMs?: number;
  acceptTimeoutMs?: number;
  signal?: AbortSignal;
  /** Called once the address is listened on. */
  onListening?: (address: Address) => void;
  /** Called when the source has told what it sends. */
  onStart?: (start: { machine: string; blocks: { name: string; size: number }[] }) => void;
  /** Called with both sessions, for progress() and stats(). */
  onSession?: (receiver: Receiver, sender: Sender) => void;
}

export interface RelayedMigration {
  machine: string;
  blocks: { name: string; size: number }[];
  received: ReceiverStats;
  sent: Stats;
}

/**
 * @throws MultifdError with all codes of a receiver and a sender, and ERR_MULTIFD_STREAM for a main stream that is
 *   refused, here or by the destination
 */
export async function relayMigration(options: RelayMigrationOptions): Promise<RelayedMigration> {
  const { listen, to, in: input = {}, out = {}, pageSize, uuid, signal } = requireOptions(options);
  const { stallTimeoutMs, connectTimeoutMs = CONNECT_TIMEOUT_MS, acceptTimeoutMs } = options;
  const common = { pageSize, uuid, signal, stallTimeoutMs, connectTimeoutMs };
  const outgoing = {
    ...common,
    ...out,
    zeroPageDetection: out.zeroPageDetection ?? 'none',
    address: checkAddress(to, 1),
  };
  checkOutgoing(outgoing);
  checkSwitchoverAck(options.switchoverAck);
  const checked = checkReceiverOptions(
    { ...common, ...input, acceptTimeoutMs, address: listen, blocks: [] },
    true,
  );
  const relay = new Relay(options, outgoing, connectTimeoutMs);
  const receiver = new Receiver(checked, relay);
  try {
    await receiver.open();
    callHook('onListening', () => options.onListening?.(receiver.address));
    return await relay.run(receiver, checked.stallTimeoutMs);
  } catch (thrown) {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'relay');
    await receiver.abandon(error);
    throw await relay.failed(receiver.error ?? error);
  } finally {
    relay.destroy();
  }
}

/** What the sender will be made with, once the source has named the blocks. */
type Outgoing = Omit<SenderOptions, 'blocks' | 'address'> & { address: Address };

class Relay implements ReceiverHooks {
  readonly #options: RelayMigrationOptions;
  readonly #outgoing: Outgoing;
  readonly #connectTimeoutMs: number;
  #sourceIn!: (connection: MainConnection) => void;
  readonly #mainIn: Promise<MainConnection>;
  #source: MainConnection | undefined;
  #sink: MainConnection | undefined;
  #sender: Sender | undefined;
  #machine = '';
  /** Has the source opened a return path? Else it is opened here: how it ended is to be known in any case. */
  #returnPath = false;
  #pinged = false;
  #ponged!: () => void;
  readonly #pong: Promise<void>;

  constructor(options: RelayMigrationOptions, outgoing: Outgoing, connectTimeoutMs: number) {
    this.#options = options;
    this.#outgoing = outgoing;
    this.#connectTimeoutMs = connectTimeoutMs;
    this.#mainIn = new Promise((resolve) => (this.#sourceIn = resolve));
    this.#pong = new Promise((resolve) => (this.#ponged = resolve));
  }

  // ---- ReceiverHooks ----

  main(socket: net.Socket, begun: Buffer): void {
    this.#source = new MainConnection(socket, begun);
    this.#sourceIn(this.#source);
  }

  async pages(slot: Slot): Promise<void> {
    const sender = this.#sender as Sender;
    await sender.queuePages(sender.blocks[slot.block], slot.pages, slot.normalNum, slot.num, slot.data);
  }

  // ---- the main stream ----

  async run(receiver: Receiver, stallTimeoutMs: number): Promise<RelayedMigration> {
    const over = (): void => this.#source?.destroy();
    receiver.done.then(over, over);
    const source = await receiver.orStopped(this.#mainIn);
    const { signal } = this.#options;
    const { address } = this.#outgoing;
    const sink = await receiver.orStopped(connectMain(address, this.#connectTimeoutMs, signal));
    this.#sink = sink;
    const unwatch = watchMigration(
      stallTimeoutMs,
      () => receiver.stats().bytes + (this.#sender?.stats().bytes ?? 0) + source.moved + sink.moved,
      (error) => void receiver.abandon(error),
    );
    try {
      const shut = this.#copyBack(sink, source);
      shut.catch((error: unknown) => {
        void receiver.abandon(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'return path'));
      });
      await this.#copyForth(receiver, source, sink);
      const sender = this.#sender as Sender;
      await receiver.orStopped(sender.end());
      const status = await receiver.orStopped(shut);
      if (status !== 0) {
        throw new MultifdError('ERR_MULTIFD_STREAM', receivedExpected("the destination's SHUT", status, 0));
      }
      await receiver.orStopped(sink.end());
      await receiver.orStopped(source.end());
      await receiver.end();
      return {
        machine: this.#machine,
        blocks: receiver.blocks.map(({ name, size }) => ({ name, size })),
        received: receiver.stats(),
        sent: sender.stats(),
      };
    } finally {
      unwatch();
    }
  }

  /** Item by item, every byte as it is, to the end of the source's stream. */
  async #copyForth(receiver: Receiver, source: MainConnection, sink: MainConnection): Promise<void> {
    const stream = new MainStreamReader(source.reader, { pageSize: receiver.pageBytes });
    const write = (bytes: Buffer): Promise<void> => receiver.orStopped(sink.write(bytes));
    let ready = false;
    for (;;) {
      const item = await receiver.orStopped(stream.next());
      if (item === undefined) break;
      if (item.kind === 'configuration') this.#machine = item.configuration.machine;
      if (item.kind === 'command' && item.command === COMMAND_OPEN_RETURN_PATH) {
        this.#returnPath = true;
        if (this.#options.switchoverAck === 'always') {
          await receiver.orStopped(source.write(encodeSwitchoverAck()));
        }
      }
      if (item.kind === 'command' && item.command === COMMAND_PING) this.#pinged = true;
      const isSection = item.kind === 'section' || item.kind === 'other-section';
      if (isSection && !this.#returnPath && !this.#pinged) {
        this.#pinged = true;
        await write(
          Buffer.concat([encodeCommand(COMMAND_OPEN_RETURN_PATH), encodeCommand(COMMAND_PING, PING_VALUE)]),
        );
      }
      if ((item.kind === 'flush' || item.kind === 'eos') && item.sync) {
        if (!ready) await this.#waitReady(receiver);
        ready = true;
        await receiver.sync();
        const sender = this.#sender as Sender;
        // By this `multifd receive` at the other end sees whether the source's program is an old one.
        sender.syncPagesAlloc = receiver.syncPagesAlloc;
        await receiver.orStopped(sender.sync());
      }
      await write(item.raw);
      if (item.kind === 'mem-size') await this.#start(receiver, item.blocks);
    }
    if (!stream.inTail) throw new MultifdError('ERR_MULTIFD_EOF', "main stream ended before ram's END");
    if (source.broken !== undefined) throw source.broken;
  }

  /** The source has named the blocks: the channels of both sides may start. */
  async #start(receiver: Receiver, named: readonly { name: string; usedLength: number }[]): Promise<void> {
    const blocks = named.map(({ name, usedLength }) => ({ name, size: usedLength, stream: true as const }));
    const sender = await receiver.orStopped(createSender({ ...this.#outgoing, blocks }));
    this.#sender = sender;
    // Whichever side fails takes the other with it.
    sender.done.catch((error: MultifdError) => void receiver.abandon(error));
    receiver.setBlocks(makeBlocks(blocks, receiver.pageBytes));
    const start = { machine: this.#machine, blocks: blocks.map(({ name, size }) => ({ name, size })) };
    callHook('onStart', () => this.#options.onStart?.(start));
    callHook('onSession', () => this.#options.onSession?.(receiver, sender));
  }

  /** A QEMU reads its main stream only when all the channels are there that it expects. */
  async #waitReady(receiver: Receiver): Promise<void> {
    if (!this.#pinged) return;
    const ms = this.#connectTimeoutMs;
    const late = `the destination has not answered the PING within ${ms} ms: does it expect more channels?`;
    await withLimit(receiver.orStopped(this.#pong), ms, 'ERR_MULTIFD_TIMEOUT', late);
  }

  /** The return path: to the source, if that has opened it. @returns the status of SHUT */
  async #copyBack(sink: MainConnection, source: MainConnection): Promise<number> {
    let status: number | undefined;
    for await (const message of readReturnPath(sink.reader)) {
      const passed = message.kind !== 'switchover-ack' || (this.#options.switchoverAck ?? 'auto') === 'auto';
      if (this.#returnPath && passed) await source.write(message.raw);
      if (message.kind === 'pong') this.#ponged();
      if (message.kind === 'shut') {
        status = message.status;
        break;
      }
    }
    if (status !== undefined) return status;
    throw new MultifdError(
      'ERR_MULTIFD_CONNECTION',
      'the destination closed the main stream before it had loaded all',
    );
  }

  // ---- ends ----

  async failed(error: MultifdError): Promise<MultifdError> {
    await this.#sender?.abandon(error);
    const { channels = 2, compression = 'none' } = this.#outgoing;
    return this.#sink === undefined
      ? error
      : explain(error, `machine ${this.#machine}, ${channels} channels, ${compression}`);
  }

  destroy(): void {
    this.#source?.destroy();
    this.#sink?.destroy();
  }
}
