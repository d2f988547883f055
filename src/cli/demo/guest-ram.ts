/**
 * A guest's RAM as the demo holds it, on either side: shared memory, one SharedArrayBuffer a block; or one file with
 * the blocks one after the other. The engine gets it as `engineBlocks`; the demo itself writes the image, dirties
 * pages and takes digests through read() and write(), a piece at a time.
 *
 * File access is synchronous: pieces are small, and what is worked on is in the page cache.
 */
import fs from 'node:fs';
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import type { RAMBlockOptions } from '../../index.js';
import { allocateRam } from '../../ram/allocate.js';
import { CliError } from '../cli-error.js';

export interface BlockPlan {
  name: string;
  /** Bytes. */
  size: number;
}

/** Largest piece for read() and write(), and how much is done between two turns of the event loop. */
export const PIECE_BYTES = 2 ** 20;

export abstract class GuestRam {
  readonly blocks: readonly BlockPlan[];

  constructor(blocks: readonly BlockPlan[]) {
    this.blocks = blocks;
  }

  abstract readonly engineBlocks: RAMBlockOptions[];
  /** The bytes there; valid until the next call. */
  abstract read(block: BlockPlan, offset: number, length: number): Buffer;
  /** `fill` writes all of the bytes it is given, whose content is undefined. */
  abstract write(block: BlockPlan, offset: number, length: number, fill: (bytes: Buffer) => void): void;
  abstract close(): void;

  /** Calls `visit` for every piece of a block, and lets the event loop turn in between. */
  async eachPiece(
    block: BlockPlan,
    signal: AbortSignal,
    visit: (offset: number, length: number) => void,
  ): Promise<void> {
    for (let offset = 0; offset < block.size; offset += PIECE_BYTES) {
      visit(offset, Math.min(PIECE_BYTES, block.size - offset));
      await turnEventLoop();
      signal.throwIfAborted();
    }
  }

  /** Writes zeroes everywhere: afterwards the kernel has a page of memory, or of the file, behind each byte. */
  async prefault(signal: AbortSignal): Promise<void> {
    for (const block of this.blocks) {
      await this.eachPiece(block, signal, (offset, length) => {
        this.write(block, offset, length, (bytes) => bytes.fill(0));
      });
    }
  }
}

export class SharedRam extends GuestRam {
  readonly engineBlocks: RAMBlockOptions[];
  readonly #buffers = new Map<BlockPlan, SharedArrayBuffer>();

  /**
   * @param hugePages where the system has them
   * @throws CliError ERR_CLI_ROOM
   */
  constructor(blocks: readonly BlockPlan[], hugePages = false) {
    super(blocks);
    this.engineBlocks = blocks.map((block) => {
      const memory = allocate(block, hugePages);
      this.#buffers.set(block, memory);
      return { name: block.name, memory };
    });
  }

  read(block: BlockPlan, offset: number, length: number): Buffer {
    return Buffer.from(this.#buffers.get(block) as SharedArrayBuffer, offset, length);
  }

  write(block: BlockPlan, offset: number, length: number, fill: (bytes: Buffer) => void): void {
    fill(this.read(block, offset, length));
  }

  close(): void {
    this.#buffers.clear();
  }
}

function allocate(block: BlockPlan, hugePages: boolean): SharedArrayBuffer {
  try {
    return hugePages ? allocateRam(block.size) : new SharedArrayBuffer(block.size);
  } catch (cause) {
    throw new CliError('ERR_CLI_ROOM', `no memory for block ${block.name} of ${block.size} bytes`, { cause });
  }
}

export class FileRam extends GuestRam {
  readonly engineBlocks: RAMBlockOptions[];
  readonly path: string;
  readonly #fd: number;
  readonly #offsets = new Map<BlockPlan, number>();
  readonly #scratch = Buffer.allocUnsafeSlow(PIECE_BYTES);

  /** @param mode `r`: an existing file, never written; `w+`: made anew, as a hole of the blocks' sizes */
  constructor(blocks: readonly BlockPlan[], path: string, mode: 'r' | 'w+') {
    super(blocks);
    this.path = path;
    let end = 0;
    this.engineBlocks = blocks.map((block) => {
      const offset = end;
      this.#offsets.set(block, offset);
      end += block.size;
      return { name: block.name, file: path, offset, size: block.size };
    });
    // A guest's memory is its owner's, and no link or file of anybody's that is there is written to.
    this.#fd = fs.openSync(path, mode === 'r' ? 'r' : 'wx+', 0o600);
    if (mode === 'w+') fs.ftruncateSync(this.#fd, end);
  }

  read(block: BlockPlan, offset: number, length: number): Buffer {
    const bytes = this.#scratch.subarray(0, length);
    readFully(this.#fd, bytes, this.#at(block, offset), this.path);
    return bytes;
  }

  write(block: BlockPlan, offset: number, length: number, fill: (bytes: Buffer) => void): void {
    const bytes = this.#scratch.subarray(0, length);
    fill(bytes);
    const at = this.#at(block, offset);
    let done = 0;
    while (done < length) done += fs.writeSync(this.#fd, bytes, done, length - done, at + done);
  }

  #at(block: BlockPlan, offset: number): number {
    return (this.#offsets.get(block) as number) + offset;
  }

  close(): void {
    fs.closeSync(this.#fd);
  }
}

/** @throws CliError ERR_CLI_RAM_FILE if the file ends before the bytes do */
export function readFully(fd: number, into: Buffer, position: number, path: string): void {
  let done = 0;
  while (done < into.length) {
    const count = fs.readSync(fd, into, done, into.length - done, position + done);
    if (count === 0) {
      throw new CliError(
        'ERR_CLI_RAM_FILE',
        `${path}: received ${done} bytes at ${position}, expected ${into.length}`,
      );
    }
    done += count;
  }
}
