/** What a session does not see: that its main stream stands still as well. */
import { performance } from 'node:perf_hooks';
import { MultifdError } from '../errors.js';

export const STALL_TIMEOUT_MS = 30_000;

/**
 * Ends a migration in which nothing has moved for `stallTimeoutMs`, on any connection. A host or a network that is gone
 * without a word leaves its connections open for hours.
 *
 * @param moved bytes on all connections so far
 * @returns to be called at the end
 */
export function watchStall(
  stallTimeoutMs: number,
  moved: () => number,
  stalled: (error: MultifdError) => void,
): () => void {
  let bytes = moved();
  let since = performance.now();
  const timer = setInterval(
    () => {
      const now = performance.now();
      if (moved() !== bytes) {
        bytes = moved();
        since = now;
      } else if (now - since >= stallTimeoutMs) {
        clearInterval(timer);
        const message = `nothing has moved on the main stream or any channel for ${stallTimeoutMs} ms`;
        stalled(new MultifdError('ERR_MULTIFD_STALL', message));
      }
    },
    Math.max(1, Math.min(stallTimeoutMs / 8, 1000)),
  );
  return () => clearInterval(timer);
}
