/**
 * The digests of RAM for option verify, in a channel's thread, of either end, beside its connection: when the calling thread
 * asks, all threads take chunks of shared memory and files until none is left. See proof.ts.
 *
 * Nothing is sent or put in place meanwhile: the channel's loop sleeps. The memory is the embedder's, or the session's, and
 * only read.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import type { BlockDescription } from './ram/block.js';
import { CHUNK_BYTES, Chunks, digestOf } from './ram/chunks.js';
import { FileBlock } from './ram/file-block.js';
import { Windows } from './ram/windows.js';
import { STOP_RUN, type Control } from './shared/control.js';
import { ProofTable } from './shared/proof-table.js';

/** Some milliseconds. */
const TURN_CHUNKS = 8;
/** How many digests are told at a time to whoever waits for them. */
export const TELL_CHUNKS = 64;

/**
 * Returns when there is nothing to do any more, also for a session that ends unasked.
 *
 * @param proof the session's table; undefined without option verify
 * @throws MultifdError ERR_MULTIFD_IO
 */
export async function proveWhenAsked(
  control: Control,
  proof: SharedArrayBuffer | undefined,
  blocks: readonly BlockDescription[],
): Promise<void> {
  if (proof === undefined || !(await control.proofAsked())) return;
  const table = new ProofTable(proof);
  const chunks = new Chunks(blocks.map(({ size }) => size));
  const windows = blocks.map((block) => block.buffer && new Windows(block.buffer, block.base, block.size));
  const files = blocks.map((block) => (block.kind === 'file' ? new FileBlock(block) : undefined));
  const scratch = files.some((file) => file !== undefined) ? Buffer.allocUnsafeSlow(CHUNK_BYTES) : undefined;
  for (let turn = 1; control.stopped === STOP_RUN; turn++) {
    const index = table.claim();
    if (index === undefined) return;
    const { block, offset, length } = chunks.at(index);
    const file = files[block];
    const window = windows[block]?.windowAt(offset);
    let digest: Uint8Array;
    if (window !== undefined) digest = digestOf(window, offset % Windows.WINDOW_BYTES, length);
    else if (file !== undefined && scratch !== undefined) {
      file.read(scratch, 0, length, offset);
      digest = digestOf(scratch, 0, length);
    } else {
      // Private memory is the calling thread's.
      continue;
    }
    const done = table.put(index, digest);
    if (done % TELL_CHUNKS === 0 || done === table.count) control.postReady();
    if (turn % TURN_CHUNKS === 0) await yieldToLoop();
  }
}
