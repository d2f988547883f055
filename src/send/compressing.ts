/**
 * Compression, in a send channel's thread, with up to two packets under way where the codec has threads of its own: one
 * whose payload is being made, one that waits to go out. They go out in the order of the jobs, before anything else
 * of this channel.
 *
 *     fill() copies the pages to an input --> compress() --+--> a payload: the caller sends it
 *                                                          +--> a promise: aside(), and the one before goes out
 *     send()  the last one, before anything else           (a promise that settles posts SEM, on which the loop sleeps)
 *
 * Who owns the bytes: an input is the codec's until its payload is made, hence two. A payload is the codec's memory, valid
 * for as many calls as src/methods/methods.ts says. The pages that are not compressed stay where they are.
 */
import type { SendMethod } from '../methods/methods.js';
import { copyPages } from '../ram/copy.js';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import type { Outgoing } from './outgoing.js';

/** A packet of pages whose payload is made by a thread of the codec's own. */
export interface CompressingPacket {
  block: number;
  normal: number;
  zero: number;
  /** The packet's page list, normal pages first. */
  pages: Uint32Array;
  made: Promise<Buffer>;
  /** The rest of the payload: pages as they are. */
  raw: readonly Uint8Array[];
}

export class Compressing {
  readonly #method: SendMethod;
  readonly #outgoing: Pick<Outgoing, 'holdPages'>;
  readonly #write: () => Promise<void>;
  readonly #onSettled: () => void;
  /** Copies of pages: one may be with the codec while the next is filled. */
  readonly #inputs = [
    Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
    Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES),
  ];
  #turn = 0;
  /** Goes out before anything else of this channel. */
  #last: CompressingPacket | undefined;
  #settled = false;

  /**
   * @param write all that is outgoing
   * @param onSettled a payload is made, or has failed
   */
  constructor(
    method: SendMethod,
    outgoing: Pick<Outgoing, 'holdPages'>,
    write: () => Promise<void>,
    onSettled: () => void,
  ) {
    this.#method = method;
    this.#outgoing = outgoing;
    this.#write = write;
    this.#onSettled = onSettled;
  }

  /** Is a packet under way? */
  get any(): boolean {
    return this.#last !== undefined;
  }

  /** May it go out without waiting? */
  get settled(): boolean {
    return this.#last !== undefined && this.#settled;
  }

  /** Copies the pages, for the next compress(). */
  fill(pieces: readonly Uint8Array[]): Buffer {
    const input = this.#inputs[this.#turn];
    let filled = 0;
    for (const piece of pieces) {
      copyPages(piece, 0, input, filled, piece.length);
      filled += piece.length;
    }
    return input.subarray(0, filled);
  }

  /** As SendMethod.compress(). */
  compress(input: Buffer, rawFollows: boolean): Buffer | Promise<Buffer> {
    return this.#method.compress(input, rawFollows);
  }

  /** As SendMethod.raw(). */
  raw(pieces: readonly Uint8Array[]): readonly Uint8Array[] {
    return this.#method.raw(pieces);
  }

  /**
   * Leaves a packet to the codec's thread and sends the one that was there before it: with two under way, that thread
   * has work while this one copies and writes.
   */
  async aside(packet: CompressingPacket): Promise<void> {
    const settled = (): void => {
      if (this.#last === packet) this.#settled = true;
      this.#onSettled();
    };
    packet.made.then(settled, settled);
    this.#turn ^= 1;
    const earlier = this.#last;
    this.#last = packet;
    this.#settled = false;
    if (earlier !== undefined) await this.#sendMade(earlier);
  }

  /** Sends the packet that the codec has, if there is one, and waits for it if need be. */
  async send(): Promise<void> {
    const packet = this.#last;
    if (packet === undefined) return;
    this.#last = undefined;
    await this.#sendMade(packet);
  }

  async #sendMade({ block, normal, zero, pages, made, raw }: CompressingPacket): Promise<void> {
    const payload = [await made, ...raw];
    this.#outgoing.holdPages(block, normal, zero, pages, payload);
    await this.#write();
  }
}
