/**
 * XXH64 with seed 0: the low 32 bits of it are the checksum of a zstd frame. A product of 64 bits is made of products of
 * 16; JavaScript's BigInt takes ten times as long.
 */

/** Two halves each. */
type Word = readonly [low: number, high: number];
const P1: Word = [0x85ebca87, 0x9e3779b1];
const P2: Word = [0x27d4eb4f, 0xc2b2ae3d];
const P3: Word = [0x9e3779f9, 0x165667b1];
const P4: Word = [0xc2b2ae63, 0x85ebca77];
const P5: Word = [0x165667c5, 0x27d4eb2f];
const STRIPE_BYTES = 32;

// The result of the last operation.
let low = 0;
let high = 0;

function multiply(aLow: number, aHigh: number, [bLow, bHigh]: Word): void {
  const a0 = aLow & 0xffff;
  const a1 = aLow >>> 16;
  const b0 = bLow & 0xffff;
  const b1 = bLow >>> 16;
  const p00 = Math.imul(a0, b0) >>> 0;
  const p01 = Math.imul(a0, b1) >>> 0;
  const p10 = Math.imul(a1, b0) >>> 0;
  const middle = (p00 >>> 16) + (p01 & 0xffff) + (p10 & 0xffff);
  high =
    (Math.imul(a1, b1) +
      (p01 >>> 16) +
      (p10 >>> 16) +
      (middle >>> 16) +
      Math.imul(aLow, bHigh) +
      Math.imul(aHigh, bLow)) |
    0;
  low = (p00 & 0xffff) | (middle << 16);
}

function add(aLow: number, aHigh: number, bLow: number, bHigh: number): void {
  const sum = (aLow >>> 0) + (bLow >>> 0);
  low = sum | 0;
  high = (aHigh + bHigh + (sum > 0xffffffff ? 1 : 0)) | 0;
}

/** @param bits fewer than 32 */
function rotate(aLow: number, aHigh: number, bits: number): void {
  low = (aLow << bits) | (aHigh >>> (32 - bits));
  high = (aHigh << bits) | (aLow >>> (32 - bits));
}

export class XxHash64 {
  /** Four sums, low and high half each. */
  readonly #sums = new Int32Array(8);
  #bytes = 0;
  readonly #rest = new Uint8Array(STRIPE_BYTES);
  #restBytes = 0;

  constructor() {
    add(P1[0], P1[1], P2[0], P2[1]);
    this.#sums.set([low, high, P2[0], P2[1], 0, 0]);
    this.#sums[6] = -P1[0];
    this.#sums[7] = ~P1[1];
  }

  update(bytes: Uint8Array): void {
    this.#bytes += bytes.length;
    let at = 0;
    if (this.#restBytes > 0) {
      at = Math.min(STRIPE_BYTES - this.#restBytes, bytes.length);
      this.#rest.set(bytes.subarray(0, at), this.#restBytes);
      this.#restBytes += at;
      if (this.#restBytes < STRIPE_BYTES) return;
      this.#stripes(this.#rest, 0, STRIPE_BYTES);
    }
    const end = bytes.length - ((bytes.length - at) % STRIPE_BYTES);
    this.#stripes(bytes, at, end);
    this.#rest.set(bytes.subarray(end));
    this.#restBytes = bytes.length - end;
  }

  #stripes(bytes: Uint8Array, at: number, end: number): void {
    const words = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const sums = this.#sums;
    for (; at < end; at += STRIPE_BYTES) {
      for (let i = 0; i < 8; i += 2) {
        const lane = at + i * 4;
        round(sums[i], sums[i + 1], words.getInt32(lane, true), words.getInt32(lane + 4, true));
        sums[i] = low;
        sums[i + 1] = high;
      }
    }
  }

  /** @returns the low half of the sum of all bytes */
  low(): number {
    const sums = this.#sums;
    if (this.#bytes < STRIPE_BYTES) [low, high] = P5;
    else {
      let hash: Word = [0, 0];
      for (const [i, bits] of [1, 7, 12, 18].entries()) {
        rotate(sums[2 * i], sums[2 * i + 1], bits);
        add(low, high, hash[0], hash[1]);
        hash = [low, high];
      }
      for (let i = 0; i < 8; i += 2) {
        round(0, 0, sums[i], sums[i + 1]);
        multiply(low ^ hash[0], high ^ hash[1], P1);
        add(low, high, P4[0], P4[1]);
        hash = [low, high];
      }
    }
    add(low, high, this.#bytes | 0, Math.floor(this.#bytes / 2 ** 32));
    this.#tail();
    // x ^ (x >>> 33), by halves.
    multiply(low ^ (high >>> 1), high, P2);
    multiply(low ^ ((low >>> 29) | (high << 3)), high ^ (high >>> 29), P3);
    return (low ^ high) >>> 0;
  }

  /** What is left over of a stripe: by 8 bytes, 4, and one. */
  #tail(): void {
    const words = new DataView(this.#rest.buffer);
    let at = 0;
    let hash: Word = [low, high];
    const mix = (bits: number, factor: Word, more: Word): void => {
      rotate(low ^ hash[0], high ^ hash[1], bits);
      multiply(low, high, factor);
      add(low, high, more[0], more[1]);
      hash = [low, high];
    };
    for (; at + 8 <= this.#restBytes; at += 8) {
      round(0, 0, words.getInt32(at, true), words.getInt32(at + 4, true));
      mix(27, P1, P4);
    }
    if (at + 4 <= this.#restBytes) {
      multiply(words.getInt32(at, true), 0, P1);
      mix(23, P2, P3);
      at += 4;
    }
    for (; at < this.#restBytes; at++) {
      multiply(this.#rest[at], 0, P5);
      mix(11, P1, [0, 0]);
    }
    [low, high] = hash;
  }
}

/** One sum and one word of the bytes. */
function round(sumLow: number, sumHigh: number, wordLow: number, wordHigh: number): void {
  multiply(wordLow, wordHigh, P2);
  add(low, high, sumLow, sumHigh);
  rotate(low, high, 31);
  multiply(low, high, P1);
}
