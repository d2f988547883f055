/**
 * Takes the words of a dirty bitmap that guest threads set bits in, at any time and atomically: each bit that is set is
 * either seen now or stays for the next time, and none is lost.
 *
 *     guest thread                                 here, on the calling thread
 *     writes to the page
 *     Atomics.or(words, page >> 5, bit)    ---->   Atomics.exchange(words, i, 0)    then the page is read
 *
 * Words of memory that is not shared are of the calling thread alone; the same calls do for them.
 */

/** @param take called with each word that has a bit, and its index */
export function takeDirtyWords(
  words: Int32Array,
  from: number,
  to: number,
  take: (index: number, bits: number) => void,
): void {
  for (let i = from; i < to; i++) {
    // Looked at first: most words are 0, and an exchange takes the cache line away from the guest's processors.
    if (Atomics.load(words, i) === 0) continue;
    take(i, Atomics.exchange(words, i, 0));
  }
}
