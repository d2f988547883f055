/**
 * Copies pages from or to memory that is shared. TypedArray.set(), and with it Buffer.copy() of Node 20, moves shared
 * memory word by word with atomic accesses, as the memory model has it; Buffer.fill() with a buffer of the same length is
 * the system's memcpy, in two thirds of the time from 64 KiB on. Guests change their pages at any moment anyway: who needs
 * a page whole has it sent again.
 */
const WORTH_BYTES = 65536;

export function copyPages(from: Buffer, at: number, to: Buffer, toAt: number, length: number): void {
  if (length < WORTH_BYTES) from.copy(to, toAt, at, at + length);
  else to.fill(from.subarray(at, at + length), toAt, toAt + length);
}
