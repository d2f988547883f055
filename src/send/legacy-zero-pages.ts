/**
 * Zero pages of mode `legacy` (QEMU < 9.0), on the calling thread. They travel on the main stream, which is the
 * embedder's and is not ordered with the channels: so they are only noted, and at the sync the embedder's onZeroPages
 * hook is told of those that are still zero. A page that stops being zero before that is taken off the list.
 *
 *     take(page): zero --> noted, never in a slot        otherwise --> off the list, and the caller puts it into its slot
 *     sync(): report() --> onZeroPages(block, offset, length) for each run of them
 *
 * The bytes looked at are the embedder's, or, of a block of kind file, a copy in `#scratch`, which one read() at a time
 * fills: it is good until the next.
 */
import { MultifdError } from '../errors.js';
import type { CheckedSenderOptions } from '../options.js';
import { PageBitmap } from '../ram/bitmap.js';
import type { RAMBlock } from '../ram/block.js';
import type { MemorySource } from '../ram/memory.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { STOP_RUN } from '../shared/control.js';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import type { SessionAccess } from './session-access.js';
import type { Turns } from './turns.js';

type Access = Pick<SessionAccess, 'control' | 'check' | 'orStopped' | 'fail' | 'broken' | 'readFile'>;

export class LegacyZeroPages {
  readonly #session: Access;
  readonly #blocks: readonly RAMBlock[];
  readonly #pageSize: number;
  readonly #options: Pick<CheckedSenderOptions, 'onZeroPages'>;
  /** Of each block: zero when last queued. */
  readonly #zero: PageBitmap[];
  /** A packet's pages of a file. */
  readonly #scratch: Buffer | undefined;

  constructor(options: Pick<CheckedSenderOptions, 'blocks' | 'pageSize' | 'onZeroPages'>, session: Access) {
    this.#session = session;
    this.#blocks = options.blocks;
    this.#pageSize = options.pageSize;
    this.#options = options;
    this.#zero = options.blocks.map((block) => new PageBitmap(block.pageCount));
    if (options.blocks.some((block) => block.kind === 'file')) {
      this.#scratch = Buffer.allocUnsafeSlow(MULTIFD_PACKET_BYTES);
    }
  }

  /**
   * Is the page zero? Then it is noted.
   *
   * @param scratch pages read from a file, this one at position `i`; for other blocks undefined
   */
  take(block: RAMBlock, page: number, scratch: Buffer | undefined, i: number): boolean {
    const zero = this.#zero[block.index];
    if (this.#isZero(block, page, scratch, i)) {
      zero.testAndSet(page);
      return true;
    }
    zero.delete(page);
    return false;
  }

  #isZero(block: RAMBlock, page: number, scratch: Buffer | undefined, i: number): boolean {
    if (scratch !== undefined) return isZeroRange(scratch, i * this.#pageSize, this.#pageSize);
    const offset = page * this.#pageSize;
    const window = (block.memory as MemorySource).windowAt(offset);
    return isZeroRange(window, offset % Windows.WINDOW_BYTES, this.#pageSize);
  }

  /** Reads pages of a block of kind file, a packet's at most. */
  async read(block: RAMBlock, first: number, end: number): Promise<Buffer> {
    const scratch = this.#scratch as Buffer;
    const length = (end - first) * this.#pageSize;
    try {
      let done = 0;
      while (done < length) {
        const position = block.base + first * this.#pageSize + done;
        const bytesRead = await this.#session.readFile(block, scratch, done, length - done, position);
        if (bytesRead === 0) throw new Error('the file has become shorter');
        done += bytesRead;
      }
    } catch (thrown) {
      await this.#session.broken(thrown, 'ERR_MULTIFD_IO', `RAM block ${JSON.stringify(block.name)}: read`);
    }
    return scratch;
  }

  /** Tells the hook of all that is noted; then nothing is any more. A hook that fails ends the session. */
  async report(turns: Pick<Turns, 'isDue' | 'take'>): Promise<void> {
    const session = this.#session;
    const { control } = session;
    for (const block of this.#blocks) {
      const zero = this.#zero[block.index];
      for (const { page, count } of zero.runs()) {
        try {
          await session.orStopped(this.#hook(block, page * this.#pageSize, count * this.#pageSize));
        } catch (thrown) {
          if (control.stopped === STOP_RUN) {
            session.fail(new MultifdError('ERR_MULTIFD_HOOK', 'onZeroPages failed', { cause: thrown }));
          }
        }
        if (control.stopped !== STOP_RUN) await session.check();
        if (turns.isDue()) await turns.take();
      }
      zero.clear();
    }
  }

  async #hook(block: RAMBlock, offset: number, length: number): Promise<void> {
    await this.#options.onZeroPages?.(block, offset, length);
  }
}
