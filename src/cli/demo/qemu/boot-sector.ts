/**
 * The guest of the demo and of the tests with real QEMUs: one boot sector, no operating system. It fills RAM with a pattern that is the
 * same in every run and then writes a counter into 256 pages for ever, so that there is always something to migrate.
 *
 *     at     what it does
 *     00-1f  interrupts off, A20 on, 32-bit protected mode (far jump to 7c20)
 *     20-39  flat segments, stack at 0x7000; ebx = 0x12345678, edi = 0x200000 (2 MiB)
 *     3a-88  each page from 2 MiB to 34 MiB, by its number modulo 4
 *              0  left as it is: a zero page            1  its own address, in each word
 *              2  words of x = x * 1664525 + 1013904223 3  the same, each masked by 0x0f0f0f0f
 *     89-8f  writes K to the serial port: the fill is done
 *     90-a4  adds 1 to the first word of each of the 256 pages from 48 MiB on
 *     a5-b0  a delay of 0x100000 turns; writes "." to the serial port; on to e0
 *     b8-d5  the segment descriptors and their table's address
 *     e0-ea  turns CR0.WP over
 *     eb-105 turns the first word of each of the 64 pages from 50 MiB on over, between 0 and a5a5a5a5; again from 90
 *
 * CR0.WP means nothing here, but turning it over empties the emulated TLB. Without that a source before 9.0 loses pages:
 * its software emulation leaves the TLB as it is when it reads the dirty bitmap, so that later stores to the same page
 * are not marked, and what the guest wrote last is never sent, to whomever. (Seen with 7.2.22 on a machine under load,
 * in about one of fifty migrations, also from one QEMU straight to another without multifd.)
 *
 * About 6400 pages have data, 320 are dirtied in each round, of which 64 become zero pages in every other one, and 26000
 * are zero pages always.
 */
const CODE = [
  'fa31c08ed8e4920c02e6920f0116d07c0f20c00c010f22c066ea207c00000800',
  '66b810008ed88ec08ed0bc00700000fcbb78563412bf0000200089fac1ea0c83',
  'e203b90004000083fa00750881c700100000eb2d83fa01750689f8f3abeb22be',
  'ffffffff83fa037505be0f0f0f0f69db0d66190081c35ff36e3c89d821f0abe2',
  'ed81ff0000200272b166baf803b04beebf00000003ff0781c70010000081ff00',
  '00100372f0b900001000e2feb02eeeeb2f8db426000000000000000000000000',
  'ffff0000009acf00ffff00000092cf001700b87c000000000000000000000000',
  '0f20c035000001000f22c0bf000020038137a5a5a5a581c70010000081ff0000',
  '240372eceb8a',
].join('');

const MiB = 2 ** 20;
const SECTOR_BYTES = 512;
/** A floppy disk of 1.44 MB, as the BIOS knows one by its size. */
const FLOPPY_BYTES = 1474560;

export const MEMORY_BYTES = 128 * MiB;
/** The first of the pages with a counter. */
export const COUNTER_ADDRESS = 0x3000000;
/** What the serial port has said once the fill is done and the counters run. */
export const READY = /K\.{2}/;

export function bootImage(): Buffer {
  const image = Buffer.alloc(FLOPPY_BYTES);
  image.write(CODE, 0, 'hex');
  image.writeUInt16LE(0xaa55, SECTOR_BYTES - 2);
  return image;
}
