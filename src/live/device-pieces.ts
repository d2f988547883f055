/**
 * A device's state that is too large for the main stream: in pieces, as DEVICE_STATE packets over the channels, each on
 * whichever is idle. What such a packet's payload is, and which pieces may come. device-sender.ts sends them;
 * incoming-devices.ts keeps them at a destination, migration/parked-devices.ts beside a file.
 *
 *     u32 0        version     the head is that of VFIO's packets in QEMU (10.0)
 *     u32 index    from 0 on
 *     u32 0        flags
 *     bytes        PIECE_BYTES, in the last piece 1 to PIECE_BYTES
 *
 * They go out behind SWITCHOVER_START and before the SYNC of ram's END, so all of them are there when that has come on every
 * channel; in any order, since channels keep none between them. How many they are, and how many bytes, is in the device's FULL
 * section behind ram's END (device-sections.ts): what is not exactly that is refused.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { refusal } from '../stream/codes.js';
import { type Named, type StateSize, nameOf } from './device-sections.js';

/**
 * As VFIO of QEMU cuts its state, and what a packet may have by default (option deviceStateBytes). A state that is no larger
 * goes over the main stream: it would be one packet, on one channel.
 */
export const PIECE_BYTES = 2 ** 20;
export const PIECE_HEAD_BYTES = 12;
const PIECE_VERSION = 0;

export interface Piece {
  index: number;
  /** A view of the payload. */
  data: Buffer;
}

export function fillPieceHead(payload: Buffer, index: number): void {
  payload.writeUInt32BE(PIECE_VERSION, 0);
  payload.writeUInt32BE(index, 4);
  payload.writeUInt32BE(0, 8);
}

/** @throws MultifdError ERR_MULTIFD_DEVICE_STATE */
export function decodePiece(device: Named, payload: Buffer): Piece {
  const bytes = payload.length - PIECE_HEAD_BYTES;
  if (bytes < 1 || bytes > PIECE_BYTES)
    throw bad(
      device,
      'bytes',
      Math.max(bytes, 0),
      `1 to ${PIECE_BYTES} behind a head of ${PIECE_HEAD_BYTES}`,
    );
  const version = payload.readUInt32BE(0);
  if (version !== PIECE_VERSION) throw bad(device, 'version', version, PIECE_VERSION);
  const flags = payload.readUInt32BE(8);
  if (flags !== 0) throw bad(device, 'flags', flags, 0);
  return { index: payload.readUInt32BE(4), data: payload.subarray(PIECE_HEAD_BYTES) };
}

/**
 * Those of one device that have come, in any order, and what is kept of each. All have PIECE_BYTES but the last one, so that
 * a peer cannot make what is kept for a piece cost more than the piece.
 */
export class Pieces<T> {
  readonly #device: Named;
  readonly #byIndex = new Map<number, T>();
  #bytes = 0;
  #highest = -1;
  /** Index of the one that is shorter. */
  #last: number | undefined;

  constructor(device: Named) {
    this.#device = device;
  }

  get count(): number {
    return this.#byIndex.size;
  }

  /** @throws MultifdError ERR_MULTIFD_DEVICE_STATE */
  add({ index, data }: Piece, kept: T): void {
    const device = this.#device;
    if (this.#byIndex.has(index)) throw bad(device, `index ${index}`, 'a second one', 'one');
    if (this.#last !== undefined && index > this.#last)
      throw bad(device, 'index', index, `below ${this.#last}, which is the last: it has fewer bytes`);
    if (data.length < PIECE_BYTES) {
      if (this.#highest > index)
        throw bad(device, `index ${index}: bytes`, data.length, `${PIECE_BYTES}: it is not the last`);
      this.#last = index;
    }
    this.#highest = Math.max(this.#highest, index);
    this.#bytes += data.length;
    this.#byIndex.set(index, kept);
  }

  /**
   * What is kept of all, in their order.
   *
   * @throws MultifdError ERR_MULTIFD_STREAM if they are not those that the device's section says
   */
  whole({ bytes, pieces }: StateSize): T[] {
    const what = `device ${nameOf(this.#device)}: `;
    if (this.count !== pieces)
      throw refusal('format', `${what}pieces of its state over the channels`, this.count, pieces);
    if (this.#bytes !== bytes)
      throw refusal('format', `${what}bytes of its state over the channels`, this.#bytes, bytes);
    const inOrder: T[] = [];
    for (let index = 0; index < pieces; index++) {
      if (!this.#byIndex.has(index))
        throw refusal('format', `${what}piece ${index} of its state`, 'none', `all of 0 to ${pieces - 1}`);
      inOrder.push(this.#byIndex.get(index) as T);
    }
    this.#byIndex.clear();
    return inOrder;
  }
}

function bad(device: Named, what: string, received: unknown, expected: unknown): MultifdError {
  const message = receivedExpected(
    `device ${nameOf(device)}: a piece of its state: ${what}`,
    received,
    expected,
  );
  return new MultifdError('ERR_MULTIFD_DEVICE_STATE', message);
}
