/**
 * The DEVICE_STATE packet (QEMU >= 10.0), sent for devices that opt in (VFIO): 276 bytes of header, big-endian.
 *
 *     off  size
 *       0     4   magic 0x11223344
 *       4     4   version 1
 *       8     4   flags 0x40; SYNC must not be set
 *      12   256   idstr, NUL-terminated within the field
 *     268     4   instance_id
 *     272     4   next_packet_size, > 0; that many payload bytes follow
 *
 * It carries no packet_num.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { SET_UP } from '../set-up.js';
import { MULTIFD_MAGIC, MULTIFD_VERSION } from './hello.js';
import { MULTIFD_FLAG_DEVICE_STATE, MULTIFD_FLAG_SYNC, unfillPacketStart } from './packet.js';

export const DEVICE_STATE_HEADER_BYTES = 276;
export const IDSTR_BYTES = 256;

const OFF_FLAGS = 8;
const OFF_IDSTR = 12;
const OFF_INSTANCE_ID = OFF_IDSTR + IDSTR_BYTES;
const OFF_NEXT_PACKET_SIZE = OFF_INSTANCE_ID + 4;

export interface DeviceStateHeader {
  idstr: string;
  instanceId: number;
  /** Payload bytes after the header. */
  nextPacketSize: number;
}

export function fillDeviceState(header: Buffer, packet: DeviceStateHeader): void {
  header.writeUInt32BE(MULTIFD_MAGIC, 0);
  header.writeUInt32BE(MULTIFD_VERSION, 4);
  header.writeUInt32BE(MULTIFD_FLAG_DEVICE_STATE, OFF_FLAGS);
  header.fill(0, OFF_IDSTR, OFF_INSTANCE_ID);
  header.write(packet.idstr, OFF_IDSTR, IDSTR_BYTES - 1, 'latin1');
  header.writeUInt32BE(packet.instanceId, OFF_INSTANCE_ID);
  header.writeUInt32BE(packet.nextPacketSize, OFF_NEXT_PACKET_SIZE);
}

/**
 * @param maxBytes the largest payload that the receiver takes
 * @throws MultifdError ERR_MULTIFD_MAGIC, ERR_MULTIFD_VERSION, ERR_MULTIFD_DEVICE_STATE
 */
export function unfillDeviceState(header: Buffer, maxBytes: number): DeviceStateHeader {
  const flags = unfillPacketStart(header);
  if ((flags & MULTIFD_FLAG_SYNC) !== 0) {
    throw new MultifdError(
      'ERR_MULTIFD_DEVICE_STATE',
      receivedExpected('device-state flags', `0x${flags.toString(16)}`, 'SYNC (0x1) not set'),
    );
  }
  const idField = header.subarray(OFF_IDSTR, OFF_INSTANCE_ID);
  const nul = idField.indexOf(0);
  if (nul < 0) {
    throw new MultifdError(
      'ERR_MULTIFD_DEVICE_STATE',
      receivedExpected('device-state idstr', `${IDSTR_BYTES} bytes without NUL`, 'a NUL within the field'),
    );
  }
  const nextPacketSize = header.readUInt32BE(OFF_NEXT_PACKET_SIZE);
  if (nextPacketSize === 0 || nextPacketSize > maxBytes) {
    throw new MultifdError(
      'ERR_MULTIFD_DEVICE_STATE',
      receivedExpected(
        'device-state next_packet_size',
        nextPacketSize,
        `1 to ${maxBytes} (${SET_UP.deviceStateBytes})`,
      ),
    );
  }
  return {
    idstr: idField.toString('latin1', 0, nul),
    instanceId: header.readUInt32BE(OFF_INSTANCE_ID),
    nextPacketSize,
  };
}
