/**
 * What each channel's thread is told when it starts, made on the calling thread. Memory that is shared goes along as
 * itself, and so do the slots: from here on both threads see them. Everything else is copied.
 */
import type { CheckedSenderOptions } from '../options.js';
import type { SharedControl } from '../shared/control.js';
import type { SendChannelTask } from './channel.js';

/** What a live migration adds. */
export interface SenderParts {
  /** Sends of what is queued only what has changed since it was sent: digestTables(). */
  digests?: readonly SharedArrayBuffer[] | undefined;
  /** Makes digests of all of RAM when it is told to: proofTableOf(). */
  proof?: SharedArrayBuffer | undefined;
  /** May be carried on: what its channels' hellos must have. */
  key?: Uint8Array | undefined;
}

/** @param explained as in createSender(), `parts` likewise */
export function channelTasks(
  options: CheckedSenderOptions,
  shared: SharedControl,
  explained: boolean,
  { digests, proof, key }: SenderParts,
): SendChannelTask[] {
  const { compression } = options;
  const blocks = options.blocks.map((block) => block.describe());
  return Array.from({ length: options.channels }, (_, id) => ({
    shared,
    id,
    address: options.address,
    uuid: options.uuid,
    key,
    pageSize: options.pageSize,
    blocks,
    compression,
    level: compression === 'zlib' ? options.zlibLevel : options.zstdLevel,
    zeroPageDetection: options.zeroPageDetection,
    zeroCopySend: options.zeroCopySend,
    digests,
    proof,
    connectTimeoutMs: options.connectTimeoutMs,
    stallTimeoutMs: options.stallTimeoutMs,
    explained,
    tls: options.tls?.credentials.toPlain(),
  }));
}
