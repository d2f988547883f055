/**
 * Copies pages from or to memory that is shared. TypedArray.set(), and with it Buffer.copy() of Node 20, moves shared
 * memory word by word with atomic accesses, as the memory model has it; Buffer.fill() with a buffer of the same length is
 * the system's memcpy, in two thirds of the time from 64 KiB on. Guests change their pages at any moment anyway: who needs
 * a page whole has it sent again.
 */
const WORTH_BYTES = 65536;

export function copyPages(from: Uint8Array, at: number, to: Buffer, toAt: number, length: number): void {
  const pages = from.subarray(at, at + length);
  if (length < WORTH_BYTES) to.set(pages, toAt);
  else to.fill(pages, toAt, toAt + length);
}
