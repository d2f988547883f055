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

/** Pages `first`, `first + 1`, ... into entries `at` and on. */
export function fillRange(pages: Uint32Array | Uint16Array, at: number, first: number, count: number): void {
  for (let i = 0; i < count; i++) pages[at + i] = first + i;
}
