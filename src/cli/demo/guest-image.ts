/**
 * What the demo's guest has in its RAM: real bytes in runs, as a guest that has booted has them. Programs (pages of
 * the Node executable), text (this package's own code), random bytes (what is encrypted or compressed already), and
 * zero pages. Every page is written, the zero ones too: a page that was never written reads the kernel's one zero
 * page and would make the source faster than it is.
 */
import { randomFillSync } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import { packageFolder } from '../package-folder.js';
import { PIECE_BYTES, readFully, type BlockPlan, type GuestRam } from './guest-ram.js';
import { seededRandom, type Random } from './random.js';

/** All sizes but that of pc.ram are multiples of the largest page size. */
const UNIT = 2 ** 16;
export const MIN_SIZE = 2 ** 20;
const SEED = 0x11223344;
const RUN_UNIT = 4096;
/** Runs of 1 to 256 pages of 4 KiB, short ones as frequent as long ones. */
const RUN_DOUBLINGS = 9;
const YIELD_MS = 5;

type Kind = 'zero' | 'program' | 'text' | 'random';
/** Shares in 20ths; a choice, about what a Linux guest with its desktop idle shows. */
const KINDS: readonly Kind[] = [
  ...Array<Kind>(7).fill('zero'),
  ...Array<Kind>(7).fill('program'),
  ...Array<Kind>(3).fill('text'),
  ...Array<Kind>(3).fill('random'),
];

/** A PC's blocks by their QEMU names, the larger ones as QEMU sizes them where the guest is large enough. */
export function guestBlocks(size: number): BlockPlan[] {
  const others = [
    { name: 'vga.vram', size: Math.min(16 * 2 ** 20, Math.floor(size / 8 / UNIT) * UNIT) },
    { name: 'pc.bios', size: Math.min(4 * UNIT, Math.floor(size / 8 / UNIT) * UNIT) },
    { name: 'pc.rom', size: 2 * UNIT },
  ];
  const rest = others.reduce((left, block) => left - block.size, size);
  return [{ name: 'pc.ram', size: rest }, ...others];
}

export async function fillGuestImage(ram: GuestRam, signal: AbortSignal): Promise<void> {
  const random = seededRandom(SEED);
  const content = new Content(random);
  let last = performance.now();
  try {
    for (const block of ram.blocks) {
      for (let at = 0; at < block.size;) {
        const kind = KINDS[random(KINDS.length)];
        const end = Math.min(block.size, at + RUN_UNIT * 2 ** random(RUN_DOUBLINGS));
        for (; at < end; at += PIECE_BYTES) {
          ram.write(block, at, Math.min(PIECE_BYTES, end - at), (bytes) => content.fill(kind, bytes));
        }
        at = end;
        if (performance.now() - last > YIELD_MS) {
          await turnEventLoop();
          signal.throwIfAborted();
          last = performance.now();
        }
      }
    }
  } finally {
    content.close();
  }
}

/** Where the real bytes come from. */
class Content {
  readonly #random: Random;
  readonly #executable = fs.openSync(process.execPath, 'r');
  readonly #executablePages = Math.floor(fs.fstatSync(this.#executable).size / RUN_UNIT);
  readonly #text = packageText();

  constructor(random: Random) {
    this.#random = random;
  }

  fill(kind: Kind, bytes: Buffer): void {
    if (kind === 'zero') bytes.fill(0);
    else if (kind === 'random') randomFillSync(bytes);
    else if (kind === 'text') this.#fillText(bytes);
    else this.#fillProgram(bytes);
  }

  /** From a random page on, and from the first again where the file ends: it may be a small one. */
  #fillProgram(bytes: Buffer): void {
    let page = this.#random(this.#executablePages);
    for (let at = 0; at < bytes.length;) {
      const length = Math.min(bytes.length - at, (this.#executablePages - page) * RUN_UNIT);
      readFully(this.#executable, bytes.subarray(at, at + length), page * RUN_UNIT, process.execPath);
      at += length;
      page = 0;
    }
  }

  #fillText(bytes: Buffer): void {
    let from = this.#random(this.#text.length);
    for (let at = 0; at < bytes.length;) {
      at += this.#text.copy(bytes, at, from);
      from = 0;
    }
  }

  close(): void {
    fs.closeSync(this.#executable);
  }
}

/** The built JavaScript of this package: text that is there wherever the demo runs. */
function packageText(): Buffer {
  const root = path.join(packageFolder(), 'dist/lib');
  const files = fs
    .readdirSync(root)
    .filter((name) => name.endsWith('.js'))
    .sort();
  return Buffer.concat(files.map((name) => fs.readFileSync(path.join(root, name))));
}
