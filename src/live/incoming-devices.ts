/**
 * What a destination keeps of its devices' state until all of the VM has come: the pieces that come over the channels
 * (device-pieces.ts), and the account of all bytes, theirs and those of the main stream.
 *
 *     channel: DEVICE_STATE --> take()                 a copy of the piece, where its device is one that is expected
 *     main stream: section  --> whole(), reserve()     the pieces in order, if they are exactly those that it says; or room
 *     load()                --> a Buffer, or, with `stream`, part by part
 *
 * What load() is given in one is made without a second copy of all: what comes over the main stream goes to its place in it at
 * once, and each piece is given back to the system as soon as it is copied.
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
    const { length } = piece.data;
    // Not of Node's pool, in which others' bytes lie beside it; and what goes to load() itself is as any other Buffer.
    const own = device.given.stream === true ? Buffer.allocUnsafeSlow(length) : givenBack(length);
    piece.data.copy(own);
    pieces.add(piece, own);
  }

  reserve(device: Device, bytes: number): Buffer | undefined {
    const pieces = this.#pieces.get(device);
    if (pieces !== undefined) pieces.whole({ bytes: 0, pieces: 0 });
    requireOneBuffer(device, bytes);
    this.#count(device, bytes);
    // Of memory that nobody has written the system gives none: it is taken as the bytes come, as with parts.
    return device.given.stream === true ? undefined : Buffer.allocUnsafeSlow(bytes);
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
  const data = parts.length === 1 && !isGivenBack(parts[0]) ? parts[0] : inOne(parts);
  parts.length = 0;
  return given.load(data, version);
}

/** Memory that inOne() can give back at once, and not only when it is collected. */
function givenBack(bytes: number): Buffer {
  return Buffer.from(new ArrayBuffer(bytes, { maxByteLength: bytes }), 0, bytes);
}

function isGivenBack({ buffer }: Buffer): boolean {
  return buffer instanceof ArrayBuffer && buffer.resizable;
}

function inOne(parts: readonly Buffer[]): Buffer {
  const data = Buffer.allocUnsafeSlow(parts.reduce((bytes, part) => bytes + part.length, 0));
  let at = 0;
  for (const part of parts) {
    at += part.copy(data, at);
    if (isGivenBack(part)) (part.buffer as ArrayBuffer).resize(0);
  }
  return data;
}

async function* oneByOne(parts: Buffer[]): AsyncGenerator<Buffer, void, undefined> {
  parts.reverse();
  for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
    yield part;
    // Whatever else is to be done here waits while gigabytes are loaded.
    await turnEventLoop();
  }
}
