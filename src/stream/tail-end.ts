/**
 * Finds where the tail of a stream in a file ends. QEMU reads a file up to the VM description and no further, so there
 * may be anything behind it: the rest of a block device, padding, an older stream that was longer.
 *
 *     04 FULL ... 7e id            device sections
 *     00                           EOF
 *     06 u32 n, n bytes            VM description       <- the end; without it (suppress-vmdesc=on) EOF is
 *     (whatever)
 *
 * A description in the middle of other bytes is believed
 *   1  where the sections before it have exactly the bytes that it says: at once, nothing more is read;
 *   2  where it is the last thing in the file;
 *   3  where it is the first one, and none of the other two has come in LOOK_ON_BYTES after it.
 * Without any, the end is the last EOF that stands behind the footer of a section which the sections before it lead to.
 * The last, since too much is harmless (the destination stops reading at its EOF) and too little is not.
 *
 * Nothing is kept but the devices of what may be a description, of three at the most. A byte is looked at a few times at
 * the most, whatever the file holds.
 */
import { MultifdError } from '../errors.js';
import { STREAM_ERRORS } from './codes.js';
import { DescriptionFinder, type FoundDescription } from './description-finder.js';
import { FOOTER_BYTES } from './description-reader.js';
import {
  QEMU_VM_EOF,
  QEMU_VM_SECTION_FOOTER,
  QEMU_VM_SECTION_FULL,
  QEMU_VM_VMDESCRIPTION,
} from './records.js';
import { MAX_VM_DESCRIPTION_BYTES, type VmDescription } from './vm-description.js';

/** As far as a description itself may be long. */
const LOOK_ON_BYTES = MAX_VM_DESCRIPTION_BYTES;
/** Sections are numbered from 0 on; no machine has so many. */
const MAX_SECTION_ID = 0xffff;
/** Behind a footer (7e, u32 id) a section's type and its id. */
const SECTION_START_BYTES = 5;

export interface TailEnd {
  /** Of the tail, up to and with its last byte. */
  bytes: number;
  /** Undefined if the tail has none. */
  description?: VmDescription;
  /** The length of one that is above the bound, in place of it. */
  tooLong?: number;
  /** Is there a description, or at least an EOF where one can be? */
  isWhole: boolean;
  /** Does a VM description begin behind that EOF, which is none? */
  breaks?: true;
}

/** What is wrong with a stream whose devices' state has no end. */
export function cutTail(name: string, tailBytes: number): MultifdError {
  const message = `${name}: end at byte ${tailBytes} of the devices' state: received neither a VM description nor EOF, expected one: the file may be cut`;
  return new MultifdError(STREAM_ERRORS.eof, message);
}

/** And with one that has one, and then what cannot be read. */
export function brokenTail(name: string, tailBytes: number): MultifdError {
  const message = `${name}: behind byte ${tailBytes} of the devices' state: received a VM description that is no JSON, expected JSON or the end`;
  return new MultifdError(STREAM_ERRORS.eof, message);
}

export class TailEndFinder {
  readonly #finder: DescriptionFinder;
  #first: TailEnd | undefined;
  #last: TailEnd | undefined;
  #exact: TailEnd | undefined;
  readonly #footers = new FooterChain();
  /** The last bytes of all: as many as a footer and EOF have. */
  #before: Buffer = Buffer.alloc(0);

  /** @param maxBytes the largest description whose devices are kept; default 16 MiB */
  constructor(maxBytes = MAX_VM_DESCRIPTION_BYTES) {
    this.#finder = new DescriptionFinder({ maxBytes, keepDevices: true, keepJson: false });
  }

  /** @returns is the end known, so that no more need be pushed? */
  push(chunk: Uint8Array): boolean {
    if (this.#isDecided()) return true;
    const piece = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    this.#footers.push(piece);
    this.#before = Buffer.concat([this.#before, piece.subarray(-FOOTER_BYTES - 1)]).subarray(
      -FOOTER_BYTES - 1,
    );
    this.#finder.push(piece, (found) => this.#take(found));
    return this.#isDecided();
  }

  /**
   * With what has been pushed.
   *
   * @param footers do the machine's sections end with a footer?
   */
  end(footers: boolean): TailEnd {
    if (this.#exact !== undefined) return this.#exact;
    const all = this.#finder.bytes;
    if (this.#last?.bytes === all) return this.#last;
    if (this.#first !== undefined) return this.#first;
    const { eof } = this.#footers;
    // Cut within its description, which begins with that EOF.
    const isCut = eof !== undefined && this.#finder.mayBeginAt(eof - 1);
    if (eof !== undefined && !isCut) {
      const breaks = this.#footers.behindEof === QEMU_VM_VMDESCRIPTION;
      return { bytes: eof, isWhole: true, ...(breaks && { breaks }) };
    }
    return { bytes: all, isWhole: footers ? this.#endsWithFooter() : this.#before.at(-1) === QEMU_VM_EOF };
  }

  /** Whatever section the footer may belong to. */
  #endsWithFooter(): boolean {
    const end = this.#before;
    if (end.length <= FOOTER_BYTES || end[0] !== QEMU_VM_SECTION_FOOTER) return false;
    return end.readUInt32BE(1) <= MAX_SECTION_ID && end[FOOTER_BYTES] === QEMU_VM_EOF;
  }

  #isDecided(): boolean {
    if (this.#exact !== undefined) return true;
    return this.#first !== undefined && this.#finder.bytes > this.#first.bytes + LOOK_ON_BYTES;
  }

  #take({ offset, bytes, description, tooLong, exact }: FoundDescription): void {
    if (this.#exact !== undefined) return;
    this.#last = { bytes: offset + bytes, isWhole: true };
    if (description !== undefined) this.#last.description = description;
    if (tooLong) this.#last.tooLong = bytes;
    this.#first ??= this.#last;
    if (exact) this.#exact = this.#last;
  }
}

/** Goes from section to section by their footers: each names the id that stands in its section's head. */
class FooterChain {
  /** From behind the last footer, or what may be one, on. */
  #data: Buffer = Buffer.alloc(0);
  #base = 0;
  /** The footer of the section that was entered last; undefined before the first, and null where there is none. */
  #footer: Buffer | undefined | null;
  /** Behind the last EOF that follows a footer, in the tail. */
  eof: number | undefined;
  /** The byte behind that one. */
  behindEof: number | undefined;

  push(piece: Buffer): void {
    if (this.#footer === null) return;
    if (this.eof === this.#base + this.#data.length) this.behindEof = piece[0];
    const data = Buffer.concat([this.#data, piece]);
    let keep = 0;
    if (this.#footer === undefined && data.length >= SECTION_START_BYTES) {
      this.#footer = footerAfter(data, 0) ?? null;
    }
    for (let from = 0; this.#footer;) {
      const at = data.indexOf(this.#footer, from);
      if (at < 0) {
        keep = Math.max(from, data.length - FOOTER_BYTES + 1);
        break;
      }
      const next = at + FOOTER_BYTES;
      keep = at;
      if (next >= data.length) break;
      if (data[next] === QEMU_VM_EOF) {
        this.eof = this.#base + next + 1;
        this.behindEof = data.at(next + 1);
      } else if (next + SECTION_START_BYTES > data.length) break;
      else this.#footer = footerAfter(data, next) ?? this.#footer;
      from = at + 1;
    }
    this.#data = Buffer.from(data.subarray(keep));
    this.#base += keep;
  }
}

/** The footer of the section that begins here, if one does. */
function footerAfter(data: Buffer, at: number): Buffer | undefined {
  // START, PART, END, FULL: 1 to 4.
  if (data[at] === 0 || data[at] > QEMU_VM_SECTION_FULL) return undefined;
  const id = data.subarray(at + 1, at + SECTION_START_BYTES);
  if (id.readUInt32BE(0) > MAX_SECTION_ID) return undefined;
  return Buffer.concat([Buffer.of(QEMU_VM_SECTION_FOOTER), id]);
}
