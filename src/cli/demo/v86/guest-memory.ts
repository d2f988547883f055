/**
 * A guest's memory by the addresses that its program has: as the page tables have it that the CPU uses now, or as they are where it
 * has no paging.
 *
 *     32 bits   cr3 -> 1024 entries of 4 MiB -> 1024 entries of 4 KiB
 *     PAE       cr3 -> 4 entries of 1 GiB -> 512 of 2 MiB -> 512 of 4 KiB       entries of 8 bytes
 */
import { CliError } from '../../cli-error.js';
import type { Pc } from './pc.js';

const CR0_PG = 0x80000000;
const CR4_PAE = 0x20;
const PRESENT = 1;
/** In an entry that is not of the last level: this is the page. */
const LARGE = 0x80;
const PAGE_BYTES = 4096;

interface Level {
  /** Of the address, what one entry is for: 1 << shift. */
  shift: number;
  entries: number;
}

const LEVELS: Level[] = [
  { shift: 22, entries: 1024 },
  { shift: 12, entries: 1024 },
];
const PAE_LEVELS: Level[] = [
  { shift: 30, entries: 4 },
  { shift: 21, entries: 512 },
  { shift: 12, entries: 512 },
];

/**
 * @param pc which is stopped
 * @throws CliError ERR_CLI_DIFFERENT where there is no page
 */
export function readGuestMemory(pc: Pc, address: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length;) {
    const from = address + done;
    const piece = Math.min(PAGE_BYTES - (from % PAGE_BYTES), length - done);
    bytes.set(pc.emulator.read_memory(physicalAddress(pc, from), piece), done);
    done += piece;
  }
  return bytes;
}

function physicalAddress(pc: Pc, address: number): number {
  const { cr } = pc.cpu;
  if ((cr[0] & CR0_PG) === 0) return address;
  const isPae = (cr[4] & CR4_PAE) !== 0;
  const levels = isPae ? PAE_LEVELS : LEVELS;
  // Of entries of 8 bytes the lower 4: no guest here has 4 GiB.
  const entryBytes = isPae ? 8 : 4;
  let table = (cr[3] & (isPae ? ~31 : ~4095)) >>> 0;
  for (const { shift, entries } of levels) {
    const index = (address >>> shift) % entries;
    const entry = Buffer.from(pc.emulator.read_memory(table + index * entryBytes, 4)).readUInt32LE();
    if ((entry & PRESENT) === 0) {
      const where = `0x${address.toString(16)}`;
      throw new CliError(
        'ERR_CLI_DIFFERENT',
        `the guest's memory: there is no page at ${where} of its program`,
      );
    }
    const inPage = address % 2 ** shift;
    if (shift === 12 || (shift < 30 && (entry & LARGE) !== 0))
      return ((entry & -(2 ** shift)) >>> 0) + inPage;
    table = (entry & ~4095) >>> 0;
  }
  throw new Error('a page table has a last level');
}
