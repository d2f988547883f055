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
 * Keeps what may be a description, 16 MiB at the most. A byte is parsed a few times at the most, whatever the file holds.
 */
import { QEMU_VM_EOF, QEMU_VM_SECTION_FOOTER, QEMU_VM_SECTION_FULL } from './records.js';
import {
  MAX_VM_DESCRIPTION_BYTES,
  parseVmDescription,
  sectionBytes,
  type VmDescription,
} from './vm-description.js';

/** EOF and the section type VMDESCRIPTION, u32 n, and the first byte of the JSON. */
const HEAD = Buffer.of(0x00, 0x06);
const HEAD_BYTES = 6;
const OPENING_BRACE = 0x7b;
const CLOSING_BRACE = 0x7d;
/** As far as a description itself may be long. */
const LOOK_ON_BYTES = MAX_VM_DESCRIPTION_BYTES;
/** Sections are numbered from 0 on; no machine has so many. */
const MAX_SECTION_ID = 0xffff;
/** 7e, u32 id; behind it a section's type and its id. */
const FOOTER_BYTES = 5;
const SECTION_START_BYTES = 5;

export interface TailEnd {
  /** Of the tail, up to and with its last byte. */
  bytes: number;
  /** Undefined if the tail has none. */
  description?: VmDescription;
  /** Is there a description, or at least an EOF where one can be? */
  isWhole: boolean;
}

export class TailEndFinder {
  /** What of the tail is still looked at: nothing much, or what may be a description. */
  #data: Buffer = Buffer.alloc(0);
  #length = 0;
  /** The place of #data[0] in the tail. */
  #base = 0;
  /** Up to here in the tail the possible description has no 00. */
  #cleanTo = 0;
  #first: TailEnd | undefined;
  #last: TailEnd | undefined;
  #exact: TailEnd | undefined;
  readonly #footers = new FooterChain();
  /** The last bytes of all: as many as a footer and EOF have. */
  #before: Buffer = Buffer.alloc(0);

  /** @returns is the end known, so that no more need be pushed? */
  push(chunk: Uint8Array): boolean {
    if (this.#isDecided()) return true;
    const piece = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    this.#footers.push(piece);
    this.#before = Buffer.concat([this.#before, piece.subarray(-FOOTER_BYTES - 1)]).subarray(
      -FOOTER_BYTES - 1,
    );
    this.#append(piece);
    this.#look();
    return this.#isDecided();
  }

  /**
   * With what has been pushed.
   *
   * @param footers do the machine's sections end with a footer?
   */
  end(footers: boolean): TailEnd {
    if (this.#exact !== undefined) return this.#exact;
    const all = this.#base + this.#length;
    if (this.#last?.bytes === all) return this.#last;
    if (this.#first !== undefined) return this.#first;
    const { eof } = this.#footers;
    // Cut within its description: what is still looked at begins with that EOF and goes on.
    const isCut = eof !== undefined && this.#base + 1 === eof && this.#length > 1;
    if (eof !== undefined && !isCut) return { bytes: eof, isWhole: true };
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
    return this.#first !== undefined && this.#base + this.#length > this.#first.bytes + LOOK_ON_BYTES;
  }

  #append(piece: Buffer): void {
    const length = this.#length + piece.length;
    if (length > this.#data.length) {
      const grown = Buffer.allocUnsafe(Math.max(2 * length, 4096));
      this.#data.copy(grown, 0, 0, this.#length);
      this.#data = grown;
    }
    piece.copy(this.#data, this.#length);
    this.#length = length;
  }

  /** Forgets all before `at`. */
  #drop(at: number): void {
    this.#data.copyWithin(0, at, this.#length);
    this.#base += at;
    this.#length -= at;
  }

  #look(): void {
    const data = this.#data.subarray(0, this.#length);
    for (let from = 0; this.#exact === undefined;) {
      const at = data.indexOf(HEAD, from);
      // Its first byte may be the last one here.
      if (at < 0) return this.#drop(Math.max(from, data.length - 1));
      const start = at + HEAD_BYTES;
      if (start >= data.length) return this.#drop(at);
      const bytes = data.readUInt32BE(at + HEAD.length);
      // Not behind all of it where it is none: the real head may begin within this one.
      from = at + 1;
      if (data[start] !== OPENING_BRACE || bytes > MAX_VM_DESCRIPTION_BYTES) continue;
      const end = start + bytes;
      const clean = Math.max(start, this.#cleanTo - this.#base);
      // JSON has no 00.
      if (data.subarray(clean, end).includes(0)) continue;
      if (end > data.length) {
        this.#cleanTo = this.#base + data.length;
        return this.#drop(at);
      }
      if (this.#take(data.subarray(start, end), this.#base + end)) from = end;
    }
  }

  #take(json: Buffer, end: number): boolean {
    if (json[json.length - 1] !== CLOSING_BRACE) return false;
    let description: VmDescription;
    try {
      description = parseVmDescription(json);
    } catch {
      return false;
    }
    this.#last = { bytes: end, description, isWhole: true };
    this.#first ??= this.#last;
    // With the EOF, whose byte is the first of the head.
    const before = end - json.length - HEAD_BYTES + 1;
    if ([true, false].some((footers) => sectionBytes(description, footers) === before))
      this.#exact = this.#last;
    return true;
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

  push(piece: Buffer): void {
    if (this.#footer === null) return;
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
      if (data[next] === QEMU_VM_EOF) this.eof = this.#base + next + 1;
      else if (next + SECTION_START_BYTES > data.length) break;
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
