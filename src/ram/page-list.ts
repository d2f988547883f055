/**
 * Lists of page indexes, and the runs in them: pages that lie side by side. Leaf functions, compiled within the first
 * milliseconds of a migration.
 */

/** From entry `i` on, how many pages lie side by side, `limit` at most. */
export function runLength(pages: Uint32Array | Uint16Array, i: number, limit: number): number {
  const ahead = pages[i] - i;
  let end = i + 1;
  while (end < i + limit && pages[end] === ahead + end) end++;
  return end - i;
}

/** Entries of a list that are put in order are fewer. */
const ENTRIES = 256;

/**
 * Entries of a list in the order of their pages, a page that is there twice in the order of the list; as keys, of which
 * keyPage() and keyEntry() tell the two. A page index has up to 32 bits.
 *
 * @param keys room for `count` of them, at most 256
 */
export function orderPages(keys: Float64Array, pages: Uint32Array, count: number): Float64Array {
  for (let i = 0; i < count; i++) keys[i] = pages[i] * ENTRIES + i;
  return keys.subarray(0, count).sort();
}

export function keyPage(key: number): number {
  return Math.floor(key / ENTRIES);
}

export function keyEntry(key: number): number {
  return key % ENTRIES;
}

/** Pages `first`, `first + 1`, ... into entries `at` and on. */
export function fillRange(pages: Uint32Array | Uint16Array, at: number, first: number, count: number): void {
  for (let i = 0; i < count; i++) pages[at + i] = first + i;
}
