/**
 * A guest that goes on working while it is migrated: between two syncs some of its pages are rewritten, some become
 * zero, some zero pages stop being zero. One page of every 16, so that the amount is known beforehand.
 */
import { randomFillSync } from 'node:crypto';
import type { BlockPlan, GuestRam } from './guest-ram.js';
import type { Random } from './random.js';

/** One page of this many is dirtied in a round. */
const GROUP_PAGES = 16;
/** How much of a page that stays non-zero is rewritten, in bytes. */
const REWRITE_BYTES = 64;

export interface DirtyCounts {
  rewritten: number;
  becameZero: number;
  stoppedBeingZero: number;
}

export interface DirtyPage {
  block: BlockPlan;
  /** Bytes. */
  offset: number;
}

/** How many pages a round dirties. */
export function dirtyPageCount(blocks: readonly BlockPlan[], pageSize: number): number {
  return blocks.reduce((sum, block) => sum + Math.ceil(block.size / pageSize / GROUP_PAGES), 0);
}

/** Dirties one page of every group, and says which; `counts` goes up. */
export function* dirtyPages(
  ram: GuestRam,
  pageSize: number,
  random: Random,
  counts: DirtyCounts,
): Generator<DirtyPage> {
  const zeroPage = Buffer.alloc(pageSize);
  for (const block of ram.blocks) {
    const pages = block.size / pageSize;
    for (let group = 0; group < pages; group += GROUP_PAGES) {
      const page = group + random(Math.min(GROUP_PAGES, pages - group));
      const offset = page * pageSize;
      dirtyPage(ram, block, offset, zeroPage, random, counts);
      yield { block, offset };
    }
  }
}

function dirtyPage(
  ram: GuestRam,
  block: BlockPlan,
  offset: number,
  zeroPage: Buffer,
  random: Random,
  counts: DirtyCounts,
): void {
  const pageSize = zeroPage.length;
  if (ram.read(block, offset, pageSize).equals(zeroPage)) {
    ram.write(block, offset, pageSize, (bytes) => randomFillSync(bytes));
    counts.stoppedBeingZero++;
  } else if (random(4) === 0) {
    ram.write(block, offset, pageSize, (bytes) => bytes.fill(0));
    counts.becameZero++;
  } else {
    const at = offset + random(pageSize / REWRITE_BYTES) * REWRITE_BYTES;
    ram.write(block, at, REWRITE_BYTES, (bytes) => randomFillSync(bytes));
    counts.rewritten++;
  }
}
