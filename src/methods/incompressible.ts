/**
 * Pages that no codec makes smaller (random, encrypted or compressed bytes): told by a sample, so that they travel as they
 * are, inside the codec's own format. A deflate at level 1 spends more time on such a page than on any other.
 *
 * The sample is 8 stretches of 32 bytes. Of n bytes drawn evenly from 256 values, n * (n - 1) / 512 pairs are equal: 128 of
 * 256, give or take 11. Text has 2000, machine code 1300, bytes evenly from 190 values 172; a table that counts up has fewer
 * than even ones. A page that is taken for random and is not costs its compression, nothing else.
 */
const STRETCHES = 8;
const STRETCH_BYTES = 32;
const FEWEST_PAIRS = 80;
const MOST_PAIRS = 170;
/** After the first stretch 2 pairs are even, give or take 1.4. */
const MOST_PAIRS_FIRST = 9;

const counts = new Uint16Array(256);

/** @param size of the page at byte `at`, at least 4096 */
export function isIncompressible(bytes: Uint8Array, at: number, size: number): boolean {
  counts.fill(0);
  let pairs = countPairs(bytes, at);
  if (pairs > MOST_PAIRS_FIRST) return false;
  const apart = size / STRETCHES;
  for (let i = 1; i < STRETCHES && pairs <= MOST_PAIRS; i++) pairs += countPairs(bytes, at + i * apart);
  return pairs >= FEWEST_PAIRS && pairs <= MOST_PAIRS;
}

function countPairs(bytes: Uint8Array, at: number): number {
  let pairs = 0;
  for (let i = at; i < at + STRETCH_BYTES; i++) pairs += counts[bytes[i]]++;
  return pairs;
}

/**
 * Cuts the bytes of `pieces` into blocks with a header each.
 *
 * @param header makes the header of a block of this many bytes; `last`: no other follows
 * @returns headers and bytes, not copied
 */
export function inBlocks(
  pieces: readonly Uint8Array[],
  blockBytes: number,
  header: (bytes: number, last: boolean) => Buffer,
): Uint8Array[] {
  let left = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const blocks: Uint8Array[] = [];
  let room = 0;
  for (const piece of pieces) {
    for (let at = 0; at < piece.length;) {
      if (room === 0) {
        room = Math.min(blockBytes, left);
        left -= room;
        blocks.push(header(room, left === 0));
      }
      const count = Math.min(room, piece.length - at);
      blocks.push(piece.subarray(at, at + count));
      at += count;
      room -= count;
    }
  }
  return blocks;
}
