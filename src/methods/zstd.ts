/**
 * Method zstd. A real QEMU keeps one frame open for the whole life of a channel and flushes it at the end of each
 * packet; its receiver also takes frames that end, at a page's end. Source: QEMU's multifd-zstd, specification 3.3.
 *
 * Sending: one complete frame a packet, and a second one for pages that travel as they are, so that a receiver without a
 * fast streaming decoder is fast (zstd-send.ts). Receiving: both forms (zstd-receive.ts). A checker walks over every payload
 * first (zstd-frame.ts), so that the answer does not depend on the decoder.
 *
 * By whom, the first that there is:
 *
 *     node      Node's own                    zstd-node.ts          in the channel's thread
 *     libzstd   the system's, through koffi   ../native/libzstd.ts  in the channel's thread
 *     binding   @mongodb-js/zstd              zstd-binding.ts       in libuv's pool; whole frames alone
 *               our own                       zstd-blocks.ts        in JavaScript, at a fifth of the speed: the others
 *
 * libzstd comes before the binding, although that works beside the channel's thread: both ends together take a fifth less of the
 * processors' time with it, and where there are as many channels as cores there is nothing beside them.
 *
 * What no checker can see: a corrupt compressed block. Most are refused by all decoders. Of those that libzstd takes, since
 * it does not look at everything, ours takes all but 1 in 1000, and the other way round; 1 in 100 where the first Huffman table of an endless frame is hit.
 * That is libzstd 1.5.7; of 1.5.4 it is 1 in 200, and 1 in 40 has other bytes.
 */
import { findLibzstd, ZstdCompressor, ZstdDecompressor, type Libzstd } from '../native/libzstd.js';
import type { ReceiveMethod, SendMethod } from './contract.js';
import { zstdBinding } from './zstd-binding.js';
import { hasNodeZstd, NodeCompressor, NodeDecoder } from './zstd-node.js';
import { outsideZstd } from './zstd-outside.js';
import { ZstdReceiver, type StreamDecoder } from './zstd-receive.js';
import { BindingSender, SyncSender } from './zstd-send.js';

export type ZstdBackend = 'node' | 'libzstd' | 'binding';

/** @throws MultifdError ERR_MULTIFD_RUNTIME: there is none */
export function zstdBackend(): ZstdBackend {
  return hasNodeZstd ? 'node' : outsideZstd();
}

/** For tests and benches: those that can be had here. */
export function zstdBackends(): ZstdBackend[] {
  return [
    ...(hasNodeZstd ? (['node'] as const) : []),
    ...(findLibzstd() === undefined ? [] : (['libzstd'] as const)),
    ...(hasBinding() ? (['binding'] as const) : []),
  ];
}

/** Its part for this platform is optional. */
function hasBinding(): boolean {
  try {
    zstdBinding();
    return true;
  } catch {
    return false;
  }
}

/** @param level 1 to 20 */
export function createZstdSender(level: number, backend = zstdBackend()): SendMethod {
  if (backend === 'binding') return new BindingSender(level);
  const compressor = backend === 'node' ? new NodeCompressor(level) : new ZstdCompressor(libzstd(), level);
  return new SyncSender(compressor);
}

export function createZstdReceiver(pageSize: number, backend = zstdBackend()): ReceiveMethod {
  let decoder: StreamDecoder | undefined;
  if (backend === 'node') decoder = new NodeDecoder();
  else if (backend === 'libzstd') decoder = new ZstdDecompressor(libzstd());
  return new ZstdReceiver(pageSize, decoder);
}

/** Whole frames of any size, in the calling thread and never by the binding: it resolves nothing. */
export function createFrameReceiver(): ReceiveMethod {
  if (hasNodeZstd) return new ZstdReceiver(1, new NodeDecoder());
  const library = findLibzstd();
  return new ZstdReceiver(1, library && new ZstdDecompressor(library), false);
}

/** Makes whole frames of any size, each with a checksum of its content where the codec can have one. */
export interface FrameMaker {
  /** @returns its bytes in `output`, or all of them */
  compress(input: Buffer, output: Buffer): number | Promise<Buffer>;
  close(): void;
}

/** @param level 1 to 20 */
export function createFrameMaker(level: number): FrameMaker {
  if (hasNodeZstd) return new NodeCompressor(level, true);
  const library = findLibzstd();
  if (library !== undefined) return new ZstdCompressor(library, level, true);
  const binding = zstdBinding();
  return { compress: (input) => binding.compress(input, level), close: () => {} };
}

/** It is there: zstdBackend() has said so. */
function libzstd(): Libzstd {
  return findLibzstd() as Libzstd;
}
