/**
 * The hello ("initial packet"), 64 bytes, first thing on each channel. All integers big-endian.
 *
 *     off  size
 *       0     4   magic    0x11223344
 *       4     4   version  1
 *       8    16   uuid     of the source VM, raw, textual order; 16 zero bytes if it has none
 *      24     1   id       channel number, 0 .. channels-1
 *      25    39   reserved, sent as 0, not checked; of them
 *      32    16   key      of a try of a migration that is carried on (stream/resume-section.ts), between two of ours alone
 *
 * Encoded by each send channel (worker thread), decoded by the receiver's listener (calling thread).
 */
import { MultifdError, hex32, receivedExpected } from '../errors.js';
import { SET_UP } from '../set-up.js';

export const MULTIFD_MAGIC = 0x11223344;
export const MULTIFD_VERSION = 1;
export const HELLO_BYTES = 64;
export const UUID_BYTES = 16;

const OFF_VERSION = 4;
const OFF_UUID = 8;
const OFF_ID = 24;
const OFF_KEY = 32;
const KEY_BYTES = 16;

export interface Hello {
  /** 16 raw bytes. */
  uuid: Uint8Array;
  /** Channel number, 0..255. */
  id: number;
}

/** @param key of 16 bytes */
export function encodeHello(hello: Hello, key?: Uint8Array): Buffer {
  const bytes = Buffer.alloc(HELLO_BYTES);
  bytes.writeUInt32BE(MULTIFD_MAGIC, 0);
  bytes.writeUInt32BE(MULTIFD_VERSION, OFF_VERSION);
  bytes.set(hello.uuid, OFF_UUID);
  bytes.writeUInt8(hello.id, OFF_ID);
  if (key !== undefined) bytes.set(key, OFF_KEY);
  return bytes;
}

export function keyOfHello(bytes: Buffer): Buffer {
  return bytes.subarray(OFF_KEY, OFF_KEY + KEY_BYTES);
}

/** What a receiver expects of a hello. */
export interface HelloExpectation {
  /** 16 raw bytes; all zero for a VM without one, which matches only another without. Undefined: any. */
  uuid: Uint8Array | undefined;
  channels: number;
}

/**
 * Decodes and checks in QEMU's order: magic, version, uuid, id. QEMU's comparison lets id == channels through,
 * which is past its slots; here `id < channels` holds.
 *
 * @throws MultifdError ERR_MULTIFD_MAGIC, _VERSION, _UUID, _CHANNEL_ID
 */
export function decodeHello(bytes: Buffer, expected: HelloExpectation): Hello {
  const magic = bytes.readUInt32BE(0);
  if (magic !== MULTIFD_MAGIC) {
    throw new MultifdError(
      'ERR_MULTIFD_MAGIC',
      receivedExpected('hello magic', hex32(magic), hex32(MULTIFD_MAGIC)),
    );
  }
  const version = bytes.readUInt32BE(OFF_VERSION);
  if (version !== MULTIFD_VERSION) {
    throw new MultifdError(
      'ERR_MULTIFD_VERSION',
      receivedExpected('hello version', version, MULTIFD_VERSION),
    );
  }
  const uuid = Buffer.from(bytes.subarray(OFF_UUID, OFF_UUID + UUID_BYTES));
  if (expected.uuid !== undefined && !uuid.equals(expected.uuid)) {
    const wanted = `${formatUuid(expected.uuid)} (${SET_UP.uuid})`;
    throw new MultifdError('ERR_MULTIFD_UUID', receivedExpected('hello uuid', formatUuid(uuid), wanted));
  }
  const id = bytes.readUInt8(OFF_ID);
  if (id >= expected.channels) {
    throw new MultifdError(
      'ERR_MULTIFD_CHANNEL_ID',
      receivedExpected(
        'hello channel id',
        id,
        `less than ${expected.channels} (at most ${expected.channels - 1})`,
      ) + `: the source has more channels than the ${expected.channels} here: ${SET_UP.channels}`,
    );
  }
  return { uuid, id };
}

/** Textual form of 16 raw bytes; 'none' for 16 zero bytes. */
export function formatUuid(uuid: Uint8Array): string {
  const hex = Buffer.from(uuid).toString('hex');
  if (/^0+$/.test(hex)) return 'none';
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/** 16 raw bytes of a textual uuid, or undefined if it is not one. */
export function parseUuid(text: string): Buffer | undefined {
  if (!/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i.test(text)) return undefined;
  return Buffer.from(text.replaceAll('-', ''), 'hex');
}
