/**
 * A guest that goes over all its memory for ever and looks whether it is right: one boot sector, in 64-bit mode, so that it
 * reaches what lies above 4 GiB. A page that is wrong, that was placed twice, or that is zero where it should not be, is seen
 * by the guest itself.
 *
 *     at       what it does
 *     00-1c    interrupts off, A20 on, 32-bit protected mode (far jump to 7c1d)
 *     1d-ad    flat segments; page tables at 0x8000, 0x9000 and 0x100000: 16 GiB as they are, in pages of 2 MiB; 64-bit mode
 *     ae-dd    the numbers at 1d0; 0 at 0x600
 *     de-118   fills: of pages from 2 MiB on those whose number has no bit of `mask`: words 0 and 511 = address * odd number,
 *              word 1 = 0; these words are made 0 in all others, where they are not
 *     119-11c  K to the serial port
 *     11d-177  for ever, page by page: page = (page * factor + step) modulo their number; adds 1 at 0x600; looks whether words
 *              0 and 511 are what was filled in, and word 1 is how often all have been gone over, to which it adds 1
 *     178-17d  when it has been everywhere: W to the serial port
 *     17e-183  X to the serial port, and halts: a page is wrong
 *     184-1a0  a page's address, and what is filled in; the hole below 4 GiB is left out
 *     1a8-1cf  the segment descriptors, and their table's address
 *     1d0      u32 each: pages below the hole, pages in all (a power of two), mask, odd number, factor, step
 */
const CODE = [
  'fa31c08ed8e4920c02e6920f0116c87d0f20c00c010f22c0ea1d7c080066b810',
  '008ed88ec08ed0bc00700000fcbf0080000031c0b900080000f3abc705008000',
  '0003900000bf00900000b803001000b110890783c7080500100000e2f4bf0000',
  '1000b88300000031d2b900200000890789570483c708050000200083d200e2ee',
  '0f20e00c200f22e0b8008000000f22d8b9800000c00f3280cc010f300f20c00d',
  '000000800f22c0eaae7c00001800bed07d0000448b06448b4e04448b5608448b',
  '5e0c448b6e10448b761431c948890c2500060000baf8030000bb00020000e8a1',
  '00000048390f740348890f48398ff80f0000740748898ff80f00004c85d3750e',
  '48890748894f08488987f80f000048ffc34c39cb72c8b04bee31ed31db4d89cc',
  '490fafdd4c01f34c89c848ffc84821c34881fb000200007238e84600000048ff',
  '0425000600004c85d3751a483907752e483987f80f0000752548396f08751f48',
  'ff4708eb0c488b07480b87f80f0000750d49ffcc75aa48ffc5b057eeeb9fb058',
  'eef4ebfd4889df4c39c7720a4c29c74881c70000100048c1e70c4889f8490faf',
  'c3c3660f1f4400000000000000000000ffff0000009acf00ffff00000092cf00',
  'ffff0000009aaf001f00a87d00006690',
].join('');

const MiB = 2 ** 20;
const SECTOR_BYTES = 512;
/** A floppy disk of 1.44 MB, as the BIOS knows one by its size. */
const FLOPPY_BYTES = 1474560;
const PAGE_BYTES = 4096;
const PARAMETERS_AT = 0x1d0;
/** Machine `pc` has no more below 4 GiB, if it has 3.5 GiB or more. */
const MOST_LOW_BYTES = 3 * 2 ** 30;
const FILL = 0x9e3779b1;

/** Where the guest counts pages that it found right. */
export const WALKED_AT = 0x600;
/** It has filled its memory, and has been everywhere once. */
export const WALKS = /KW/;

export interface Walk {
  memoryBytes: number;
  order: 'in order' | 'at random';
  /** One of so many pages is filled, a power of two; the others are zero (default 1). */
  oneOf?: number;
}

export function walkImage({ memoryBytes, order, oneOf = 1 }: Walk): Buffer {
  const pages = memoryBytes / PAGE_BYTES;
  const low = memoryBytes < 3584 * MiB ? pages : MOST_LOW_BYTES / PAGE_BYTES;
  // Of full period for any power of two.
  const [factor, step] = order === 'in order' ? [1, 1] : [1664525, 1013904223];
  const image = Buffer.alloc(FLOPPY_BYTES);
  image.write(CODE, 0, 'hex');
  for (const [i, number] of [low, pages, oneOf - 1, FILL, factor, step].entries())
    image.writeUInt32LE(number, PARAMETERS_AT + 4 * i);
  image.writeUInt16LE(0xaa55, SECTOR_BYTES - 2);
  return image;
}
