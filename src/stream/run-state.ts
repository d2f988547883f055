/**
 * How a guest was when it was saved: QEMU's RunState, in one of the last sections of the tail. A QEMU that loads all at once
 * goes by it; one that is told to run by postcopy does not.
 *
 *     04 u32 id 0b 'globalstate'     FULL section
 *     u32 0, u32 1                   instance, version
 *     u32 n, 100 bytes               the state's name, with its NUL: n bytes
 *     7e u32 id                      footer, where the machine has them
 *
 * Not there where the guest ran, with old machine types, and in what is no QEMU's.
 */
import { type ReadableFile, readAt } from './positioned-file.js';
import { QEMU_VM_SECTION_FOOTER, QEMU_VM_SECTION_FULL } from './records.js';

const IDS = Buffer.from('\x0bglobalstate\0\0\0\0\0\0\0\x01', 'latin1');
/** Type and id, before. */
const START_BYTES = 5;
const STATE_BYTES = 100;
/** From its type up to its footer's end. */
const SECTION_BYTES = START_BYTES + IDS.length + 4 + STATE_BYTES + 5;
const PIECE_BYTES = 2 ** 20;

/** A guest that QEMU lets go on: with these it starts the processors. */
export function isLive(runState: string): boolean {
  return runState === 'running' || runState === 'suspended';
}

/**
 * @param tail where it lies in the file
 * @returns undefined where it does not say it
 */
export async function readRunState(
  file: ReadableFile,
  { offset, bytes }: { offset: number; bytes: number },
  footers: boolean,
): Promise<string | undefined> {
  let found: string | undefined;
  for (let at = 0; at < bytes; at += PIECE_BYTES) {
    // A section that begins in this piece may end in the next.
    const piece = await readAt(file, offset + at, Math.min(PIECE_BYTES + SECTION_BYTES, bytes - at));
    for (let ids = piece.indexOf(IDS); ids >= 0; ids = piece.indexOf(IDS, ids + 1))
      found = stateAt(piece, ids - START_BYTES, footers) ?? found;
  }
  return found;
}

/** What only looks like such a section, in some device's bytes, is none. */
function stateAt(piece: Buffer, at: number, footers: boolean): string | undefined {
  if (at < 0 || piece[at] !== QEMU_VM_SECTION_FULL) return undefined;
  const length = at + START_BYTES + IDS.length;
  const end = length + 4 + STATE_BYTES;
  if (end > piece.length) return undefined;
  const isFooter =
    piece[end] === QEMU_VM_SECTION_FOOTER &&
    piece.subarray(end + 1, end + 5).equals(piece.subarray(at + 1, at + 5));
  const size = piece.readUInt32BE(length);
  if ((footers && !isFooter) || size < 2 || size > STATE_BYTES) return undefined;
  const name = piece.toString('latin1', length + 4, length + 3 + size);
  return /^[a-z][a-z-]*$/.test(name) ? name : undefined;
}
