/**
 * Packets that are made and not yet with the socket, in a send channel's thread: headers, and the pieces of their
 * payloads, in the order they go out. Several packets may be held back for one write.
 *
 *     ring of headers   [ on its way | held back -> | left over ]     pieces   [ headers | payload, payload | headers | ...
 *
 * Who owns the bytes: the headers are this file's, and stay as they are until the write after the next. A payload's
 * pieces are not copied: whoever holds them here keeps them until that write is with the kernel; and pages, with
 * zeroCopySend, until the connection has released them. Which pieces are pages is said to it.
 */
import { report, type ChannelTask } from '../channel-thread.js';
import { METHODS } from '../methods/methods.js';
import type { BlockDescription } from '../ram/block.js';
import type { Control, Slot } from '../shared/control.js';
import {
  STAT_BYTES,
  STAT_DEVICE_STATES,
  STAT_NORMAL_PAGES,
  STAT_PACKETS,
  STAT_SYNCS,
  STAT_ZERO_PAGES,
} from '../shared/layout.js';
import type { SendConnection } from '../transport/send-connection.js';
import { DEVICE_STATE_HEADER_BYTES, fillDeviceState } from '../wire/device-state.js';
import {
  MULTIFD_FLAG_SYNC,
  RAMBLOCK_NAME_BYTES,
  fillPacket,
  packetHeaderBytes,
  type PacketToSend,
} from '../wire/packet.js';

/** Packets without payload that are held back for one write while there are more to come. */
export const MAX_HELD = 16;
export const NO_PAYLOAD: readonly Uint8Array[] = [];
const NO_PAGES = new Uint32Array(0);

export interface OutgoingOptions extends Pick<ChannelTask, 'id' | 'compression'> {
  pageSize: number;
  blocks: readonly BlockDescription[];
}

export class Outgoing {
  readonly #control: Control;
  readonly #id: number;
  readonly #pageSize: number;
  readonly #stats: Float64Array;
  readonly #names: Buffer[];
  readonly #methodFlag: number;
  /** A ring: what is on its way, what is held back, and what is left over at its end. */
  readonly #headers: Buffer;
  #headerTurn = 0;
  /** Those from here to #headerTurn are not in #pieces yet. */
  #headersFrom = 0;
  readonly #pieces: Uint8Array[] = [];
  /** Of each piece: does it hold pages? */
  readonly #arePages: boolean[] = [];
  #packets = 0;
  #weight = 0;

  constructor(task: OutgoingOptions, control: Control) {
    this.#control = control;
    this.#id = task.id;
    this.#pageSize = task.pageSize;
    this.#stats = control.stats(task.id);
    this.#names = task.blocks.map((block) => {
      const name = Buffer.alloc(RAMBLOCK_NAME_BYTES);
      name.write(block.name, 'latin1');
      return name;
    });
    this.#methodFlag = METHODS[task.compression].flag;
    this.#headers = Buffer.alloc(3 * (MAX_HELD + 2) * packetHeaderBytes(task.pageSize));
  }

  /** Packets held back. */
  get packets(): number {
    return this.#packets;
  }

  /** What was said of them by weigh(). */
  get weight(): number {
    return this.#weight;
  }

  /** Bytes of payload that are held back, for whoever bounds them. */
  weigh(bytes: number): void {
    this.#weight += bytes;
  }

  /**
   * A packet of pages.
   *
   * @param pages as in PacketToSend
   */
  holdPages(
    block: number,
    normal: number,
    zero: number,
    pages: Uint32Array | number,
    payload: readonly Uint8Array[],
  ): void {
    let payloadBytes = 0;
    for (const piece of payload) payloadBytes += piece.length;
    this.#holdPacket(
      {
        flags: this.#methodFlag,
        normalPages: normal,
        zeroPages: zero,
        nextPacketSize: payloadBytes,
        packetNum: this.#control.nextPacketNum(),
        ramblock: this.#names[block],
        pages,
      },
      payload,
    );
    this.#stats[STAT_NORMAL_PAGES] += normal;
    this.#stats[STAT_ZERO_PAGES] += zero;
  }

  holdSync(): void {
    this.#holdPacket(
      {
        flags: MULTIFD_FLAG_SYNC,
        normalPages: 0,
        zeroPages: 0,
        nextPacketSize: 0,
        packetNum: this.#control.nextPacketNum(),
        ramblock: undefined,
        pages: NO_PAGES,
        pagesAlloc: this.#control.syncPagesAlloc,
      },
      NO_PAYLOAD,
    );
    this.#stats[STAT_SYNCS] += 1;
  }

  /** The slot's payload; it stays the slot's. */
  holdDeviceState(slot: Slot): void {
    const at = this.#nextHeader(DEVICE_STATE_HEADER_BYTES);
    const header = this.#headers.subarray(at, at + DEVICE_STATE_HEADER_BYTES);
    fillDeviceState(header, { idstr: slot.idstr, instanceId: slot.instanceId, nextPacketSize: slot.length });
    this.hold(slot.data.subarray(0, slot.length));
    this.#stats[STAT_PACKETS] += 1;
    this.#stats[STAT_DEVICE_STATES] += 1;
  }

  /** Any bytes, behind the headers that there are. */
  hold(piece: Uint8Array, isPages = false): void {
    this.#holdHeaders();
    this.#stats[STAT_BYTES] += piece.length;
    this.#push(piece, isPages);
  }

  /** All that is held becomes one write, if there is anything; the connection has none on its way. */
  writeTo(connection: Pick<SendConnection, 'write'>): void {
    this.#holdHeaders();
    const pieces = this.#pieces;
    if (pieces.length === 0) return;
    connection.write(pieces, this.#arePages);
    pieces.length = 0;
    this.#arePages.length = 0;
    this.#packets = 0;
    this.#weight = 0;
  }

  #holdPacket(packet: PacketToSend, payload: readonly Uint8Array[]): void {
    const header = this.#nextHeader(packetHeaderBytes(this.#pageSize));
    fillPacket(this.#headers, this.#pageSize, packet, header);
    for (const piece of payload) this.hold(piece, true);
    this.#packets++;
    this.#stats[STAT_PACKETS] += 1;
    if (this.#control.trace) {
      report('multifd_send_fill', {
        id: this.#id,
        packetNum: packet.packetNum,
        normal: packet.normalPages,
        zero: packet.zeroPages,
        flags: packet.flags,
        nextPacketSize: packet.nextPacketSize,
      });
    }
  }

  /** Where there is room for the next header: headers side by side go out as one piece. */
  #nextHeader(bytes: number): number {
    if (this.#headerTurn + bytes > this.#headers.length) {
      this.#holdHeaders();
      this.#headerTurn = 0;
      this.#headersFrom = 0;
    }
    const at = this.#headerTurn;
    this.#headerTurn += bytes;
    this.#stats[STAT_BYTES] += bytes;
    return at;
  }

  #holdHeaders(): void {
    if (this.#headerTurn > this.#headersFrom)
      this.#push(this.#headers.subarray(this.#headersFrom, this.#headerTurn), false);
    this.#headersFrom = this.#headerTurn;
  }

  #push(piece: Uint8Array, isPages: boolean): void {
    this.#pieces.push(piece);
    this.#arePages.push(isPages);
  }
}
