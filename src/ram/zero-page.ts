/**
 * Zero-page detection. A page that is not zero nearly always shows it in its first words, so those are looked at
 * before the whole page is compared. Runs over bytes only; used by the send channels (mode `multifd`), by the
 * queueing side (mode `legacy`) and by the receive channels (a zero page that is zero already is not written).
 */
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';

/**
 * Ranges are compared with this, piece by piece. Not with themselves, shifted, though that is faster by a third: a guest that
 * writes a pattern while it is looked at makes pieces equal that are not zero, up to pages that it never touched.
 */
const ZEROES = Buffer.alloc(MULTIFD_PACKET_BYTES);

/**
 * Are `length` bytes of `bytes` from `start` on all zero?
 *
 * @param length 1 or more
 */
export function isZeroRange(bytes: Buffer, start: number, length: number): boolean {
  // Some fields of guest pages (tags, counters, text) sit at the front, some only at the back of a half-filled page.
  if (bytes[start] !== 0 || bytes[start + (length >>> 1)] !== 0 || bytes[start + length - 1] !== 0)
    return false;
  const end = start + length;
  for (let at = start; at < end; at += ZEROES.length) {
    const piece = Math.min(ZEROES.length, end - at);
    if (bytes.compare(ZEROES, 0, piece, at, at + piece) !== 0) return false;
  }
  return true;
}

/** The plain version: the tests' oracle and the bench's baseline. */
export function isZeroRangePlain(bytes: Uint8Array, start: number, length: number): boolean {
  for (let i = start; i < start + length; i++) if (bytes[i] !== 0) return false;
  return true;
}
