/**
 * A small guest for migrations in one process: RAM blocks of every kind at both ends, and a twin of each block in
 * plain memory, which is what both ends must be equal to after a sync.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import type { Random } from './random.js';
import { makeStore, type Store, type StoreKind } from './store.js';

export interface GuestBlock {
  name: string;
  pageCount: number;
  source: Store;
  destination: Store;
  /** What the source's bytes are now. */
  twin: Buffer;
}

/** What a page may hold. `edge` and `middle`: one byte that is not zero. */
export const CONTENTS = ['zero', 'random', 'text', 'edge', 'middle'] as const;
export type Content = (typeof CONTENTS)[number];

const TEXT = Buffer.from('The quick brown guest jumps over the lazy hypervisor. ');

export class Guest {
  readonly blocks: GuestBlock[] = [];
  readonly pageSize: number;
  readonly #dir: string;

  /** Its files go when the test ends. */
  constructor(t: Test, pageSize: number) {
    this.pageSize = pageSize;
    this.#dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
    t.teardown(() => fs.rmSync(this.#dir, { recursive: true }));
  }

  /** The destination begins with bytes that are not zero: a zero page must really be written. */
  add(name: string, source: StoreKind, destination: StoreKind, pageCount: number): GuestBlock {
    const size = pageCount * this.pageSize;
    const block = {
      name,
      pageCount,
      source: makeStore(this.#dir, `${name}-source`, source, size),
      destination: makeStore(this.#dir, `${name}-destination`, destination, size),
      twin: Buffer.alloc(size),
    };
    block.source.options.name = name;
    block.destination.options.name = name;
    block.destination.write(0, Buffer.alloc(size, 0x5a));
    this.blocks.push(block);
    return block;
  }

  /** What the guest's CPU does. */
  writePage(block: GuestBlock, page: number, content: Content, random: Random): void {
    const bytes = Buffer.alloc(this.pageSize);
    if (content === 'random') random.bytes(bytes);
    if (content === 'text') bytes.fill(TEXT.subarray(random.below(TEXT.length)));
    if (content === 'edge') bytes[random.below(2) === 0 ? 0 : bytes.length - 1] = 1 + random.below(255);
    if (content === 'middle') bytes[random.below(bytes.length)] = 1 + random.below(255);
    const offset = page * this.pageSize;
    block.twin.set(bytes, offset);
    block.source.write(offset, bytes);
  }

  isZeroPage(block: GuestBlock, page: number): boolean {
    return block.twin.subarray(page * this.pageSize, (page + 1) * this.pageSize).every((byte) => byte === 0);
  }

  /** Every page of every block that differs at the destination, and blocks whose surroundings were written to. */
  differences(): string[] {
    const found: string[] = [];
    for (const { name, pageCount, destination, source, twin } of this.blocks) {
      if (!destination.guardsIntact() || !source.guardsIntact()) found.push(`${name}: a guard`);
      const bytes = destination.read();
      if (bytes.equals(twin)) continue;
      for (let page = 0; page < pageCount; page++) {
        const start = page * this.pageSize;
        const end = start + this.pageSize;
        if (!bytes.subarray(start, end).equals(twin.subarray(start, end)))
          found.push(`${name}: page ${page}`);
      }
    }
    return found;
  }
}
