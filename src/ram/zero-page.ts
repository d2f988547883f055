/**
 * Zero-page detection. A page that is not zero nearly always shows it in its first words, so those are looked at
 * before the whole page is compared. Runs over bytes only; used by the send channels (mode `multifd`), by the
 * queueing side (mode `legacy`) and by the receive channels (a zero page that is zero already is not written).
 */
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';

const ZEROES = Buffer.alloc(MULTIFD_PACKET_BYTES);

/**
 * Are `length` bytes of `bytes` from `start` on all zero?
 *
 * @param length at most 512 KiB
 */
export function isZeroRange(bytes: Buffer, start: number, length: number): boolean {
  // Some fields of guest pages (tags, counters, text) sit at the front, some only at the back of a half-filled page.
  if (bytes[start] !== 0 || bytes[start + (length >>> 1)] !== 0 || bytes[start + length - 1] !== 0)
    return false;
  return bytes.compare(ZEROES, 0, length, start, start + length) === 0;
}

/** The plain version: the tests' oracle and the bench's baseline. */
export function isZeroRangePlain(bytes: Uint8Array, start: number, length: number): boolean {
  for (let i = start; i < start + length; i++) if (bytes[i] !== 0) return false;
  return true;
}
