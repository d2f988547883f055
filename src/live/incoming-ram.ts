/**
 * A destination's RAM: the blocks that the source has named, held against those that are here; the pages that come on the main
 * stream; and whether all have come. Pages of the channels are the receiver's.
 *
 * On the calling thread, between two sync points: no page is on both ways within a phase.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import type { RAMBlock } from '../ram/block.js';
import { Windows } from '../ram/windows.js';
import type { Receiver } from '../recv/receiver.js';
import { SET_UP } from '../set-up.js';
import { quote } from '../stream/codes.js';
import type { OfferedBlock } from './destination-options.js';

/**
 * Are the blocks the same at both ends?
 *
 * @throws MultifdError ERR_MULTIFD_STREAM
 */
export function requireSameBlocks(offered: readonly OfferedBlock[], blocks: readonly RAMBlock[]): void {
  const here = new Map(blocks.map((block) => [block.name, block.size]));
  const bad = (what: string, received: unknown, expected: unknown): MultifdError =>
    new MultifdError(
      'ERR_MULTIFD_STREAM',
      `${receivedExpected(what, received, expected)} (${SET_UP.blocks})`,
    );
  for (const { name, size } of offered) {
    const expected = here.get(name);
    if (expected === undefined)
      throw bad('RAM block', quote(name), `one of ${[...here.keys()].map(quote).join(', ')}`);
    if (expected !== size) throw bad(`size of RAM block ${quote(name)}`, size, expected);
    here.delete(name);
  }
  const [missing] = here.keys();
  if (missing !== undefined) throw bad('RAM blocks', 'all', `${quote(missing)} as well`);
}

/** ZERO records: neighbours at once. */
export async function zeroPages(
  receiver: Receiver,
  block: string,
  offsets: readonly number[],
): Promise<void> {
  const size = receiver.pageBytes;
  for (let i = 0; i < offsets.length;) {
    let run = 1;
    while (offsets[i + run] === offsets[i] + run * size) run++;
    await receiver.zeroRange(block, offsets[i], run * size);
    i += run;
  }
}

/** A PAGE record: of a source that has pages which it does not send over the channels. */
export async function putPage(
  receiver: Receiver,
  blocks: readonly RAMBlock[],
  { block: name, offset, data }: { block: string; offset: number; data: Buffer },
): Promise<void> {
  // Says that it has come, as well.
  await receiver.zeroRange(name, offset, data.length);
  const block = blocks.find((one) => one.name === name) as RAMBlock;
  if (block.memory !== undefined) data.copy(block.memory.windowAt(offset), offset % Windows.WINDOW_BYTES);
  else await receiver.files.write(block, data, 0, data.length, block.base + offset);
}

/**
 * A guest whose memory is not whole must not be started: every source sends each page, once at least.
 *
 * @throws MultifdError ERR_MULTIFD_STREAM
 */
export function requireAllPages(receiver: Receiver): void {
  for (const block of receiver.blocks) {
    const came = receiver.received(block).count();
    if (came === block.pageCount) continue;
    const what = `RAM block ${quote(block.name)}: pages that have come by ram's END`;
    throw new MultifdError('ERR_MULTIFD_STREAM', receivedExpected(what, came, block.pageCount));
  }
}
