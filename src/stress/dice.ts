/**
 * Chance that can be repeated: the same numbers for the same seed and run, whatever was drawn in the run before. A run that has
 * failed is played again by these two alone.
 */
export class Dice {
  #state: number;

  constructor(seed: number, run = 0) {
    // Neighbouring runs are not to begin alike.
    this.#state = Math.imul((seed >>> 0) ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(run + 1, 0xc2b2ae35);
    for (let i = 0; i < 8; i++) this.word();
  }

  /** 32 bits: mulberry32. */
  word(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** Of 0 or more and below `limit`. */
  below(limit: number): number {
    return Math.floor((this.word() / 2 ** 32) * limit);
  }

  /** Both included. */
  between(least: number, most: number): number {
    return least + this.below(most - least + 1);
  }

  /** Small ones as frequent as large ones: each doubling has the same share. */
  doubling(least: number, most: number): number {
    const span = Math.log2(most / least);
    return Math.min(most, Math.floor(least * 2 ** (span * (this.word() / 2 ** 32))));
  }

  percent(share: number): boolean {
    return this.below(100) < share;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)];
  }

  shuffle<T>(of: readonly T[]): T[] {
    const left = [...of];
    const shuffled: T[] = [];
    while (left.length > 0) shuffled.push(...left.splice(this.below(left.length), 1));
    return shuffled;
  }

  fill(bytes: Buffer): void {
    for (let i = 0; i + 4 <= bytes.length; i += 4) bytes.writeUInt32LE(this.word(), i);
    for (let i = bytes.length & ~3; i < bytes.length; i++) bytes[i] = this.below(256);
  }
}
