/**
 * Finds the VM descriptions in a tail that comes in pieces:
 *
 *     00 06 u32 n   head: EOF, and the section type VMDESCRIPTION
 *     { ... }       n bytes of JSON: a candidate, read while it comes, given up at the first byte that does not fit
 *
 * JSON has no 00, so a candidate ends before the next head begins, and another one lives beside it only where its head
 * begins within the first one's: three at the most. So a byte is looked at a few times at the most, whatever the tail
 * holds; nothing is read twice, and nothing is put off to the end of a candidate.
 *
 * Memory: the devices, where they are wanted, and the JSON, where it is; of descriptions up to `maxBytes`. One above it
 * is found as well, so that the end of the tail is known, but of it nothing is kept.
 */
import { VmDescriptionReader, type Place, type VmDescription } from './description-reader.js';

const HEAD = Buffer.of(0x00, 0x06);
export const HEAD_BYTES = 6;
const OPENING_BRACE = 0x7b;
/** What comes next: a name, or the white space that JSON allows before it. */
const BEGINS = new Set(Buffer.from('" \t\n\r'));
const CLOSING_BRACE = 0x7d;
/** A head, the brace, and one byte more: less does not tell. */
const SEEN_BYTES = HEAD_BYTES + 2;

export interface FoundDescription {
  /** Where its JSON lies in the tail. */
  offset: number;
  bytes: number;
  /** Is it above `maxBytes`? Then neither devices nor JSON were kept. */
  tooLong: boolean;
  /** As of VmDescriptionReader, within the JSON. */
  configuration: Place | 'none' | 'other';
  /** Do the sections before it have exactly the bytes that it says? */
  exact: boolean;
  /** Where devices are kept. */
  description: VmDescription | undefined;
}

export interface DescriptionFinderOptions {
  maxBytes: number;
  keepDevices: boolean;
  /** Keep the JSON of what has been found, until the next byte comes. */
  keepJson: boolean;
}

interface Candidate {
  reader: VmDescriptionReader;
  offset: number;
  bytes: number;
  left: number;
}

export class DescriptionFinder {
  readonly #options: DescriptionFinderOptions;
  /** Of the tail so far. */
  #total = 0;
  /** The last bytes so far, one less than tell of a candidate. */
  #before: Buffer = Buffer.alloc(0);
  #candidates: Candidate[] = [];
  /** Of each kind those that are free: one is used for many candidates. */
  readonly #free: VmDescriptionReader[] = [];
  readonly #freeOfLong: VmDescriptionReader[] = [];
  /** `#jsonBytes` bytes of the tail, from `#jsonOffset` on. */
  #json: Buffer = Buffer.alloc(0);
  #jsonBytes = 0;
  #jsonOffset = 0;
  /** Bytes that a description above maxBytes has by its head; it has come as far as maxBytes, so it is surely one. */
  tooLong: number | undefined;

  constructor(options: DescriptionFinderOptions) {
    this.#options = options;
  }

  /** Bytes of the tail so far. */
  get bytes(): number {
    return this.#total;
  }

  /** Does what has come from there on look like a head, and then like the begin of a description? */
  mayBeginAt(position: number): boolean {
    if (this.#candidates.some(({ offset }) => offset - HEAD_BYTES === position)) return true;
    const at = position - (this.#total - this.#before.length);
    return at >= 0 && at + HEAD.length <= this.#before.length && this.#before.indexOf(HEAD, at) === at;
  }

  /** What was found last, if all of it is still here; a view. */
  jsonOf({ offset, bytes }: FoundDescription): Buffer | undefined {
    const from = offset - this.#jsonOffset;
    if (from < 0 || from + bytes > this.#jsonBytes) return undefined;
    return this.#json.subarray(from, from + bytes);
  }

  /**
   * The next piece, of which nothing is kept but copies.
   *
   * @param found is told of each description, in their order
   */
  push(piece: Buffer, found: (description: FoundDescription) => void): void {
    const data = Buffer.concat([this.#before, piece]);
    const base = this.#total - this.#before.length;
    let at = this.#before.length;
    for (let from = 0; ;) {
      const head = data.indexOf(HEAD, from);
      if (head < 0 || head + SEEN_BYTES > data.length) break;
      // Not behind it: the next one may begin within.
      from = head + 1;
      const start = head + HEAD_BYTES;
      const bytes = data.readUInt32BE(head + HEAD.length);
      if (data[start] !== OPENING_BRACE || !BEGINS.has(data[start + 1]) || bytes < 2) continue;
      if (start > at) {
        this.#read(data, at, start, base, found);
        at = start;
      }
      this.#begin(base + start, bytes);
      // Its brace may have come with the piece before.
      const candidate = this.#candidates[this.#candidates.length - 1];
      candidate.reader.push(data, start, at);
      candidate.left -= at - start;
      this.#keep(data, start, at, base);
    }
    this.#read(data, at, data.length, base, found);
    this.#total += piece.length;
    this.#before = Buffer.from(data.subarray(Math.max(data.length - SEEN_BYTES + 1, 0)));
  }

  #begin(offset: number, bytes: number): void {
    const isLong = bytes > this.#options.maxBytes;
    const free = isLong ? this.#freeOfLong : this.#free;
    const reader = free.pop() ?? new VmDescriptionReader(this.#options.keepDevices && !isLong);
    if (!this.#candidates.some((other) => this.#isKept(other))) {
      this.#jsonBytes = 0;
      this.#jsonOffset = offset;
    }
    this.#candidates.push({ reader, offset, bytes, left: bytes });
  }

  /** All candidates read on. */
  #read(
    data: Buffer,
    from: number,
    to: number,
    base: number,
    found: (description: FoundDescription) => void,
  ): void {
    if (from === to) return;
    this.#keep(data, from, to, base);
    if (this.#candidates.length === 0) return;
    const ends: Candidate[] = [];
    this.#candidates = this.#candidates.filter((candidate) => {
      const { reader } = candidate;
      const count = Math.min(candidate.left, to - from);
      const isPossible = reader.push(data, from, from + count) && reader.isPossible;
      candidate.left -= count;
      if (isPossible && this.#isTooLong(candidate)) this.tooLong = candidate.bytes;
      if (isPossible && candidate.left > 0) return true;
      if (isPossible && data[from + count - 1] === CLOSING_BRACE && reader.isComplete) ends.push(candidate);
      else this.#release(candidate);
      return false;
    });
    ends.sort((a, b) => a.offset + a.bytes - b.offset - b.bytes);
    for (const candidate of ends) {
      found(this.#found(candidate));
      this.#release(candidate);
    }
  }

  #isKept({ bytes }: Candidate): boolean {
    return bytes <= this.#options.maxBytes;
  }

  #isTooLong({ bytes, left }: Candidate): boolean {
    const { maxBytes } = this.#options;
    return bytes > maxBytes && bytes - left > maxBytes;
  }

  #release({ reader, bytes }: Candidate): void {
    reader.restart();
    (bytes > this.#options.maxBytes ? this.#freeOfLong : this.#free).push(reader);
  }

  #found({ reader, offset, bytes }: Candidate): FoundDescription {
    const tooLong = bytes > this.#options.maxBytes;
    // With the EOF, whose byte is the first of the head.
    const before = offset - HEAD_BYTES + 1;
    return {
      offset,
      bytes,
      tooLong,
      configuration: reader.configuration,
      exact: [true, false].some((footers) => reader.sectionBytes(footers) === before),
      description: this.#options.keepDevices && !tooLong ? reader.description() : undefined,
    };
  }

  /** The JSON of what may be found: from the oldest candidate's begin on. */
  #keep(data: Buffer, from: number, to: number, base: number): void {
    if (!this.#options.keepJson) return;
    const ends = this.#candidates
      .filter((candidate) => this.#isKept(candidate))
      .map(({ offset, bytes }) => offset + bytes);
    if (ends.length === 0) {
      this.#json = Buffer.alloc(0);
      this.#jsonBytes = 0;
      return;
    }
    const last = Math.max(...ends);
    const begin = Math.max(from, this.#jsonOffset + this.#jsonBytes - base);
    const end = Math.min(to, last - base);
    if (end <= begin) return;
    const need = this.#jsonBytes + end - begin;
    if (need > this.#json.length) {
      // Doubled, as a peer may send byte by byte.
      const grown = Buffer.allocUnsafe(Math.min(Math.max(2 * need, 4096), last - this.#jsonOffset));
      this.#json.copy(grown, 0, 0, this.#jsonBytes);
      this.#json = grown;
    }
    data.copy(this.#json, this.#jsonBytes, begin, end);
    this.#jsonBytes = need;
  }
}
