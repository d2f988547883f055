/**
 * Payloads as a real QEMU makes them, one zstd frame that goes on from packet to packet, also where the running Node has
 * no zstd that could flush: one frame over all of the bytes is cut at its blocks, which hold 128 KiB of pages each.
 *
 *     packet 0   frame header | block | block | block | block
 *     packet n                  block | block | block | block
 */
const FRAME_START_BYTES = 5;
const BLOCK_HEADER_BYTES = 3;
const BLOCKS_PER_PACKET = 4;
const BLOCK_TYPE_RLE = 1;

/** @param frame over `packets` packets of 512 KiB */
export function endlessFrame(frame: Buffer, packets: number): Buffer[] {
  const single = (frame[4] & 0x20) !== 0;
  let at = FRAME_START_BYTES + (single ? 0 : 1) + [single ? 1 : 0, 2, 4, 8][frame[4] >>> 6];
  let start = 0;
  const payloads: Buffer[] = [];
  for (let blocks = 1; payloads.length < packets; blocks++) {
    const header = frame.readUIntLE(at, BLOCK_HEADER_BYTES);
    at += BLOCK_HEADER_BYTES + (((header >>> 1) & 3) === BLOCK_TYPE_RLE ? 1 : header >>> 3);
    if (blocks % BLOCKS_PER_PACKET !== 0) continue;
    payloads.push(frame.subarray(start, at));
    start = at;
  }
  return payloads;
}
