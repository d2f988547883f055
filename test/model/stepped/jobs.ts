/** What the clients of a run hand over, by numbers that are in the bytes themselves. */
export const PAGE_SIZE = 65536;
export const PACKET_PAGES = 8;
/** Page p of the shared block is number 1 + p, of the private one this and p, a device state this and its instance. */
export const PRIVATE_NUMBERS = 1000;
export const DEVICE_NUMBERS = 2000;
export const DEVICE_BYTES = 64;
export const SHARED_PAGES = 64;
export const PRIVATE_PAGES = 16;

/** At both ends of the bytes. */
export function stamp(bytes: Uint8Array, number: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  view.setUint32(0, number);
  view.setUint32(bytes.length - 4, number);
}

export function isStamped(bytes: Uint8Array, number: number): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return view.getUint32(0) === number && view.getUint32(bytes.length - 4) === number;
}

/** @param first number of its first page */
export function stampPages(memory: Uint8Array, first: number): void {
  for (let at = 0, i = 0; at < memory.length; at += PAGE_SIZE, i++)
    stamp(memory.subarray(at, at + PAGE_SIZE), first + i);
}
