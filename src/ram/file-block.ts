/**
 * A file-backed RAM block: pread and pwrite in place.
 *
 *     given by          who opens                          who closes
 *     path              each thread, for itself            the same
 *     descriptor `fd`   whoever gave it, before            the same, after the session: threads share it, and with it
 *                                                          the file itself, whatever its name means by now
 *
 * In a channel's thread synchronous (FileBlock): the thread is the channel's own, and the page cache answers at memory
 * speed. On the calling thread asynchronous (BlockFile).
 */
import fs from 'node:fs';
import { promisify } from 'node:util';
import { MultifdError, receivedExpected } from '../errors.js';
import type { BlockDescription } from './block.js';

export class FileBlock {
  readonly #fd: number;
  readonly #isShared: boolean;
  readonly #name: string;
  readonly #base: number;

  /** @throws MultifdError ERR_MULTIFD_IO */
  constructor(block: BlockDescription, mode: 'r' | 'r+') {
    this.#name = block.name;
    this.#base = block.base;
    this.#isShared = block.fd !== undefined;
    try {
      this.#fd = block.fd ?? fs.openSync(block.path as string, mode);
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
    if (!this.#isShared) fs.closeSync(this.#fd);
  }

  #failed(error: unknown, what: string): MultifdError {
    return MultifdError.wrap(error, 'ERR_MULTIFD_IO', `RAM block ${JSON.stringify(this.#name)}: ${what}`);
  }
}

const readFd = promisify(fs.read);
const writeFd = promisify(fs.write);

/** The block's file on the calling thread; positions are the file's. */
export class BlockFile {
  readonly #fd: number;
  readonly #opened: fs.promises.FileHandle | undefined;

  private constructor(fd: number, opened: fs.promises.FileHandle | undefined) {
    this.#fd = fd;
    this.#opened = opened;
  }

  static async open(block: { path?: string; fd?: number }, mode: 'r' | 'r+'): Promise<BlockFile> {
    if (block.fd !== undefined) return new BlockFile(block.fd, undefined);
    const handle = await fs.promises.open(block.path as string, mode);
    return new BlockFile(handle.fd, handle);
  }

  async read(into: Uint8Array, at: number, length: number, position: number): Promise<{ bytesRead: number }> {
    return readFd(this.#fd, into, at, length, position);
  }

  async write(
    from: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<{ bytesWritten: number }> {
    return writeFd(this.#fd, from, at, length, position);
  }

  async close(): Promise<void> {
    await this.#opened?.close();
  }
}

/** Checked once by the calling thread, so that a wrong path fails before any channel starts. */
export function checkFileBlock(block: BlockDescription, mode: 'r' | 'r+'): void {
  const what = `RAM block ${JSON.stringify(block.name)}`;
  let stats: fs.Stats;
  try {
    stats = block.fd === undefined ? fs.statSync(block.path as string) : fs.fstatSync(block.fd);
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', `${what}: open`);
  }
  // Opening a pipe would wait for its other end.
  if (!stats.isFile() && !stats.isBlockDevice() && !stats.isCharacterDevice()) {
    const file = block.path ?? `descriptor ${block.fd}`;
    throw new MultifdError('ERR_MULTIFD_IO', `${what}: ${file} is neither a regular file nor a device`);
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
