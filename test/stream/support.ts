/** What the tests of the main stream share: captures, streams in pieces, streams of hex, a file in memory. */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { ByteReader, type ByteSource } from '../../src/stream/byte-reader.js';
import { type MainStreamOptions, readMainStream } from '../../src/stream/main-stream.js';
import type { MappedRamBlock } from '../../src/mapped-ram/layout.js';
import { readPageRuns } from '../../src/mapped-ram/pages.js';
import type { MainItem } from '../../src/stream/records.js';
import { readCapture } from '../support/reference-decoder.js';

/** Name, EOS, MULTIFD_FLUSH and ZERO records, bytes: the table of the samples. */
export const MAIN_CAPTURES: [name: string, eos: number, flush: number, zero: number, bytes: number][] = [
  ['q100-none', 3, 3, 0, 112739],
  ['q100-zlib', 3, 3, 0, 112739],
  ['q100-zstd', 3, 3, 0, 112739],
  ['q100-none-legacyzero', 3, 3, 1006, 121828],
  ['q100-none-machine72', 3, 0, 1006, 121798],
  ['q72-none', 3, 0, 1007, 121538],
  ['q72-zlib', 3, 0, 1007, 121538],
  ['q72-zstd', 3, 0, 1007, 121538],
];

export const FILE_CAPTURES = ['q100-mappedram-multifd', 'q100-mappedram-single'];

export const CAPTURED_BLOCKS: [name: string, usedLength: number][] = [
  ['pc.ram', 4194304],
  ['/rom@etc/acpi/tables', 131072],
  ['pc.rom', 131072],
  ['pc.bios', 65536],
  ['/rom@etc/table-loader', 4096],
  ['/rom@etc/acpi/rsdp', 4096],
];

/** The end of a tail: EOF, and a VM description. */
export const NO_DEVICES = '00 06 0000000f \'{"devices": []}\'';

export function readMain(name: string): Buffer {
  return readCapture(`${name}.main`);
}

/** A mapped-ram file, 10 MB. */
export function readMig(name: string): Buffer {
  // From the built file, dist/test/stream.
  return gunzipSync(readFileSync(new URL(`../../../test/captures/${name}.mig.gz`, import.meta.url)));
}

/** Hex with blanks and line ends, as in the specification; 'text' in quotes stands for its bytes. */
export function hex(text: string): Buffer {
  const pieces = text.split("'").map((piece, i) => {
    if (i % 2 === 1) return Buffer.from(piece, 'latin1');
    const digits = piece.replaceAll(/\s/g, '');
    const bytes = Buffer.from(digits, 'hex');
    if (bytes.length * 2 !== digits.length) throw new Error(`no hex: ${piece}`);
    return bytes;
  });
  return Buffer.concat(pieces);
}

/** A source that gives `bytes` in chunks of these sizes, the last size again and again; each chunk is a copy. */
export function chunked(bytes: Buffer, ...sizes: number[]): ByteSource & { reads: number } {
  let at = 0;
  const source = {
    reads: 0,
    read: async (): Promise<Buffer | null> => {
      if (at === bytes.length) return null;
      const size = sizes[Math.min(source.reads, sizes.length - 1)] ?? bytes.length;
      source.reads += 1;
      const chunk = Buffer.from(bytes.subarray(at, at + size));
      at += chunk.length;
      return chunk;
    },
  };
  return source;
}

export async function collect<T>(all: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of all) items.push(item);
  return items;
}

/** All items of a stream that comes in chunks of these sizes; in one, if none is given. */
export function parse(bytes: Buffer, sizes: number[] = [], options?: MainStreamOptions): Promise<MainItem[]> {
  return collect(readMainStream(new ByteReader(chunked(bytes, ...sizes)), options));
}

export function rawOf(items: readonly MainItem[]): Buffer {
  return Buffer.concat(items.map(({ raw }) => raw));
}

export function ofKind<K extends MainItem['kind']>(
  items: readonly MainItem[],
  kind: K,
): Extract<MainItem, { kind: K }>[] {
  return items.filter((item): item is Extract<MainItem, { kind: K }> => item.kind === kind);
}

/** A file in memory: as FileHandle, but nothing of it is on disk. */
export class MemoryFile {
  /** Zero behind the end. */
  #room: Buffer;
  #length: number;
  /** The most that was read at once. */
  largestRead = 0;

  constructor(bytes: Buffer = Buffer.alloc(0)) {
    this.#room = bytes;
    this.#length = bytes.length;
  }

  get bytes(): Buffer {
    return this.#room.subarray(0, this.#length);
  }

  async read(into: Buffer, offset: number, length: number, position: number): Promise<{ bytesRead: number }> {
    this.largestRead = Math.max(this.largestRead, length);
    if (position >= this.bytes.length) return { bytesRead: 0 };
    return { bytesRead: this.bytes.copy(into, offset, position, position + length) };
  }

  async write(
    from: Buffer,
    offset: number,
    length: number,
    position: number,
  ): Promise<{ bytesWritten: number }> {
    if (position + length > this.bytes.length) await this.truncate(position + length);
    return { bytesWritten: from.copy(this.bytes, position, offset, offset + length) };
  }

  async truncate(length: number): Promise<void> {
    if (length > this.#room.length) {
      const room = Buffer.alloc(length + Math.min(length, 2 ** 20));
      this.bytes.copy(room);
      this.#room = room;
    }
    if (length < this.#length) this.#room.fill(0, length, this.#length);
    this.#length = length;
  }

  async stat(): Promise<{ size: number; isBlockDevice?: () => boolean }> {
    return { size: this.bytes.length };
  }
}

/** A block's bytes in a mapped-ram file: what is present is read, the rest is zero; its runs are complete. */
export async function blockContent(file: MemoryFile, block: MappedRamBlock): Promise<Buffer> {
  const memory = Buffer.alloc(block.usedLength);
  const pageSize = block.usedLength / block.pageCount;
  let next = 0;
  for (const { page, count, present } of await collect(readPageRuns(file, block))) {
    if (page !== next) throw new Error(`run at ${page}, expected at ${next}`);
    next += count;
    const at = block.pagesOffset + page * pageSize;
    if (present) file.bytes.copy(memory, page * pageSize, at, at + count * pageSize);
  }
  if (next !== block.pageCount) throw new Error(`runs end at ${next}, expected at ${block.pageCount}`);
  return memory;
}
