/**
 * A file-backed RAM block in a channel's thread: pread and pwrite in place, each channel with a descriptor of its own.
 * Synchronous: the thread is the channel's own, and the page cache answers at memory speed.
 */
import fs from 'node:fs';
import { MultifdError, receivedExpected } from '../errors.js';
import type { BlockDescription } from './block.js';

export class FileBlock {
  readonly #fd: number;
  readonly #name: string;
  readonly #base: number;

  /** @throws MultifdError ERR_MULTIFD_IO */
  constructor(block: BlockDescription, mode: 'r' | 'r+') {
    this.#name = block.name;
    this.#base = block.base;
    try {
      this.#fd = fs.openSync(block.path as string, mode);
    } catch (error) {
      throw this.#failed(error, 'open');
    }
  }

  /** Fills `into` from `at` on with `length` bytes from byte `offset` of the block. */
  read(into: Uint8Array, at: number, length: number, offset: number): void {
    let done = 0;
    while (done < length) {
      let count: number;
      try {
        count = fs.readSync(this.#fd, into, at + done, length - done, this.#base + offset + done);
      } catch (error) {
        throw this.#failed(error, `read at ${offset + done}`);
      }
      if (count === 0) {
        throw new MultifdError(
          'ERR_MULTIFD_IO',
          receivedExpected(`RAM block ${JSON.stringify(this.#name)}: bytes at ${offset}`, done, length),
        );
      }
      done += count;
    }
  }

  write(from: Uint8Array, at: number, length: number, offset: number): void {
    let done = 0;
    while (done < length) {
      try {
        done += fs.writeSync(this.#fd, from, at + done, length - done, this.#base + offset + done);
      } catch (error) {
        throw this.#failed(error, `write at ${offset + done}`);
      }
    }
  }

  close(): void {
    fs.closeSync(this.#fd);
  }

  #failed(error: unknown, what: string): MultifdError {
    return MultifdError.wrap(error, 'ERR_MULTIFD_IO', `RAM block ${JSON.stringify(this.#name)}: ${what}`);
  }
}

/** Checked once by the calling thread, so that a wrong path fails before any channel starts. */
export function checkFileBlock(block: BlockDescription, mode: 'r' | 'r+'): void {
  const what = `RAM block ${JSON.stringify(block.name)}`;
  let stats: fs.Stats;
  try {
    stats = fs.statSync(block.path as string);
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', `${what}: open`);
  }
  // Opening a pipe would wait for its other end.
  if (!stats.isFile() && !stats.isBlockDevice() && !stats.isCharacterDevice()) {
    throw new MultifdError('ERR_MULTIFD_IO', `${what}: ${block.path} is neither a regular file nor a device`);
  }
  const file = new FileBlock(block, mode);
  file.close();
  const { size } = stats;
  // Devices report 0 and are taken at their word.
  if (stats.isFile() && size < block.base + block.size) {
    throw new MultifdError(
      'ERR_MULTIFD_IO',
      receivedExpected(`${what}: file size`, size, `at least ${block.base + block.size}`),
    );
  }
}
