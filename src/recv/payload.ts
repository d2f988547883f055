/**
 * A packet's payload on a receive channel: where its bytes are read to, and how they become pages in their place.
 *
 *     method   block                 read into                      decoded into            then
 *     none     shared RAM            guest RAM, run by run          -                       marked as received
 *     none     shared, short runs    the pages' buffer              -                       placed
 *     none     file                  the pages' buffer              -                       placed
 *     none     private, stream       the slot                       -                       offered
 *     others   shared RAM, file      the compressed one's buffer    the pages' buffer       placed
 *     others   private, stream       the compressed one's buffer    the slot                offered
 *
 * "Placed" is by placement.ts, zero pages as well; "offered" is the channel's, to the calling thread.
 *
 * Who owns the bytes: both buffers are the channel's own, so nothing that was checked can change afterwards; a codec that
 * decodes into a buffer of its own keeps it until the next packet. Nothing is allocated for a packet but views.
 */
import type { ReceiveMethod } from '../methods/methods.js';
import { alignedBuffer } from '../ram/aligned.js';
import type { Control } from '../shared/control.js';
import { MAX_PAYLOAD_BYTES, MULTIFD_PACKET_BYTES, type PacketHeader } from '../wire/packet.js';
import { Placement, type PlacementOptions } from './placement.js';

export class Payload {
  readonly #control: Control;
  readonly #id: number;
  readonly #pageSize: number;
  readonly #method: ReceiveMethod | undefined;
  readonly #placement: Placement;
  /** A compressed payload. */
  readonly #compressed: Buffer | undefined;
  /** Decoded pages, or pages on their way to a file. */
  readonly #pages: Buffer;
  /** The pages that are placed: in #pages, or in the codec's own buffer. */
  #decoded: Buffer;
  /** Method none into shared RAM: the page that the next run begins with. */
  #nextPage = 0;
  /** The payload of method none lies in guest RAM already, not in #pages. */
  #direct = false;

  /** @param method undefined for method none */
  constructor(
    options: PlacementOptions & { id: number },
    control: Control,
    method: ReceiveMethod | undefined,
  ) {
    this.#control = control;
    this.#id = options.id;
    this.#pageSize = options.pageSize;
    this.#method = method;
    if (method !== undefined) this.#compressed = Buffer.allocUnsafeSlow(MAX_PAYLOAD_BYTES);
    const isDirect = options.blocks.some(({ directFd }) => directFd !== undefined);
    this.#pages = isDirect
      ? alignedBuffer(MULTIFD_PACKET_BYTES)
      : Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES);
    this.#decoded = this.#pages;
    this.#placement = new Placement(options, this.#pages);
  }

  /** Takes the files' descriptors. @throws MultifdError ERR_MULTIFD_IO */
  openFiles(): void {
    this.#placement.openFiles();
  }

  /** The header of a packet with normal pages was read. @returns where the payload's first bytes go */
  begin(packet: PacketHeader): Uint8Array {
    if (this.#compressed !== undefined) return this.#compressed.subarray(0, packet.nextPacketSize);
    this.#direct = this.#placement.isDirect(packet);
    if (this.#direct) {
      this.#nextPage = 0;
      return this.#nextRun(packet);
    }
    return this.#pagesBuffer(packet).subarray(0, packet.nextPacketSize);
  }

  /** @returns where the next bytes go; undefined when all of them are there */
  next(packet: PacketHeader): Uint8Array | undefined {
    if (!this.#direct || this.#nextPage >= packet.normalPages) return undefined;
    return this.#nextRun(packet);
  }

  /** Method none into shared RAM: the next pages that lie side by side. */
  #nextRun(packet: PacketHeader): Uint8Array {
    const page = this.#nextPage;
    const run = this.#placement.runLength(packet.pages, page, packet.normalPages);
    this.#nextPage += run;
    return this.#placement.view(packet, page, run);
  }

  /** Where pages are put together: for private memory in the slot, since the calling thread takes them from there. */
  #pagesBuffer(packet: PacketHeader): Buffer {
    return this.#placement.reaches(packet.block) ? this.#pages : this.#control.slotOf(this.#id).data;
  }

  /** @returns undefined if it is done; else the codec's promise, whose value is to be given to takeDecoded() */
  decode(packet: PacketHeader): ReturnType<ReceiveMethod['decompress']> {
    if (this.#method === undefined) return undefined;
    const buffer = this.#pagesBuffer(packet);
    this.#decoded = buffer.subarray(0, packet.normalPages * this.#pageSize);
    const payload = (this.#compressed as Buffer).subarray(0, packet.nextPacketSize);
    return this.#method.decompress(payload, this.#decoded);
  }

  /** @param own the codec's own buffer, unless it has filled ours */
  takeDecoded(packet: PacketHeader, own: Buffer | void): void {
    if (own === undefined) return;
    // Private memory: the calling thread takes the pages from the slot.
    if (!this.#placement.reaches(packet.block)) own.copy(this.#decoded);
    else this.#decoded = own;
  }

  /**
   * Puts the packet's pages in place, then its zero pages.
   *
   * @returns whether that could be done here; if not, the calling thread has to
   */
  place(packet: PacketHeader): boolean {
    if (!this.#placement.reaches(packet.block)) return false;
    if (this.#method !== undefined) this.#placement.place(packet, this.#decoded);
    else this.#placement.place(packet, this.#direct ? undefined : this.#pages);
    return true;
  }
}
