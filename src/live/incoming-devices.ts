/**
 * What a destination keeps of its devices' state until all of the VM has come: the pieces that come over the channels
 * (device-pieces.ts), and the account of all bytes, theirs and those of the main stream.
 *
 *     channel: DEVICE_STATE --> take()                 a copy of the piece, where its device is one that is expected
 *     main stream: section  --> whole(), reserve()     the pieces in order, if they are exactly those that it says; or room
 *     load()                --> a Buffer, or, with `stream`, part by part
 *
 * On the calling thread. The peer is not trusted: whatever comes is counted against `maxDeviceBytes` before it is kept.
 */
import { constants } from 'node:buffer';
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import { refusal } from '../stream/codes.js';
import type { CheckedDestinationDevice } from './destination-options.js';
import { Pieces, decodePiece } from './device-pieces.js';
import {
  type Expected,
  type ReceivedState,
  type StateSize,
  findDevice,
  nameOf,
  unknownDevice,
} from './device-sections.js';

type Device = CheckedDestinationDevice;

export class IncomingDevices implements Expected<Device> {
  readonly devices: readonly Device[];
  readonly #all: number;
  #left: number;
  readonly #pieces = new Map<Device, Pieces<Buffer>>();

  constructor(devices: readonly Device[], maxDeviceBytes: number) {
    this.devices = devices;
    this.#all = this.#left = maxDeviceBytes;
  }

  /**
   * A DEVICE_STATE packet, in any order.
   *
   * @param payload copied
   * @throws MultifdError ERR_MULTIFD_DEVICE_STATE; ERR_MULTIFD_STREAM for too many bytes
   */
  take(idstr: string, instanceId: number, payload: Buffer): void {
    const device = findDevice(this.devices, { idstr, instanceId });
    if (device === undefined)
      throw unknownDevice(this.devices, { idstr, instanceId }, 'ERR_MULTIFD_DEVICE_STATE');
    const piece = decodePiece(device, payload);
    this.#count(device, piece.data.length);
    let pieces = this.#pieces.get(device);
    if (pieces === undefined) this.#pieces.set(device, (pieces = new Pieces(device)));
    // Not of Node's pool, in which others' bytes lie beside it.
    const own = Buffer.allocUnsafeSlow(piece.data.length);
    piece.data.copy(own);
    pieces.add(piece, own);
  }

  reserve(device: Device, bytes: number): void {
    const pieces = this.#pieces.get(device);
    if (pieces !== undefined) pieces.whole({ bytes: 0, pieces: 0 });
    requireOneBuffer(device, bytes);
    this.#count(device, bytes);
  }

  whole(device: Device, size: StateSize): Buffer[] {
    requireOneBuffer(device, size.bytes);
    return (this.#pieces.get(device) ?? new Pieces<Buffer>(device)).whole(size);
  }

  #count(device: Device, bytes: number): void {
    if (bytes > this.#left) {
      const expected = `at most ${this.#left} more (option maxDeviceBytes, ${this.#all} for all devices together)`;
      throw refusal('limit', `device ${nameOf(device)}: bytes of its state`, bytes, expected);
    }
    this.#left -= bytes;
  }
}

/** Where a device takes its state in one, Node has to have Buffers that large. */
function requireOneBuffer(device: Device, bytes: number): void {
  if (device.given.stream === true || bytes <= constants.MAX_LENGTH) return;
  const expected = `at most ${constants.MAX_LENGTH}, as Node's Buffers; or its stream: true`;
  throw refusal('limit', `device ${nameOf(device)}: bytes of its state`, bytes, expected);
}

/** Calls its load(). The parts are given away: what it does not keep is free. */
export function load({ device: { given }, version, parts }: ReceivedState<Device>): void | Promise<void> {
  if (given.stream === true) return given.load(oneByOne(parts), version);
  const data = parts.length === 1 ? parts[0] : Buffer.concat(parts);
  parts.length = 0;
  return given.load(data, version);
}

async function* oneByOne(parts: Buffer[]): AsyncGenerator<Buffer, void, undefined> {
  parts.reverse();
  for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
    yield part;
    // Whatever else is to be done here waits while gigabytes are loaded.
    await turnEventLoop();
  }
}
