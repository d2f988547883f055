/**
 * The bytes of a frame as they lie in the packed file, read synchronously; with option directIo from an O_DIRECT descriptor,
 * with what lies before and behind it up to a block's edge.
 */
import fs from 'node:fs';
import { MultifdError } from '../errors.js';
import { ALIGNMENT, alignedBuffer } from '../ram/aligned.js';
import { directError, endsWithin } from '../ram/direct-io.js';

export class PackedBytes {
  readonly #fd: number;
  readonly #isDirect: boolean;
  readonly #room: Buffer;

  /** @param most bytes that are read at once */
  constructor(fd: number, directFd: number | undefined, most: number) {
    this.#fd = directFd ?? fd;
    this.#isDirect = directFd !== undefined;
    this.#room = this.#isDirect
      ? alignedBuffer(most + 2 * ALIGNMENT)
      : Buffer.allocUnsafeSlow(Math.max(1, most));
  }

  /**
   * @returns as many of `length` bytes from `position` on as the file has; valid until the next call
   * @throws MultifdError ERR_MULTIFD_IO
   */
  read(position: number, length: number): Buffer {
    const before = this.#isDirect ? position % ALIGNMENT : 0;
    const from = position - before;
    const wanted = before + length;
    const asked = this.#isDirect ? Math.ceil(wanted / ALIGNMENT) * ALIGNMENT : wanted;
    let done = 0;
    try {
      while (done < asked && !(this.#isDirect && endsWithin(done))) {
        const count = fs.readSync(this.#fd, this.#room, done, asked - done, from + done);
        if (count === 0) break;
        done += count;
      }
    } catch (error) {
      const what = `read at ${from + done}`;
      throw this.#isDirect ? directError(error, what) : MultifdError.wrap(error, 'ERR_MULTIFD_IO', what);
    }
    return this.#room.subarray(before, Math.max(before, Math.min(done, wanted)));
  }
}
