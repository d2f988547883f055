/**
 * The headers that a receive channel reads: where their bytes go, and the packet that is made of them, checked.
 *
 *     bytes 0 to 11      alike in both kinds; bit DEVICE_STATE of the flags tells which it is
 *     12 to ...          RAM: as long as the page size makes it (wire/packet.ts)
 *     12 to 275          device state (wire/device-state.ts)
 *
 * One buffer for both, and one PacketHeader for all packets. A RAM header that has come in whole is also read where it lies,
 * in the intake's landing.
 *
 * Who owns the bytes: the buffer and the landing are the channel's own, so nothing that was checked can change afterwards.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { METHODS } from '../methods/methods.js';
import type { Compression } from '../options.js';
import { quote } from '../printable.js';
import type { BlockDescription } from '../ram/block.js';
import { SET_UP } from '../set-up.js';
import {
  DEVICE_STATE_HEADER_BYTES,
  unfillDeviceState,
  type DeviceStateHeader,
} from '../wire/device-state.js';
import {
  MULTIFD_FLAG_DEVICE_STATE,
  PACKET_START_BYTES,
  PacketHeader,
  packetHeaderBytes,
  unfillPacket,
  unfillPacketStart,
  type PacketExpectation,
} from '../wire/packet.js';

export interface HeaderOptions {
  pageSize: number;
  compression: Compression;
  blocks: readonly BlockDescription[];
  /** The largest payload of a device. */
  deviceStateBytes: number;
  /** `idstr/instanceId` of the devices whose state is taken; undefined: whoever takes it looks at that. */
  devices: readonly string[] | undefined;
}

export class Headers {
  /** Of a RAM header. */
  readonly bytes: number;
  /** The RAM packet in hand. */
  readonly packet: PacketHeader;
  /** Where a packet's first 12 bytes go. */
  readonly start: Buffer;
  readonly #header: Buffer;
  readonly #expectation: PacketExpectation;
  readonly #options: HeaderOptions;

  constructor(options: HeaderOptions) {
    const { pageSize, compression, blocks } = options;
    this.#options = options;
    const byName = new Map(blocks.map((block, index) => [block.name, { index, size: block.size }]));
    this.#expectation = {
      pageSize,
      methodFlag: METHODS[compression].flag,
      findBlock: (name) => byName.get(name),
    };
    this.bytes = packetHeaderBytes(pageSize);
    this.packet = new PacketHeader(pageSize);
    this.#header = Buffer.alloc(Math.max(this.bytes, DEVICE_STATE_HEADER_BYTES));
    this.start = this.#header.subarray(0, PACKET_START_BYTES);
  }

  /** Where the rest of a RAM header goes. */
  get rest(): Uint8Array {
    return this.#header.subarray(PACKET_START_BYTES, this.bytes);
  }

  /** Where the rest of a device's header goes. */
  get deviceRest(): Uint8Array {
    return this.#header.subarray(PACKET_START_BYTES, DEVICE_STATE_HEADER_BYTES);
  }

  /** The first 12 bytes are there. @throws MultifdError ERR_MULTIFD_MAGIC, ERR_MULTIFD_VERSION */
  startsDeviceState(): boolean {
    return (unfillPacketStart(this.#header) & MULTIFD_FLAG_DEVICE_STATE) !== 0;
  }

  /** Of a header elsewhere, whose magic and version are looked at with all the rest. */
  isDeviceState(bytes: Buffer, at: number): boolean {
    return (bytes.readUInt32BE(at + PACKET_START_BYTES - 4) & MULTIFD_FLAG_DEVICE_STATE) !== 0;
  }

  /** A RAM header is there, here or elsewhere. @throws MultifdError all codes of unfillPacket() */
  unfill(bytes: Buffer = this.#header, at = 0): PacketHeader {
    unfillPacket(bytes, this.#expectation, this.packet, at);
    return this.packet;
  }

  /** A device's header is there. @throws MultifdError all codes of unfillDeviceState() */
  unfillDevice(): DeviceStateHeader {
    const { deviceStateBytes, devices } = this.#options;
    const device = unfillDeviceState(this.#header, deviceStateBytes);
    if (devices === undefined || devices.includes(`${device.idstr}/${device.instanceId}`)) return device;
    const expected = devices.length === 0 ? 'no device' : `one of ${devices.join(', ')}`;
    throw new MultifdError(
      'ERR_MULTIFD_DEVICE_STATE',
      receivedExpected(
        'device state for',
        `${quote(device.idstr)} instance ${device.instanceId}`,
        `${expected} (${SET_UP.devices})`,
      ),
    );
  }
}
