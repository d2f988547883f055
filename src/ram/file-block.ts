/**
 * A file-backed RAM block: pread and pwrite in place, by one descriptor for all threads, since positions are their own and
 * the file is the same whatever its name means by now.
 *
 *     given by          who opens                          who closes
 *     path              the calling thread, a file once    the same, when the threads are gone
 *     descriptor `fd`   whoever gave it, before            the same, after the session
 *
 * In a channel's thread synchronous (FileBlock): the thread is the channel's own, and the page cache answers at memory
 * speed; with option directIo by the file's second descriptor (direct-io.ts), and the disk answers. On the calling thread
 * asynchronous (BlockFiles).
 */
import fs from 'node:fs';
import { promisify } from 'node:util';
import { MultifdError, receivedExpected } from '../errors.js';
import type { BlockDescription, RAMBlock } from './block.js';
import { directError, endsWithin } from './direct-io.js';

export class FileBlock {
  /** By O_DIRECT: memory, place and length must suit it. */
  readonly isDirect: boolean;
  readonly #fd: number;
  readonly #name: string;
  readonly #base: number;

  constructor(block: BlockDescription) {
    this.#name = block.name;
    this.#base = block.base;
    this.isDirect = block.directFd !== undefined;
    this.#fd = block.directFd ?? (block.fd as number);
  }

  /** Fills `into` from `at` on with `length` bytes from byte `offset` of the block. */
  read(into: Uint8Array, at: number, length: number, offset: number): void {
    let done = 0;
    while (done < length) {
      let count = 0;
      try {
        if (!this.isDirect || !endsWithin(done)) {
          count = fs.readSync(this.#fd, into, at + done, length - done, this.#base + offset + done);
        }
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

  /** The pieces one behind the other, from byte `offset` of the block on, in one call. */
  writePieces(pieces: readonly Uint8Array[], offset: number): void {
    let left = pieces.slice();
    let at = offset;
    while (left.length > 0) {
      let count: number;
      try {
        count = fs.writevSync(this.#fd, left, this.#base + at);
      } catch (error) {
        throw this.#failed(error, `write at ${at}`);
      }
      at += count;
      left = behind(left, count);
    }
  }

  #failed(error: unknown, what: string): MultifdError {
    const where = `RAM block ${JSON.stringify(this.#name)}: ${what}`;
    return this.isDirect ? directError(error, where) : MultifdError.wrap(error, 'ERR_MULTIFD_IO', where);
  }
}

/** What is left of the pieces behind their first `count` bytes. */
function behind(pieces: Uint8Array[], count: number): Uint8Array[] {
  let skip = count;
  let i = 0;
  while (i < pieces.length && skip >= pieces[i].length) skip -= pieces[i++].length;
  const left = pieces.slice(i);
  if (skip > 0) left[0] = left[0].subarray(skip);
  return left;
}

const readFd = promisify(fs.read);
const writeFd = promisify(fs.write);

/**
 * The files of a session's blocks on the calling thread. Who uses a descriptor by its number must be through before it is
 * closed: the number may be another file's at once.
 */
export class BlockFiles {
  readonly #opened = new Map<string, number>();
  readonly #pending = new Set<Promise<unknown>>();

  /**
   * Checks the blocks in files, so that a wrong path fails before any channel starts, and opens each file, once: from here
   * on it is this file for all threads, whatever its name means later.
   *
   * @throws MultifdError ERR_MULTIFD_IO
   */
  static open(blocks: readonly RAMBlock[], mode: 'r' | 'r+'): BlockFiles {
    const files = new BlockFiles();
    try {
      for (const block of blocks) {
        if (block.kind !== 'file') continue;
        const { path } = block;
        if (path !== undefined) {
          const fd = files.#opened.get(path) ?? openBlockFile(block, path, mode);
          files.#opened.set(path, fd);
          block.fd = fd;
        }
        checkBlockFile(block, block.fd as number);
      }
    } catch (error) {
      files.#closeNow();
      throw error;
    }
    return files;
  }

  /** Positions are the file's. @returns bytes read */
  async read(
    block: RAMBlock,
    into: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number> {
    return (await this.#during(readFd(block.fd as number, into, at, length, position))).bytesRead;
  }

  /** @returns bytes written */
  async write(
    block: RAMBlock,
    from: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number> {
    return (await this.#during(writeFd(block.fd as number, from, at, length, position))).bytesWritten;
  }

  async #during<T>(step: Promise<T>): Promise<T> {
    this.#pending.add(step);
    try {
      return await step;
    } finally {
      this.#pending.delete(step);
    }
  }

  /** To be called when no thread uses them any more. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#pending);
    this.#closeNow();
  }

  #closeNow(): void {
    for (const fd of this.#opened.values()) fs.closeSync(fd);
    this.#opened.clear();
  }
}

function openBlockFile(block: RAMBlock, path: string, mode: 'r' | 'r+'): number {
  try {
    requireFile(block, fs.statSync(path), path);
    return fs.openSync(path, mode);
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', `RAM block ${JSON.stringify(block.name)}: open`);
  }
}

function checkBlockFile(block: RAMBlock, fd: number): void {
  const what = `RAM block ${JSON.stringify(block.name)}`;
  let stats: fs.Stats;
  try {
    stats = fs.fstatSync(fd);
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', `${what}: open`);
  }
  requireFile(block, stats, block.path ?? `descriptor ${fd}`);
  // Its table has been held against it.
  if (block.packed !== undefined) return;
  // Devices report 0 and are taken at their word.
  if (stats.isFile() && stats.size < block.base + block.size) {
    throw new MultifdError(
      'ERR_MULTIFD_IO',
      receivedExpected(`${what}: file size`, stats.size, `at least ${block.base + block.size}`),
    );
  }
}

/** Opening a pipe would wait for its other end. */
function requireFile(block: RAMBlock, stats: fs.Stats, file: string): void {
  if (stats.isFile() || stats.isBlockDevice() || stats.isCharacterDevice()) return;
  const what = `RAM block ${JSON.stringify(block.name)}`;
  throw new MultifdError('ERR_MULTIFD_IO', `${what}: ${file} is neither a regular file nor a device`);
}
