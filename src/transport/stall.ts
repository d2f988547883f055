/**
 * A watch over something that must move. One timer that looks now and then, rather than one that is set anew at each read
 * or write: those are many, and a timer costs as much as the read.
 */
import { performance } from 'node:perf_hooks';

/** Looks in the time that is allowed, and how rare they may be. */
const LOOKS = 8;
const LONGEST_MS = 1000;
/** A look that comes later than this beyond its period is that of a process that was stopped, and has not read since. */
const LATE_MS = 100;

/**
 * Calls `stalled`, once, when nothing has moved for `stallTimeoutMs`, or up to two looks more. A process that was stopped or
 * had no processor for a while starts again from there: what has come meanwhile waits to be read.
 *
 * @param moved a count that grows, bytes for instance; undefined while nothing is waited for
 * @returns ends the watch
 */
export function watchStall(
  stallTimeoutMs: number,
  moved: () => number | undefined,
  stalled: () => void,
): () => void {
  const periodMs = Math.max(1, Math.min(stallTimeoutMs / LOOKS, LONGEST_MS));
  let last = moved();
  let since = performance.now();
  let looked = since;
  const timer = setInterval(() => {
    const now = performance.now();
    const late = now - looked > 2 * periodMs + LATE_MS;
    const count = moved();
    looked = now;
    if (late || count === undefined || count !== last) {
      last = count;
      since = now;
    } else if (now - since >= stallTimeoutMs) {
      clearInterval(timer);
      stalled();
    }
  }, periodMs);
  return () => clearInterval(timer);
}
