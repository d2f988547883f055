/**
 * A watch over something that must move. One timer that looks now and then, rather than one that is set anew at each read
 * or write: those are many, and a timer costs as much as the read.
 */
import { performance } from 'node:perf_hooks';

/** Looks in the time that is allowed, and how rare they may be. */
const LOOKS = 8;
const LONGEST_MS = 1000;

/**
 * Calls `stalled`, once, when nothing has moved for `stallTimeoutMs`, or up to an eighth more.
 *
 * @param moved a count that grows, bytes for instance; undefined while nothing is waited for
 * @returns ends the watch
 */
export function watchStall(
  stallTimeoutMs: number,
  moved: () => number | undefined,
  stalled: () => void,
): () => void {
  let last = moved();
  let since = performance.now();
  const timer = setInterval(
    () => {
      const now = performance.now();
      const count = moved();
      if (count === undefined || count !== last) {
        last = count;
        since = now;
      } else if (now - since >= stallTimeoutMs) {
        clearInterval(timer);
        stalled();
      }
    },
    Math.max(1, Math.min(stallTimeoutMs / LOOKS, LONGEST_MS)),
  );
  return () => clearInterval(timer);
}
