/** Bitmaps of blocks, cleared on the calling thread in turns of the event loop: all of 4 TiB queued are 128 MiB. */
import type { PageBitmap } from '../ram/bitmap.js';
import type { Turns } from './turns.js';

/** @throws MultifdError the session's error, if it stops meanwhile */
export async function clearInTurns(
  bitmaps: readonly (PageBitmap | undefined)[],
  turns: Pick<Turns, 'isDue' | 'take'>,
): Promise<void> {
  for (const bitmap of bitmaps) {
    const steps = bitmap?.clearing();
    while (steps?.next().done === false) {
      if (turns.isDue()) await turns.take();
    }
  }
}
