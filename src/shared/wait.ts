/**
 * Waiting on a word of shared memory, in one place. A short spin first: a packet takes 100 to 150 µs, a sleep and a
 * wake 25 to 60 (bench: handover). Then Atomics.waitAsync, which leaves the event loop to sockets and timers.
 *
 * waitAsync does not keep the process alive; the session's keep-alive timer does, and piscina's running tasks.
 */

/**
 * Until `words[index]` is no longer `seen`: undefined at once if it is not, else a promise.
 *
 * @param spin how many looks before sleeping
 */
export function waitChange(
  words: Int32Array,
  index: number,
  seen: number,
  spin: number,
): Promise<void> | undefined {
  for (let i = 0; i <= spin; i++) {
    if (Atomics.load(words, index) !== seen) return undefined;
  }
  const wait = Atomics.waitAsync(words, index, seen);
  return wait.async ? wait.value.then(ignore) : undefined;
}

function ignore(): void {}
