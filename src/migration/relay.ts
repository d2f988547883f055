/**
 * Passes a live migration on while it runs, with other channels, another method or level on the other side, and nothing
 * stored.
 *
 *     source                     calling thread                                  destination
 *     main stream    -->  item by item, every byte as it is        -->  main stream
 *     channels       -->  decoded; pages copied from slot to slot  -->  channels, encoded anew
 *     SYNC + marker  -->  receiver.sync(), sender.sync(), marker   -->  SYNC + marker
 *                    <--  bytes of the return path as they are     <--
 *
 * Pages are handed to the sender before the receiving channel reads on, so all that came before a SYNC goes out before
 * the SYNC of the other side.
 */
import type net from 'node:net';
import { MultifdError } from '../errors.js';
import {
  checkAddress,
  checkReceiverOptions,
  type Address,
  type Compression,
  type ZeroPageDetection,
} from '../options.js';
import { makeBlocks } from '../ram/block.js';
import { Receiver, type ReceiverStats } from '../recv/receiver.js';
import { createSender, type Sender } from '../send/sender.js';
import type { Stats } from '../session.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { MainConnection } from './main-connection.js';
import { CONNECT_TIMEOUT_MS } from './receive.js';
import { connectMain } from './send.js';

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

export async function relayMigration(options: RelayMigrationOptions): Promise<RelayedMigration> {
  const { listen, to, in: input = {}, out: output = {}, pageSize, uuid, signal } = options;
  const { stallTimeoutMs, connectTimeoutMs = CONNECT_TIMEOUT_MS, acceptTimeoutMs } = options;
  const destination = checkAddress(to, 1);
  const limits = { stallTimeoutMs, connectTimeoutMs };
  const common = { pageSize, uuid, signal, ...limits };
  let takeMain!: (connection: MainConnection) => void;
  const mainIn = new Promise<MainConnection>((resolve) => (takeMain = resolve));
  let source: MainConnection | undefined;
  let sink: MainConnection | undefined;
  let sender: Sender | undefined;
  const receiver = new Receiver(
    checkReceiverOptions({ ...common, ...input, acceptTimeoutMs, address: listen, blocks: [] }, true),
    {
      main: (socket: net.Socket, begun: Buffer) => takeMain((source = new MainConnection(socket, begun))),
      pages: async (slot) => {
        const to = sender as Sender;
        await to.queuePages(to.blocks[slot.block], slot.pages, slot.normalNum, slot.num, slot.data);
      },
    },
  );
  try {
    await receiver.open();
    options.onListening?.(receiver.address);
    receiver.done.catch(() => source?.destroy());
    source = await receiver.orStopped(mainIn);
    sink = await receiver.orStopped(connectMain(destination, connectTimeoutMs, signal));
    const back = copyBack(sink, source, (error) => void receiver.abandon(error));
    const stream = new MainStreamReader(source.reader, { pageSize: receiver.pageBytes });
    for (;;) {
      const item = await receiver.orStopped(stream.next());
      if (item === undefined) break;
      if (item.kind === 'mem-size') {
        const blocks = item.blocks.map(({ name, usedLength }) => ({
          name,
          size: usedLength,
          stream: true as const,
        }));
        await receiver.orStopped(sink.write(item.raw));
        sender = await receiver.orStopped(
          createSender({
            ...common,
            ...output,
            zeroPageDetection: output.zeroPageDetection ?? 'none',
            address: destination,
            blocks: blocks,
          }),
        );
        // Whichever side fails takes the other with it.
        sender.done.catch((error: MultifdError) => void receiver.abandon(error));
        receiver.setBlocks(makeBlocks(blocks, receiver.pageBytes));
        options.onStart?.({
          machine: stream.configuration?.machine ?? '',
          blocks: blocks.map(({ name, size }) => ({ name, size })),
        });
        options.onSession?.(receiver, sender);
        continue;
      }
      if ((item.kind === 'flush' || item.kind === 'eos') && item.sync) {
        await receiver.sync();
        await (sender as Sender).sync();
      }
      await receiver.orStopped(sink.write(item.raw));
    }
    if (!stream.inTail) throw new MultifdError('ERR_MULTIFD_EOF', "main stream ended before ram's END");
    if (source.broken !== undefined) throw source.broken;
    await sender?.end();
    await sink.end();
    await receiver.orStopped(back);
    await source.end();
    await receiver.end();
    return {
      machine: stream.configuration?.machine ?? '',
      blocks: receiver.blocks.map(({ name, size }) => ({ name, size })),
      received: receiver.stats(),
      sent: (sender as Sender).stats(),
    };
  } catch (thrown) {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'relay');
    await receiver.abandon(error);
    const first = receiver.error ?? error;
    await sender?.abandon(first);
    throw first;
  } finally {
    source?.destroy();
    sink?.destroy();
  }
}

/** The return path, byte by byte; ends when the destination closes. */
async function copyBack(
  from: MainConnection,
  to: MainConnection,
  failed: (error: MultifdError) => void,
): Promise<void> {
  try {
    for await (const bytes of from.reader.rest()) await to.write(bytes);
  } catch (error) {
    failed(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'return path'));
  }
}
