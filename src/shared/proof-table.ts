/**
 * The digests of all of a session's RAM, chunk by chunk, as its threads make them: who takes which chunk, which are made, and
 * their bytes, in one SharedArrayBuffer.
 *
 *     NEXT | DONE | a flag for each chunk | a digest for each chunk
 *
 * A chunk is its claimer's alone: claim() gives each once, in order, until none is left. put() stores the digest, then the flag
 * (release), which has() loads before anybody reads the digest.
 */
import { LINE_WORDS } from './layout.js';

/** SHA-256. */
export const DIGEST_BYTES = 32;

const WORD_NEXT = 0 * LINE_WORDS;
const WORD_DONE = 1 * LINE_WORDS;
const HEAD_WORDS = 2 * LINE_WORDS;
const HEAD_BYTES = HEAD_WORDS * Int32Array.BYTES_PER_ELEMENT;

/** @param chunks how many there are */
export function makeProofTable(chunks: number): SharedArrayBuffer {
  return new SharedArrayBuffer(HEAD_BYTES + chunks * (1 + DIGEST_BYTES));
}

export class ProofTable {
  readonly count: number;
  readonly #words: Int32Array;
  readonly #flags: Uint8Array;
  readonly #digests: Buffer;

  /** @param shared of makeProofTable() */
  constructor(shared: SharedArrayBuffer) {
    this.count = (shared.byteLength - HEAD_BYTES) / (1 + DIGEST_BYTES);
    this.#words = new Int32Array(shared, 0, HEAD_WORDS);
    this.#flags = new Uint8Array(shared, HEAD_BYTES, this.count);
    this.#digests = Buffer.from(shared, HEAD_BYTES + this.count, this.count * DIGEST_BYTES);
  }

  /** The next chunk that nobody has; undefined when all are taken. */
  claim(): number | undefined {
    const chunk = Atomics.add(this.#words, WORD_NEXT, 1);
    return chunk < this.count ? chunk : undefined;
  }

  /** @returns how many are there now */
  put(chunk: number, digest: Uint8Array): number {
    this.#digests.set(digest, chunk * DIGEST_BYTES);
    Atomics.store(this.#flags, chunk, 1);
    return Atomics.add(this.#words, WORD_DONE, 1) + 1;
  }

  /** Is its digest there? (acquire, pairs with put()) */
  has(chunk: number): boolean {
    return Atomics.load(this.#flags, chunk) === 1;
  }

  /** A copy of the digests of chunks `from` to `to`, which must be there. */
  digests(from: number, to: number): Buffer {
    return Buffer.from(this.#digests.subarray(from * DIGEST_BYTES, to * DIGEST_BYTES));
  }
}
