/**
 * Has all gone out to a destination that it needs? QEMU has loaded its guest when the EOF behind its last device's section has
 * come: the VM description behind that is read for others' sake, and what becomes of it changes nothing.
 *
 *     ... 04 FULL ... 7e id | 00 EOF | 06 u32 n, n bytes VM description
 *                                  ^ here
 */
import { readTail } from '../mapped-ram/pages.js';
import type { MappedRamDescription } from '../mapped-ram/description.js';
import type { ReadableFile } from '../stream/positioned-file.js';
import { QEMU_VM_EOF, QEMU_VM_VMDESCRIPTION } from '../stream/records.js';

/** Of what stands before the end, enough to be nowhere else. */
const MARK_BYTES = 4096;
const DESCRIPTION_HEAD_BYTES = 5;

/** The last bytes of a file's stream up to and with its EOF. */
export async function endOfStream(file: ReadableFile, description: MappedRamDescription): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of readTail(file, description)) pieces.push(piece);
  const tail = Buffer.concat(pieces);
  const end = endOfSections(tail);
  return Buffer.from(tail.subarray(Math.max(0, end - MARK_BYTES), end));
}

/** Without a description (suppress-vmdesc=on) the tail's own end. */
export function endOfSections(tail: Buffer): number {
  for (let at = 1; at + DESCRIPTION_HEAD_BYTES <= tail.length; at++) {
    if (tail[at] !== QEMU_VM_VMDESCRIPTION || tail[at - 1] !== QEMU_VM_EOF) continue;
    if (tail.readUInt32BE(at + 1) === tail.length - at - DESCRIPTION_HEAD_BYTES) return at;
  }
  return tail.length;
}

/** Looks at a main stream as it goes on, in pieces of any size. */
export class EndWatch {
  hasPassed = false;
  readonly #mark: Buffer;
  #kept: Buffer = Buffer.alloc(0);

  /** @param mark of endOfStream() */
  constructor(mark: Buffer) {
    this.#mark = mark;
  }

  push(bytes: Buffer): void {
    if (this.hasPassed) return;
    const seen = Buffer.concat([this.#kept, bytes]);
    this.hasPassed = seen.includes(this.#mark);
    this.#kept = Buffer.from(seen.subarray(Math.max(0, seen.length - this.#mark.length + 1)));
  }
}
