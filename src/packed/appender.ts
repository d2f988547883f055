/**
 * Writes a file from its begin to its end. Small pieces are gathered; large ones go out as they are, for a copy of each costs
 * what the threads could pack with. With option directIo all are gathered, and go through an O_DIRECT descriptor, but for the
 * last bytes, which do not fill a block of the device.
 *
 * Who owns the bytes: the caller, again when append() has settled.
 */
import type { FileHandle } from 'node:fs/promises';
import { ALIGNMENT, alignedBuffer } from '../ram/aligned.js';
import { writeDirect } from '../ram/direct-io.js';
import { writeAt } from '../stream/positioned-file.js';

const GATHER_BYTES = 4 * 2 ** 20;
const LARGE_BYTES = 2 ** 16;

export class Appender {
  readonly #file: FileHandle;
  readonly #direct: FileHandle | undefined;
  readonly #gathered: Buffer;
  #bytes = 0;
  #position = 0;

  constructor(file: FileHandle, direct: FileHandle | undefined) {
    this.#file = file;
    this.#direct = direct;
    this.#gathered =
      direct === undefined ? Buffer.allocUnsafeSlow(GATHER_BYTES) : alignedBuffer(GATHER_BYTES);
  }

  /** @throws MultifdError ERR_MULTIFD_IO */
  async append(bytes: Uint8Array): Promise<void> {
    if (this.#direct === undefined && bytes.length >= LARGE_BYTES) {
      await this.#flush();
      await writeAt(this.#file, bytes, this.#position);
      this.#position += bytes.length;
      return;
    }
    for (let at = 0; at < bytes.length;) {
      const piece = bytes.subarray(at, at + GATHER_BYTES - this.#bytes);
      this.#gathered.set(piece, this.#bytes);
      this.#bytes += piece.length;
      at += piece.length;
      if (this.#bytes === GATHER_BYTES) await this.#flush();
    }
  }

  /** @returns the file's length */
  async end(): Promise<number> {
    await this.#flush();
    return this.#position;
  }

  async #flush(): Promise<void> {
    const aligned = this.#direct === undefined ? 0 : this.#bytes - (this.#bytes % ALIGNMENT);
    if (this.#direct !== undefined && aligned > 0)
      await writeDirect(this.#direct, this.#gathered, aligned, this.#position);
    const rest = this.#gathered.subarray(aligned, this.#bytes);
    if (rest.length > 0) await writeAt(this.#file, rest, this.#position + aligned);
    this.#position += this.#bytes;
    this.#bytes = 0;
  }
}
