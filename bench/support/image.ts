/**
 * Guest images of real bytes for the benches, the same each time. Every page is written, so that none reads the kernel's
 * zero page.
 *
 *     image    pages
 *     random   bytes that no codec makes smaller
 *     zero     zeros
 *     program  node's own executable
 *     text     TypeScript's compiler and its declarations
 *     mixed    half zero, the rest in thirds of program, text and random, in runs of 1 to 256 pages
 *
 * The first 256 MiB are made in place and copied to all that follows: further apart than any codec looks back, and no
 * memory is taken beside the guest's, which a bench of memory would see.
 */
import crypto from 'node:crypto';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import zlib from 'node:zlib';
import { seededRandom } from '../../src/cli/demo/random.js';

const MiB = 2 ** 20;
const PAGE_BYTES = 4096;
const PATTERN_BYTES = 256 * MiB;
/** Typed arrays end at 4 GiB on Node 20. */
const WINDOW_BYTES = 2 ** 30;
const MAX_RUN_PAGES = 256;
const SEED = 0x44332211;

export type Image = 'random' | 'zero' | 'program' | 'text' | 'mixed';
type Kind = Exclude<Image, 'mixed'>;

/** Parts of 6. */
const SHARES: Record<Kind, number> = { zero: 3, program: 1, text: 1, random: 1 };

export function fillImage(memory: SharedArrayBuffer, image: Image): void {
  const pattern = window(memory, 0, PATTERN_BYTES);
  const bytes = new Bytes();
  try {
    if (image === 'mixed') fillMixed(pattern, bytes);
    else bytes.take(image, pattern);
  } finally {
    bytes.close();
  }
  for (let at = PATTERN_BYTES; at < memory.byteLength; at += PATTERN_BYTES) {
    const to = window(memory, at, PATTERN_BYTES);
    pattern.copy(to, 0, 0, to.length);
  }
}

/** The same bytes in a file. */
export function writeImage(file: string, size: number, image: Image): void {
  const memory = new SharedArrayBuffer(Math.min(PATTERN_BYTES, size));
  fillImage(memory, image);
  const pattern = Buffer.from(memory);
  const handle = fs.openSync(file, 'w');
  try {
    for (let at = 0; at < size; at += pattern.length)
      writeAll(handle, pattern.subarray(0, Math.min(pattern.length, size - at)), at);
  } finally {
    fs.closeSync(handle);
  }
}

/** What QEMU's prealloc=on does: the pages are there before the clock starts. */
export function prefault(memory: SharedArrayBuffer): void {
  for (const bytes of windows(memory)) bytes.fill(0);
}

/** All of the memory, in pieces that a typed array can have. */
export function* windows(memory: SharedArrayBuffer): Generator<Buffer> {
  for (let at = 0; at < memory.byteLength; at += WINDOW_BYTES) yield window(memory, at, WINDOW_BYTES);
}

/** CRC-32 of all of it. */
export function digest(memory: SharedArrayBuffer): number {
  let crc = 0;
  for (const bytes of windows(memory)) crc = zlib.crc32(bytes, crc);
  return crc;
}

function window(memory: SharedArrayBuffer, at: number, bytes: number): Buffer {
  return Buffer.from(memory, at, Math.min(bytes, memory.byteLength - at));
}

/** A kind is drawn by what is left of its share, so that the shares come out exactly. */
function fillMixed(pattern: Buffer, bytes: Bytes): void {
  const random = seededRandom(SEED);
  const kinds = Object.keys(SHARES) as Kind[];
  const pages = pattern.length / PAGE_BYTES;
  const left = kinds.map((kind) => Math.floor((pages * SHARES[kind]) / 6));
  // What the division leaves.
  left[0] += pages - left.reduce((sum, count) => sum + count, 0);
  for (let page = 0; page < pages;) {
    let drawn = random(pages - page);
    const kind = left.findIndex((count) => (drawn -= count) < 0);
    const run = Math.min(1 + random(MAX_RUN_PAGES), left[kind]);
    bytes.take(kinds[kind], pattern.subarray(page * PAGE_BYTES, (page + run) * PAGE_BYTES));
    left[kind] -= run;
    page += run;
  }
}

/** Each kind's next bytes, from where the last ones ended. */
class Bytes {
  /** A key stream: as good as random, as fast, and the same each time. */
  readonly #random = crypto.createCipheriv('aes-128-ctr', Buffer.alloc(16, SEED), Buffer.alloc(16));
  readonly #zeros = Buffer.alloc(MiB);
  readonly #program = new Files([process.execPath]);
  readonly #text = new Files(textFiles());

  take(kind: Kind, to: Buffer): void {
    if (kind === 'zero') to.fill(0);
    else if (kind === 'program') this.#program.read(to);
    else if (kind === 'text') this.#text.read(to);
    else {
      for (let at = 0; at < to.length; at += MiB)
        this.#random.update(this.#zeros.subarray(0, to.length - at)).copy(to, at);
    }
  }

  close(): void {
    this.#program.close();
    this.#text.close();
  }
}

/** The compiler this was built with: some twenty megabytes of text that are there wherever the benches are. */
function textFiles(): string[] {
  const folder = path.dirname(createRequire(import.meta.url).resolve('typescript'));
  return fs
    .readdirSync(folder)
    .filter((name) => /\.(js|d\.ts)$/.test(name))
    .sort()
    .map((name) => path.join(folder, name));
}

/** Files one after the other, and from the first again. */
class Files {
  readonly #files: readonly string[];
  #next = 0;
  #handle: number | undefined;

  constructor(files: readonly string[]) {
    this.#files = files;
  }

  read(to: Buffer): void {
    for (let at = 0; at < to.length;) {
      this.#handle ??= fs.openSync(this.#files[this.#next++ % this.#files.length], 'r');
      const count = fs.readSync(this.#handle, to, at, to.length - at, null);
      if (count === 0) this.close();
      at += count;
    }
  }

  close(): void {
    if (this.#handle !== undefined) fs.closeSync(this.#handle);
    this.#handle = undefined;
  }
}

function writeAll(handle: number, bytes: Buffer, position: number): void {
  for (let at = 0; at < bytes.length;)
    at += fs.writeSync(handle, bytes, at, bytes.length - at, position + at);
}
