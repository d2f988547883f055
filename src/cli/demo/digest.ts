/** SHA-256 of every block, in pieces, so that the event loop turns and no view is larger than Node 20 allows. */
import { createHash } from 'node:crypto';
import type { GuestRam } from './guest-ram.js';

/** Hex digests by the block's name. */
export type Digests = Record<string, string>;

export async function digestBlocks(ram: GuestRam, signal: AbortSignal): Promise<Digests> {
  const digests: Digests = {};
  for (const block of ram.blocks) {
    const hash = createHash('sha256');
    await ram.eachPiece(block, signal, (offset, length) => hash.update(ram.read(block, offset, length)));
    digests[block.name] = hash.digest('hex');
  }
  return digests;
}
