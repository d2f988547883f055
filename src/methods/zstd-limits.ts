/** What zstd's format bounds (RFC 8878), and what this project bounds below that. */

/**
 * QEMU's highest level, 20, has this window. Its decoder takes 2^27, libzstd's default; here the window is memory as soon
 * as a peer fills it, on every channel.
 */
export const MAX_WINDOW_BYTES = 2 ** 25;
export const MAX_BLOCK_BYTES = 2 ** 17;
/** One more than in the RFC: libzstd takes it. */
export const MAX_HUFFMAN_LOG = 12;

/** Blocks that cannot be decoded. It never leaves the methods: what a peer sees is the same for each decoder. */
export class CorruptBlock extends Error {}

export function corrupt(why: string): never {
  throw new CorruptBlock(why);
}
