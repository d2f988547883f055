/** A guest's memory, of each kind that the engine takes; written and digested by this process alone. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { allocateRam } from '../ram/allocate.js';
import type { RAMBlockOptions } from '../ram/block.js';
import type { WasmMemory } from '../ram/memory.js';
import type { Dice } from './dice.js';
import type { BlockPlan, MemoryKind } from './engine-plan.js';
import type { Digests } from './messages.js';

const WASM_PAGE = 65536;
const PIECE = 2 ** 20;
const PATTERN = 0xa5;

const { Memory } = (
  globalThis as unknown as { WebAssembly: { Memory: new (of: { initial: number }) => WasmMemory } }
).WebAssembly;

interface Block {
  name: string;
  size: number;
  options: RAMBlockOptions;
  read(offset: number, length: number): Buffer;
  write(offset: number, bytes: Buffer): void;
  close(): void;
}

export class GuestMemory {
  readonly size: number;
  readonly #blocks: Block[];

  /** @param folder for memory in files, whose names begin with `prefix` */
  constructor(kind: MemoryKind, blocks: readonly BlockPlan[], folder: string, prefix: string) {
    this.size = blocks.reduce((sum, block) => sum + block.size, 0);
    this.#blocks = blocks.map((block) =>
      kind === 'file'
        ? fileBlock(block, path.join(folder, `${prefix}-${block.name}`))
        : memoryBlock(block, kind),
    );
  }

  get options(): RAMBlockOptions[] {
    return this.#blocks.map((block) => block.options);
  }

  get blocks(): readonly { name: string; size: number }[] {
    return this.#blocks;
  }

  write(block: number, offset: number, bytes: Buffer): void {
    this.#blocks[block].write(offset, bytes);
  }

  /** Zero pages, pages that compress, and random ones. */
  fillImage(dice: Dice, pageSize: number, zeroShare: number): void {
    const page = Buffer.alloc(pageSize);
    for (const block of this.#blocks) {
      for (let at = 0; at < block.size; at += pageSize) {
        if (dice.percent(zeroShare)) continue;
        if (dice.percent(50)) dice.fill(page);
        else page.fill(`page ${at} of ${block.name}, ${dice.word()}; `);
        block.write(at, page);
      }
    }
  }

  /** What is no page of anybody's: a page that nobody writes to is seen in the end, a zero page as well. */
  fillPattern(): void {
    const piece = Buffer.alloc(PIECE, PATTERN);
    for (const block of this.#blocks) {
      for (let at = 0; at < block.size; at += PIECE)
        block.write(at, piece.subarray(0, Math.min(PIECE, block.size - at)));
    }
  }

  digests(): Digests {
    const digests: Digests = {};
    for (const block of this.#blocks) {
      const hash = createHash('sha256');
      for (let at = 0; at < block.size; at += PIECE)
        hash.update(block.read(at, Math.min(PIECE, block.size - at)));
      digests[block.name] = hash.digest('hex');
    }
    return digests;
  }

  close(): void {
    for (const block of this.#blocks) block.close();
  }
}

function memoryBlock({ name, size }: BlockPlan, kind: Exclude<MemoryKind, 'file'>): Block {
  let memory: RAMBlockOptions;
  let bytes: () => Buffer;
  if (kind === 'wasm') {
    const wasm = new Memory({ initial: Math.ceil(size / WASM_PAGE) + 1 });
    memory = { name, memory: { wasm, offset: WASM_PAGE, size } };
    bytes = () => Buffer.from(wasm.buffer as ArrayBuffer, WASM_PAGE, size);
  } else {
    const buffer =
      kind === 'shared'
        ? new SharedArrayBuffer(size)
        : kind === 'huge'
          ? allocateRam(size)
          : new ArrayBuffer(size);
    memory = { name, memory: kind === 'function' ? () => buffer : buffer };
    bytes = () => Buffer.from(buffer as ArrayBuffer);
  }
  return {
    name,
    size,
    options: memory,
    read: (offset, length) => bytes().subarray(offset, offset + length),
    write: (offset, from) => void bytes().set(from, offset),
    close: () => {},
  };
}

function fileBlock({ name, size }: BlockPlan, file: string): Block {
  const fd = fs.openSync(file, 'w+', 0o600);
  fs.ftruncateSync(fd, size);
  return {
    name,
    size,
    options: { name, file, size },
    read: (offset, length) => {
      const bytes = Buffer.alloc(length);
      fs.readSync(fd, bytes, 0, length, offset);
      return bytes;
    },
    write: (offset, from) => void fs.writeSync(fd, from, 0, from.length, offset),
    close: () => {
      fs.closeSync(fd);
      fs.rmSync(file, { force: true });
    },
  };
}
