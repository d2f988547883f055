/**
 * RAM in chunks, and the digest of one: SHA-256 of each 512 KiB of each block, the last of a block may be shorter. They are
 * numbered through all blocks, in the order of those.
 *
 * Most of a guest is zero, and is seen to be at ten times the speed of a digest: that of a chunk of zeros is made once.
 */
import { createHash } from 'node:crypto';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import { isZeroRange } from './zero-page.js';

/** A packet's pages: as much as a channel reads, or a slot holds, at a time. */
export const CHUNK_BYTES = MULTIFD_PACKET_BYTES;

export interface Chunk {
  /** Index of the block. */
  block: number;
  /** In bytes, within the block. */
  offset: number;
  length: number;
}

export function chunksOf(size: number): number {
  return Math.ceil(size / CHUNK_BYTES);
}

export class Chunks {
  readonly count: number;
  readonly #sizes: readonly number[];
  /** The first chunk of each block. */
  readonly #firsts: number[] = [];
  #block = 0;

  /** @param sizes of the blocks, in bytes */
  constructor(sizes: readonly number[]) {
    this.#sizes = sizes;
    let count = 0;
    for (const size of sizes) {
      this.#firsts.push(count);
      count += chunksOf(size);
    }
    this.count = count;
  }

  /** The first chunk of a block. */
  firstOf(block: number): number {
    return this.#firsts[block];
  }

  /** Quick for chunks that ascend. */
  at(index: number): Chunk {
    if (index < this.#firsts[this.#block]) this.#block = 0;
    while (index >= (this.#firsts[this.#block + 1] ?? Infinity)) this.#block++;
    const offset = (index - this.#firsts[this.#block]) * CHUNK_BYTES;
    const length = Math.min(CHUNK_BYTES, this.#sizes[this.#block] - offset);
    return { block: this.#block, offset, length };
  }
}

let zeros: Buffer | undefined;

/** Of `length` zeros from `at` on, of a whole chunk; undefined for any other bytes. */
export function zeroDigest(bytes: Buffer, at: number, length: number): Uint8Array | undefined {
  if (length !== CHUNK_BYTES || !isZeroRange(bytes, at, length)) return undefined;
  return (zeros ??= createHash('sha256').update(Buffer.alloc(CHUNK_BYTES)).digest());
}

export function digestOf(bytes: Buffer, at: number, length: number): Uint8Array {
  return (
    zeroDigest(bytes, at, length) ??
    createHash('sha256')
      .update(bytes.subarray(at, at + length))
      .digest()
  );
}
