/** What a session does not see: that its main stream stands still as well. */
import { MultifdError } from '../errors.js';
import { watchStall } from '../transport/stall.js';

export const STALL_TIMEOUT_MS = 30_000;

/**
 * Ends a migration in which nothing has moved for `stallTimeoutMs`, on any connection. A host or a network that is gone
 * without a word leaves its connections open for hours.
 *
 * @param moved bytes on all connections so far
 * @returns to be called at the end
 */
export function watchMigration(
  stallTimeoutMs: number,
  moved: () => number,
  stalled: (error: MultifdError) => void,
): () => void {
  return watchStall(stallTimeoutMs, moved, () => {
    const message = `nothing has moved on the main stream or any channel for ${stallTimeoutMs} ms`;
    stalled(new MultifdError('ERR_MULTIFD_STALL', message));
  });
}

/**
 * Waits for what only the other side can say, as long as it shows that it is there: it may have to write all of a guest to its
 * disk first, and says so meanwhile.
 *
 * @param moved as above, of the connection that it says it on
 * @throws MultifdError ERR_MULTIFD_STALL with message `late`
 */
export async function whileMoving<T>(
  wait: Promise<T>,
  stallTimeoutMs: number,
  moved: () => number,
  late: string,
): Promise<T> {
  let unwatch!: () => void;
  const stalled = new Promise<never>((_, reject) => {
    unwatch = watchStall(stallTimeoutMs, moved, () => reject(new MultifdError('ERR_MULTIFD_STALL', late)));
  });
  try {
    return await Promise.race([wait, stalled]);
  } finally {
    unwatch();
  }
}
