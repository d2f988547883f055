/**
 * Zeroing a range of a block on the calling thread, in turns of its event loop: the ZERO records of the main stream. Pages
 * that are zero already are not written, so that fresh memory stays without frames and a sparse file sparse.
 */
import { performance } from 'node:perf_hooks';
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import type { RAMBlock } from '../ram/block.js';
import type { BlockFiles } from '../ram/file-block.js';
import type { MemorySource } from '../ram/memory.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';

const YIELD_MS = 2;

/** @param check throws when the session has stopped */
export async function zeroMemory(
  memory: MemorySource,
  offset: number,
  length: number,
  check: () => Promise<void>,
): Promise<void> {
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
      await check();
    }
  }
}

/** @param check as in zeroMemory() */
export async function zeroFile(
  files: BlockFiles,
  block: RAMBlock,
  offset: number,
  length: number,
  check: () => Promise<void>,
): Promise<void> {
  const piece = Buffer.allocUnsafe(Math.min(length, MULTIFD_PACKET_BYTES));
  for (let at = offset; at < offset + length;) {
    const position = block.base + at;
    const wanted = Math.min(piece.length, offset + length - at);
    const bytesRead = await files.read(block, piece, 0, wanted, position);
    if (bytesRead === 0) throw new Error('the file has become shorter');
    if (!isZeroRange(piece, 0, bytesRead)) await files.write(block, piece.fill(0), 0, bytesRead, position);
    at += bytesRead;
    await check();
  }
}
