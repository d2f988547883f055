/**
 * The VM description: JSON with which the main stream ends, unless the machine has `suppress-vmdesc=on`. It lists the
 * devices whose sections are before it, field by field with sizes. Nobody needs it to load a VM; here it names the
 * devices, and it is the only thing that shows the stream's end on a connection that stays open.
 *
 *     04 FULL ... 7e FOOTER        device sections
 *     00                           EOF: the end of the sections
 *     06 u32 n, n bytes            VM description
 *     (nothing)
 *
 *     {"configuration": {...}, "page_size": 4096, "devices": [                        (QEMU 7.2 has no configuration)
 *     { "page_size" : 4096, "devices" : [ ...                                       (QEMU < 6.0: with blanks)
 *       {"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2, "fields": [
 *         {"name": ..., "type": ..., "size": 8, "array_len": 4}, ...], "subsections": [...]}, ...]}
 *
 * A size is of one element; a struct's includes its own subsections'. A subsection in the stream is 05, u8 n, n bytes
 * name, u32 version, fields. So the sizes add up to each section's body, and `locateDevices` finds the sections by
 * them (seen to be exact in captures of QEMU 7.2 and 10.0). Devices whose state goes before ram's END are in the list
 * and not in the tail.
 */
import { MultifdError } from '../errors.js';
import { DEFAULT_BOUNDS } from './bounds.js';
import { STREAM_ERRORS } from './codes.js';
import { DescriptionFinder, type FoundDescription } from './description-finder.js';
import {
  FOOTER_BYTES,
  SECTION_HEAD_BYTES,
  SECTION_IDS_BYTES,
  VmDescriptionReader,
  type Place,
  type VmDescription,
} from './description-reader.js';
import { isEarlyDevice } from './other-sections.js';
import { QEMU_VM_EOF, QEMU_VM_SECTION_FOOTER, QEMU_VM_SECTION_FULL } from './records.js';

export type { VmDescription, VmDevice } from './description-reader.js';

export const MAX_VM_DESCRIPTION_BYTES = DEFAULT_BOUNDS.maxDescription;
/** Sections are numbered from 0 on; no machine has so many. */
const MAX_SECTION_ID = 0xffff;

/**
 * In one piece: for who has it already, and not for what a peer sends.
 *
 * @throws MultifdError STREAM_ERRORS.vmDescription
 */
export function parseVmDescription(json: Uint8Array): VmDescription {
  if (json.length > MAX_VM_DESCRIPTION_BYTES) {
    const message = `VM description: received ${json.length} bytes, expected at most ${MAX_VM_DESCRIPTION_BYTES}`;
    throw new MultifdError(STREAM_ERRORS.vmDescription, message);
  }
  const reader = new VmDescriptionReader(true);
  reader.push(json);
  return reader.description();
}

/**
 * The tail's length up to and with EOF, if it holds the described devices' FULL sections and nothing else; undefined
 * where a size is missing.
 */
export function sectionBytes(description: VmDescription, footers: boolean): number | undefined {
  let sum = 1;
  for (const { name, bytes } of description.devices) {
    if (isEarlyDevice(name)) continue;
    if (bytes === undefined) return undefined;
    const frame = SECTION_HEAD_BYTES + Buffer.byteLength(name) + SECTION_IDS_BYTES;
    sum += frame + bytes + (footers ? FOOTER_BYTES : 0);
  }
  return sum;
}

export interface DeviceSection {
  name: string;
  instanceId: number;
  /** As the section's head says. */
  version: number;
  /** Of the state, from the tail's begin on. */
  offset: number;
  bytes: number;
}

/**
 * Walks the device sections of a tail by the description's sizes.
 *
 * @param tail from behind ram's END on
 * @returns undefined if the sections are not exactly the described ones
 */
export function locateDevices(
  tail: Buffer,
  description: VmDescription,
  footers: boolean,
): DeviceSection[] | undefined {
  const sections: DeviceSection[] = [];
  let at = 0;
  for (const device of description.devices) {
    if (isEarlyDevice(device.name)) continue;
    const nameBytes = Buffer.byteLength(device.name);
    const head = SECTION_HEAD_BYTES + nameBytes + SECTION_IDS_BYTES;
    const end = at + head + (device.bytes ?? NaN);
    if (!(end + (footers ? FOOTER_BYTES : 0) < tail.length)) return undefined;
    const ids = at + SECTION_HEAD_BYTES + nameBytes;
    const section: DeviceSection = {
      name: tail.toString('utf8', at + SECTION_HEAD_BYTES, ids),
      instanceId: tail.readUInt32BE(ids),
      version: tail.readUInt32BE(ids + 4),
      offset: at + head,
      bytes: end - at - head,
    };
    const isRight =
      tail[at] === QEMU_VM_SECTION_FULL &&
      tail[at + SECTION_HEAD_BYTES - 1] === nameBytes &&
      section.name === device.name &&
      section.instanceId === device.instanceId &&
      (!footers ||
        (tail[end] === QEMU_VM_SECTION_FOOTER && tail.readUInt32BE(end + 1) === tail.readUInt32BE(at + 1)));
    if (!isRight) return undefined;
    sections.push(section);
    at = end + (footers ? FOOTER_BYTES : 0);
  }
  return tail[at] === QEMU_VM_EOF ? sections : undefined;
}

/**
 * Watches a tail that comes in pieces for its end: on a connection that stays open (return path: the source waits for
 * SHUT) the VM description is all that shows it.
 *
 *     bytes since               complete
 *     (device state)            no
 *     00 06 n {"...             no
 *     00 06 n {"..."} and none  yes
 *     00 06 n {"..."} and some  no: it was some device's state
 *
 * `complete` says how things are at this moment: a device's state could hold such bytes, and then the description is not
 * `exact`, or more follows. Who is told `complete` on an open connection should see it idle for a moment, a longer one
 * where it is not `exact`.
 */
export class TailScanner {
  readonly maxBytes: number;
  readonly #finder: DescriptionFinder;
  /** The last bytes so far, as many as a footer and EOF have. */
  #before: Buffer = Buffer.alloc(0);
  #last: FoundDescription | undefined;

  /**
   * @param options.maxBytes the largest description; default 16 MiB
   * @param options.keepJson default true; without it there are no `json` and no `description`
   */
  constructor(options: { maxBytes?: number; keepJson?: boolean } = {}) {
    const { maxBytes = MAX_VM_DESCRIPTION_BYTES, keepJson = true } = options;
    this.maxBytes = maxBytes;
    this.#finder = new DescriptionFinder({ maxBytes, keepDevices: false, keepJson });
  }

  /** Bytes of the tail so far. */
  get bytes(): number {
    return this.#finder.bytes;
  }

  /** Is what has been pushed a whole tail, with a VM description at its end? */
  get complete(): boolean {
    return this.#end !== undefined;
  }

  /** Is it complete, and do the sections before the description have exactly the bytes that it says? */
  get exact(): boolean {
    return this.#end?.exact === true;
  }

  /** Where complete and kept; it is read in one piece, for tests and tools. */
  get description(): VmDescription | undefined {
    const { json } = this;
    return json === undefined ? undefined : parseVmDescription(json);
  }

  /** The description's bytes, where complete and kept; a view. */
  get json(): Buffer | undefined {
    return this.#end === undefined ? undefined : this.#finder.jsonOf(this.#end);
  }

  /** Where the description's JSON begins in the tail, where complete. */
  get jsonOffset(): number | undefined {
    return this.#end?.offset;
  }

  /** Where in the JSON the value of "configuration" lies, where complete. */
  get configuration(): Place | 'none' | 'other' | undefined {
    return this.#end?.configuration;
  }

  /** Has a description come that is above `maxBytes`? Its length, then. */
  get tooLong(): number | undefined {
    return this.#finder.tooLong;
  }

  get #end(): FoundDescription | undefined {
    const last = this.#last;
    if (last === undefined || last.tooLong) return undefined;
    return last.offset + last.bytes === this.bytes ? last : undefined;
  }

  /**
   * Does the tail, so far, end with a byte that could be EOF? It is all there is to tell the end where the machine
   * has `suppress-vmdesc=on`.
   */
  get endsWithEof(): boolean {
    return this.#before.length > 0 && this.#before[this.#before.length - 1] === QEMU_VM_EOF;
  }

  /**
   * Does it end as the tail of such a machine does: with a section's footer, `7e <u32 id>`, and EOF? Behind a footer comes
   * a section or EOF and nothing else, so a tail that is cut looks like that only by a freak of some device's bytes.
   */
  get endsWithFooterAndEof(): boolean {
    const end = this.#before;
    if (end.length <= FOOTER_BYTES || end[0] !== QEMU_VM_SECTION_FOOTER) return false;
    return end.readUInt32BE(1) <= MAX_SECTION_ID && end[FOOTER_BYTES] === QEMU_VM_EOF;
  }

  /**
   * The next piece, of which nothing is kept but a copy.
   *
   * @returns `complete`
   */
  push(chunk: Uint8Array): boolean {
    if (chunk.length === 0) return this.complete;
    const piece = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    this.#finder.push(piece, (found) => (this.#last = found));
    const keep = FOOTER_BYTES + 1;
    this.#before = Buffer.concat([this.#before, piece.subarray(-keep)]).subarray(-keep);
    return this.complete;
  }
}
