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
import { MultifdError, describeThrown } from '../errors.js';
import { STREAM_ERRORS, quote } from './codes.js';
import { isEarlyDevice } from './other-sections.js';
import {
  QEMU_VM_EOF,
  QEMU_VM_SECTION_FOOTER,
  QEMU_VM_SECTION_FULL,
  QEMU_VM_VMDESCRIPTION,
} from './records.js';

/** By choice: 31 devices have 100 KB, and parsed JSON takes many times its size. */
export const MAX_VM_DESCRIPTION_BYTES = 2 ** 24;
/** 00 06 u32 n */
const HEAD_BYTES = 6;
const OPENING_BRACE = 0x7b;
/** What comes next: a name, or the white space that JSON allows before it. */
const AFTER_OPENING_BRACE = new Set(Buffer.from('" \t\n\r'));
const JSON_START_BYTES = 2;
const CLOSING_BRACE = 0x7d;
/** Subsections within subsections; QEMU has hardly more than one within another. */
const MAX_DEPTH = 32;
/** Type, section id, length of the name; then the name; then instance id, version id. */
const SECTION_HEAD_BYTES = 6;
const SECTION_IDS_BYTES = 8;
const FOOTER_BYTES = 5;
/** Sections are numbered from 0 on; no machine has so many. */
const MAX_SECTION_ID = 0xffff;
/** 05, length of the name; then the name; then the version. */
const SUBSECTION_BYTES = 6;

export interface VmDevice {
  /** For instance `0000:00:01.3/piix4_pm`; any text: `quote()` it for people. */
  name: string;
  instanceId: number;
  /** Of its state's format, where given. */
  version?: number;
  /** Of its state in the stream, without section head and footer; where all sizes are given. */
  bytes?: number;
}

export interface VmDescription {
  /** Target page size. */
  pageSize?: number;
  devices: VmDevice[];
}

/** @throws MultifdError STREAM_ERRORS.vmDescription */
export function parseVmDescription(json: Uint8Array): VmDescription {
  const refuse = (why: string): MultifdError =>
    new MultifdError(STREAM_ERRORS.vmDescription, `VM description: ${why}`);
  if (json.length > MAX_VM_DESCRIPTION_BYTES) {
    throw refuse(`received ${json.length} bytes, expected at most ${MAX_VM_DESCRIPTION_BYTES}`);
  }
  let all: unknown;
  try {
    all = JSON.parse(Buffer.from(json.buffer, json.byteOffset, json.byteLength).toString());
  } catch (error) {
    throw refuse(`received no JSON: ${quote(describeThrown(error))}`);
  }
  if (!isObject(all) || !Array.isArray(all.devices)) throw refuse('received JSON without a list of devices');
  const description: VmDescription = { devices: [] };
  const pageSize = count(all.page_size);
  if (pageSize !== undefined) description.pageSize = pageSize;
  for (const device of all.devices as unknown[]) {
    const instanceId = isObject(device) ? count(device.instance_id) : undefined;
    if (!isObject(device) || typeof device.name !== 'string' || instanceId === undefined) {
      throw refuse(`received a device (number ${description.devices.length}) without name or instance id`);
    }
    const version = count(device.version);
    const bytes = stateBytes(device, 0);
    description.devices.push({
      name: device.name,
      instanceId,
      ...(version !== undefined && { version }),
      ...(bytes !== undefined && { bytes }),
    });
  }
  return description;
}

/** Bytes that fields and subsections have in the stream; undefined where a size is missing. */
function stateBytes(state: Record<string, unknown>, depth: number): number | undefined {
  if (depth === MAX_DEPTH) return undefined;
  let sum = 0;
  for (const field of list(state.fields)) {
    const size = isObject(field) ? count(field.size) : undefined;
    const length = isObject(field) && field.array_len !== undefined ? count(field.array_len) : 1;
    if (size === undefined || length === undefined) return undefined;
    sum += size * length;
  }
  for (const subsection of list(state.subsections)) {
    const bytes = isObject(subsection) ? stateBytes(subsection, depth + 1) : undefined;
    if (!isObject(subsection) || typeof subsection.vmsd_name !== 'string' || bytes === undefined)
      return undefined;
    sum += SUBSECTION_BYTES + Buffer.byteLength(subsection.vmsd_name) + bytes;
  }
  return Number.isSafeInteger(sum) ? sum : undefined;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function count(value: unknown): number | undefined {
  return Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : undefined;
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
 * Finds the VM description in a tail that comes in pieces, and so the end of a stream whose source keeps the
 * connection open (return path: it waits for SHUT).
 *
 *     bytes since               state of the scanner
 *     (device state)            looking for `00 06 n {"` or, with a blank, `00 06 n { `; n within bounds
 *     00 06 n {"...             gathering; a byte 00 (JSON has none), or more than n bytes, and it looks on
 *     00 06 n {"..."} and none  complete, if those n bytes are a VM description
 *
 * Since a 00 ends a candidate and begins each, there is one at a time, and it is all that is kept: at most
 * `maxBytes`. `complete` says how things are at this moment: a device's state could hold such bytes, and then the
 * description is not `exact`, or more follows. Who is told `complete` on an open connection should see it idle for a
 * moment, a longer one where it is not `exact`.
 */
export class TailScanner {
  readonly #maxBytes: number;
  /** Bytes of the tail so far. */
  #total = 0;
  /** The last bytes so far, one less than a candidate needs to be seen. */
  #before: Buffer = Buffer.alloc(0);
  /** The candidate's JSON so far, `#have` bytes of `#length`; #have is 0 when there is none. */
  #json: Buffer = Buffer.alloc(0);
  #have = 0;
  #length = 0;
  #description: VmDescription | undefined;

  /** @param options.maxBytes the largest description; default 16 MiB */
  constructor(options: { maxBytes?: number } = {}) {
    this.#maxBytes = options.maxBytes ?? MAX_VM_DESCRIPTION_BYTES;
  }

  /** Bytes of the tail so far. */
  get bytes(): number {
    return this.#total;
  }

  /** Is what has been pushed a whole tail, with a VM description at its end? */
  get complete(): boolean {
    return this.#description !== undefined;
  }

  /** Is it complete, and do the sections before the description have exactly the bytes that it says? */
  get exact(): boolean {
    const description = this.#description;
    if (description === undefined) return false;
    const before = this.#total - this.#length - HEAD_BYTES + 1;
    return [true, false].some((footers) => sectionBytes(description, footers) === before);
  }

  /** Where complete. */
  get description(): VmDescription | undefined {
    return this.#description;
  }

  /** The description's bytes, where complete; a view. */
  get json(): Buffer | undefined {
    return this.complete ? this.#json.subarray(0, this.#length) : undefined;
  }

  /** Where the description's JSON begins in the tail, where complete. */
  get jsonOffset(): number | undefined {
    return this.complete ? this.#total - this.#length : undefined;
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
    const end = this.#before.subarray(-FOOTER_BYTES - 1);
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
    this.#description = undefined;
    this.#total += piece.length;
    if (this.#have > 0 && this.#have + piece.length <= this.#length && !piece.includes(0)) {
      this.#gather(piece);
    } else {
      this.#have = 0;
      this.#look(Buffer.concat([this.#before, piece]));
    }
    this.#before = tailOf(this.#before, piece);
    if (this.#have > 0 && this.#have === this.#length) this.#description = this.#parse();
    return this.complete;
  }

  #gather(piece: Buffer): void {
    const have = this.#have + piece.length;
    if (have > this.#json.length) {
      // Doubled, as a peer may send byte by byte.
      const grown = Buffer.allocUnsafe(Math.min(Math.max(2 * have, 4096), this.#length));
      this.#json.copy(grown, 0, 0, this.#have);
      this.#json = grown;
    }
    piece.copy(this.#json, this.#have);
    this.#have = have;
  }

  /** Looks for a candidate in `bytes`: a piece, and a few bytes before it. */
  #look(bytes: Buffer): void {
    // The head begins with a 00 and the JSON has none, so the head holds the last 00 of all.
    const last = bytes.lastIndexOf(0);
    if (last < 0) return;
    for (let at = Math.max(last + 1, HEAD_BYTES); at <= last + HEAD_BYTES; at++) {
      const head = at - HEAD_BYTES;
      if (bytes[at] !== OPENING_BRACE || !AFTER_OPENING_BRACE.has(bytes[at + 1])) continue;
      if (bytes[head] !== QEMU_VM_EOF || bytes[head + 1] !== QEMU_VM_VMDESCRIPTION) continue;
      const length = bytes.readUInt32BE(head + 2);
      if (length > this.#maxBytes || bytes.length - at > length) continue;
      this.#json = Buffer.alloc(0);
      this.#length = length;
      this.#gather(bytes.subarray(at));
      return;
    }
  }

  #parse(): VmDescription | undefined {
    if (this.#json[this.#length - 1] !== CLOSING_BRACE) return undefined;
    try {
      return parseVmDescription(this.#json.subarray(0, this.#length));
    } catch {
      return undefined;
    }
  }
}

function tailOf(before: Buffer, piece: Buffer): Buffer {
  const keep = HEAD_BYTES + JSON_START_BYTES - 1;
  if (piece.length >= keep) return Buffer.from(piece.subarray(piece.length - keep));
  const both = Buffer.concat([before, piece]);
  return both.subarray(Math.max(both.length - keep, 0));
}
