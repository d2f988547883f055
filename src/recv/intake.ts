/**
 * The bytes of a channel on their way to what its state wants.
 *
 *     a payload is wanted     read straight into the wanted view: guest RAM, or a payload's buffer
 *     a packet begins         read into the landing: as many headers as there are, up to 16, while packets have no
 *                             payload, else one; decoded where they lie, and what is left goes through the same states
 *
 * Node asks for the next view right after each read, also when that read has paused the channel: what is wanted then is
 * not known yet, and the first read after the pause goes to the landing.
 *
 * Who owns the bytes: the landing and the headers are the channel's own, so nothing that was checked can change afterwards.
 */
import { STAT_BYTES } from '../shared/layout.js';
import type { ConnectionIntake } from '../transport/receive-connection.js';

/** Headers that one read may bring: as many as a send channel holds back. */
const LANDING_PACKETS = 16;

/** The channel's states. */
export interface IntakeStates {
  /** Nothing is taken in now: somebody is waited for, or the channel has ended. */
  readonly resting: boolean;
  /** Payloads follow the headers: no more is read ahead than one header, since payload that lands is copied. */
  readonly hasPayloads: boolean;
  /** Before and after a read. */
  busy(): void;
  idle(): void;
  /** A packet may begin at `at`, where a RAM header's length lies. @returns whether it was one, and was taken */
  takeHeader(bytes: Buffer, at: number): boolean;
  /** All that was wanted is there: expect() says what comes next. */
  advance(): void;
}

export class Intake implements ConnectionIntake {
  readonly #states: IntakeStates;
  readonly #stats: Float64Array;
  readonly #headerBytes: number;
  /** The bytes wanted now, and how many of them are there. */
  #want: Uint8Array = Buffer.alloc(0);
  #have = 0;
  /** Do they begin a packet? */
  #begins = true;
  readonly #landing: Buffer;
  #landed = true;
  /** Bytes that were read before the state that takes them was known. */
  #surplus: Buffer;
  #surplusAt = 0;
  #surplusEnd: number;

  /** @param surplus what came in with the hello */
  constructor(states: IntakeStates, stats: Float64Array, headerBytes: number, surplus: Buffer) {
    this.#states = states;
    this.#stats = stats;
    this.#headerBytes = headerBytes;
    this.#landing = Buffer.allocUnsafeSlow(LANDING_PACKETS * headerBytes);
    this.#surplus = surplus;
    this.#surplusEnd = surplus.length;
  }

  get have(): number {
    return this.#have;
  }

  get wanted(): number {
    return this.#want.length;
  }

  /** Between packets: nothing has been read of the next one. */
  get atStart(): boolean {
    return this.#begins && this.#have === 0;
  }

  /** @param begins it is a packet's first bytes */
  expect(want: Uint8Array, begins: boolean): void {
    this.#want = want;
    this.#have = 0;
    this.#begins = begins;
  }

  view(): Uint8Array {
    this.#landed = this.#begins || this.#states.resting;
    if (!this.#landed) return this.#want.subarray(this.#have);
    return this.#states.hasPayloads ? this.#landing.subarray(0, this.#headerBytes) : this.#landing;
  }

  read(count: number): boolean {
    this.#states.busy();
    if (this.#landed) {
      this.#surplus = this.#landing;
      this.#surplusAt = 0;
      this.#surplusEnd = count;
      this.feed();
    } else this.#filled(count);
    this.#states.idle();
    return !this.#states.resting;
  }

  push(bytes: Buffer): boolean {
    this.#states.busy();
    const left = this.#surplus.subarray(this.#surplusAt, this.#surplusEnd);
    this.#surplus = left.length === 0 ? bytes : Buffer.concat([left, bytes]);
    this.#surplusAt = 0;
    this.#surplusEnd = this.#surplus.length;
    this.feed();
    this.#states.idle();
    return !this.#states.resting;
  }

  /** What lies here goes through the states, as far as they take it. */
  feed(): void {
    while (this.#surplusAt < this.#surplusEnd && !this.#states.resting) {
      if (this.#feedHeader()) continue;
      const at = this.#surplusAt;
      const count = Math.min(this.#surplusEnd - at, this.#want.length - this.#have);
      this.#surplus.copy(this.#want, this.#have, at, at + count);
      this.#surplusAt += count;
      this.#filled(count);
    }
  }

  /** A whole header is decoded where it lies. */
  #feedHeader(): boolean {
    const at = this.#surplusAt;
    if (!this.atStart || this.#surplusEnd - at < this.#headerBytes) return false;
    this.#surplusAt += this.#headerBytes;
    this.#stats[STAT_BYTES] += this.#headerBytes;
    if (this.#states.takeHeader(this.#surplus, at)) return true;
    this.#surplusAt = at;
    this.#stats[STAT_BYTES] -= this.#headerBytes;
    return false;
  }

  #filled(count: number): void {
    this.#have += count;
    this.#stats[STAT_BYTES] += count;
    if (this.#have === this.#want.length) this.#states.advance();
  }
}
