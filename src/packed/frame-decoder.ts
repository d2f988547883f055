/**
 * One frame of a packed file, decoded in the calling thread by whatever zstd there is (methods/zstd.ts), our own at the last.
 *
 * The file is not trusted. A frame must be one frame, whole, of exactly as many bytes as the seek table says: the walker
 * (methods/zstd-frame.ts) holds it against that before a decoder sees it, and no decoder writes beyond the room that it is
 * given, so that a frame that bombs costs what it was said to have at the most.
 */
import { MultifdError } from '../errors.js';
import { createFrameReceiver } from '../methods/zstd.js';
import { FrameWalker } from '../methods/zstd-frame.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import type { SeekTable } from './seek-table.js';

export class FrameDecoder {
  readonly #table: SeekTable;
  #receiver = createFrameReceiver();

  constructor(table: SeekTable) {
    this.#table = table;
  }

  /**
   * @param packed all of it
   * @param into as many bytes as it has
   * @throws MultifdError STREAM_ERRORS.file
   */
  decode(frame: number, packed: Buffer, into: Buffer): void {
    try {
      const parts = new FrameWalker().walk(packed, into.length);
      if (parts.length !== 1 || !parts[0].ends)
        throw new MultifdError(STREAM_ERRORS.file, 'received none that is whole, expected one');
      // Nothing to wait for: it decodes in this thread.
      void this.#receiver.decompress(packed, into);
    } catch (cause) {
      // It may be within that frame still.
      this.#receiver.close();
      this.#receiver = createFrameReceiver();
      const at = this.#table.packedOffset(frame);
      const { message } = MultifdError.wrap(cause, STREAM_ERRORS.file, 'zstd');
      throw new MultifdError(STREAM_ERRORS.file, `packed file: frame ${frame} at byte ${at}: ${message}`, {
        cause,
      });
    }
  }

  close(): void {
    this.#receiver.close();
  }
}

/** A file that ends within a frame. */
export function cutFrame(table: SeekTable, frame: number, received: number): MultifdError {
  const [at, end] = [table.packedOffset(frame), table.packedOffset(frame + 1)];
  const message = `packed file: frame ${frame} at byte ${at}: received ${received} bytes, expected ${end - at}: the file has become shorter`;
  return new MultifdError(STREAM_ERRORS.eof, message);
}
