/**
 * Zero-page detection. A page that is not zero nearly always shows it in its first words, so those are looked at
 * before the whole page is compared. Runs over bytes only; used by the send channels (mode `multifd`), by the
 * queueing side (mode `legacy`) and by the receive channels (a zero page that is zero already is not written).
 */
/** Ranges up to this are compared with zeroes; longer ones with themselves, which is one stream through the cache less. */
const SHORT_BYTES = 16384;
const ZEROES = Buffer.alloc(SHORT_BYTES);
/** How far a long range is shifted for that, by measurement (bench: kernels). */
const SHIFT_BYTES = 256;

/**
 * Are `length` bytes of `bytes` from `start` on all zero?
 *
 * @param length 1 or more
 */
export function isZeroRange(bytes: Buffer, start: number, length: number): boolean {
  // Some fields of guest pages (tags, counters, text) sit at the front, some only at the back of a half-filled page.
  if (bytes[start] !== 0 || bytes[start + (length >>> 1)] !== 0 || bytes[start + length - 1] !== 0)
    return false;
  if (length <= SHORT_BYTES) return bytes.compare(ZEROES, 0, length, start, start + length) === 0;
  // The front is zero, and each byte is the one before it by SHIFT_BYTES.
  const end = start + length;
  if (bytes.compare(ZEROES, 0, SHIFT_BYTES, start, start + SHIFT_BYTES) !== 0) return false;
  return bytes.compare(bytes, start, end - SHIFT_BYTES, start + SHIFT_BYTES, end) === 0;
}

/** The plain version: the tests' oracle and the bench's baseline. */
export function isZeroRangePlain(bytes: Uint8Array, start: number, length: number): boolean {
  for (let i = start; i < start + length; i++) if (bytes[i] !== 0) return false;
  return true;
}
