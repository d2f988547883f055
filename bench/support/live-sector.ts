/**
 * The guest that the bench `live` lets run in a QEMU: one boot sector that writes to 12,217 pages of 4 KiB a second, 50 MB, spread
 * over its memory of 1 GiB, and sleeps in between. live-writer.ts writes to the same pages in the same order.
 *
 *     at     what it does
 *     00-1c  interrupts off, A20 on, 32-bit protected mode (far jump to 7c1d)
 *     1d-67  flat segments, stack at 0x7000; only the timer's interrupt, every millisecond; ebx = 0x12345678; `LIVE` at
 *            0x500, 0 at 0x504; esi = the ACPI timer at port 0x608, which counts 3,579,545 a second
 *     68-6a  halts, again and again
 *     6b-b6  the timer's: adds 1 at 0x504; ebp += what the ACPI timer has counted; for every 293 of that:
 *              x = x * 1664525 + 1013904223; adds 1 to the word at (x >> 2) & 0x3ffff000, unless that is below 16 MiB
 *     b8-d5  the segment descriptors and their table's address
 *     d8-e5  the descriptor of interrupt 8, the timer's as the BIOS leaves it, and the address of a table that has it there
 */
const CODE = [
  'fa31c08ed8e4920c02e6920f0116d07c0f20c00c010f22c0ea1d7c080066b810',
  '008ed88ec08ed0bc007000000f011de07c0000b0fee621b0ffe6a1b034e64366',
  'b8a904e64088e0e640bb7856341231ed892d04050000c705000500004c495645',
  '66ba0806ed89c6fbf4ebfdff0504050000ed89c129f181e1ffffff0089c601cd',
  '81ed250100007c2369db0d66190081c35ff36e3c89dfc1ef0281e700f0ff3f81',
  'ff0000000172e1ff07ebd581c525010000b020e620cf66900000000000000000',
  'ffff0000009acf00ffff00000092cf001700b87c000066906b7c0800008e0000',
  '4700987c0000',
].join('');

const SECTOR_BYTES = 512;
/** A floppy disk of 1.44 MB, as the BIOS knows one by its size. */
const FLOPPY_BYTES = 1474560;

/** Where it says that it runs, and how long. */
export const MAGIC_AT = 0x500;
export const MAGIC = 0x4556494c;
export const TICKS_AT = 0x504;

/** 3,579,545 / 293. */
export const PAGES_A_SECOND = 12_217;

export function liveFloppy(): Buffer {
  const image = Buffer.alloc(FLOPPY_BYTES);
  image.write(CODE, 0, 'hex');
  image.writeUInt16LE(0xaa55, SECTOR_BYTES - 2);
  return image;
}

/** The pages that it writes to, one after the other. */
export class LivePages {
  static readonly #FIRST = 2 ** 12;
  #x = 0x12345678;

  next(): number {
    for (;;) {
      this.#x = (Math.imul(this.#x, 1664525) + 1013904223) >>> 0;
      const page = (this.#x >>> 14) & 0x3ffff;
      if (page >= LivePages.#FIRST) return page;
    }
  }
}
