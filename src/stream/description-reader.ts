/**
 * Reads a VM description as it comes (its form stands in vm-description.ts): a peer may send one of any shape, and neither
 * the time of one piece nor the memory is to grow with it. Kept are sums, and the devices where they are wanted.
 *
 *     level                     kept while it is open
 *     the description           page size; devices; how many bytes their sections have in the stream
 *       devices [ ]             problem: the first that is none
 *         device { }            name, instance id, version; bytes of fields, bytes of subsections
 *           fields [ ]          the sum
 *             field { }         size, number of elements
 *           subsections [ ]     the sum
 *             subsection { }    bytes of its name; as a device, up to MAX_DEPTH of them within one another
 *
 * Of a name that an object has twice the last one counts, as with JSON.parse().
 */
import { MultifdError } from '../errors.js';
import { CAPTURE_BYTES, JsonReader } from './json-reader.js';
import { STREAM_ERRORS, quote } from './codes.js';
import { isEarlyDevice } from './other-sections.js';

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

/** Subsections within subsections; QEMU has hardly more than one within another. */
const MAX_DEPTH = 32;
/** The length of a section's name is one byte in the stream. */
const MAX_NAME_BYTES = 255;
/** 05, length of the name; then the name; then the version. */
const SUBSECTION_BYTES = 6;
/** Type, section id, length of the name; then the name; then instance id, version id. */
export const SECTION_HEAD_BYTES = 6;
export const SECTION_IDS_BYTES = 8;
export const FOOTER_BYTES = 5;
/** A size has some ten digits. */
const MAX_NUMBER_BYTES = 64;
/** By length and first letter: a peer may send millions of keys, and strings of all of them would be thrown away. */
const KEYS = new Map(
  [
    ...['configuration', 'page_size', 'devices', 'name', 'instance_id', 'version'],
    ...['fields', 'subsections', 'size', 'array_len', 'vmsd_name'],
  ].map((text) => [keyHash(text.length, text.charCodeAt(0)), { text, bytes: Buffer.from(text) }]),
);

type Level = 'description' | 'devices' | 'device' | 'fields' | 'field' | 'subsections' | 'subsection';

/** What is open. Sums are NaN where a size is missing. */
interface Frame {
  level: Level;
  /** The key whose value comes. */
  key: string;
  /** device, subsection */
  fields: number;
  subsections: number;
  /** device */
  name: string | undefined;
  instanceId: number | undefined;
  version: number | undefined;
  /** subsection: bytes of its name */
  nameBytes: number;
  /** fields, subsections: bytes of the elements */
  sum: number;
  /** field */
  size: number;
  elements: number;
}

/** Where a value stands in the JSON. */
export interface Place {
  from: number;
  to: number;
}

export class VmDescriptionReader extends JsonReader {
  readonly #keepDevices: boolean;
  readonly #frames: Frame[] = [];
  #open = -1;
  /** How many subsections are open, one within another. */
  #nested = 0;
  #pageSize: number | undefined;
  #devices: VmDevice[] | undefined;
  #hasDevices = false;
  #deviceCount = 0;
  #problem: string | undefined;
  #sectionBytes = 0;
  #sections = 0;
  #configuration: Place | 'none' | 'other' = 'none';
  #passedPlace = false;

  /** @param keepDevices else the description has none, and takes no memory */
  constructor(keepDevices: boolean) {
    super();
    this.#keepDevices = keepDevices;
    this.restart();
  }

  override restart(): void {
    super.restart();
    this.#open = -1;
    this.#nested = 0;
    this.#pageSize = undefined;
    this.#configuration = 'none';
    this.#passedPlace = false;
    this.#forgetDevices();
  }

  /** Could what has come be a description, or the begin of one? */
  get isPossible(): boolean {
    return this.isSound && this.#problem === undefined;
  }

  /** Is what has come a whole description? */
  get isComplete(): boolean {
    return this.isWhole() && this.#hasDevices && this.#problem === undefined;
  }

  /** The value of "configuration": where that object or array lies, or that it is neither, or not there. */
  get configuration(): Place | 'none' | 'other' {
    return this.#configuration;
  }

  /**
   * The length of a tail that holds the described devices' FULL sections, EOF and nothing else; NaN where a size is
   * missing.
   */
  sectionBytes(footers: boolean): number {
    return 1 + this.#sectionBytes + (footers ? FOOTER_BYTES * this.#sections : 0);
  }

  /** @throws MultifdError STREAM_ERRORS.vmDescription where it is not complete */
  description(): VmDescription {
    const refuse = (why: string): MultifdError =>
      new MultifdError(STREAM_ERRORS.vmDescription, `VM description: ${why}`);
    if (!this.isWhole()) {
      const where = this.isSound
        ? `its end at byte ${this.position}`
        : `no sense at byte ${this.position - 1}`;
      throw refuse(`received no JSON: ${quote(where)}`);
    }
    if (!this.#hasDevices) throw refuse('received JSON without a list of devices');
    if (this.#problem !== undefined) throw refuse(this.#problem);
    const devices = this.#devices ?? [];
    return this.#pageSize === undefined ? { devices } : { pageSize: this.#pageSize, devices };
  }

  // ---- JsonReader ----

  protected begin(isArray: boolean): boolean {
    if (this.#open < 0) return isArray ? false : this.#push('description');
    const frame = this.#frames[this.#open];
    switch (frame.level) {
      case 'description':
        if (frame.key === 'devices') {
          this.#forgetDevices();
          this.#hasDevices = isArray;
          return isArray && this.#push('devices');
        }
        if (frame.key === 'page_size') this.#pageSize = undefined;
        this.#passedPlace = frame.key === 'configuration';
        if (this.#passedPlace) this.#configuration = { from: this.position - 1, to: NaN };
        return false;
      case 'devices':
        if (!isArray) return this.#push('device');
        this.#noDevice();
        return false;
      case 'device':
      case 'subsection':
        if (frame.key === 'fields') {
          frame.fields = 0;
          return isArray && this.#push('fields');
        }
        if (frame.key === 'subsections') {
          frame.subsections = 0;
          return isArray && this.#push('subsections');
        }
        this.#setOf(frame, undefined, undefined);
        return false;
      case 'fields':
        if (!isArray) return this.#push('field');
        frame.sum = NaN;
        return false;
      case 'subsections':
        if (!isArray && this.#nested < MAX_DEPTH - 1) {
          this.#nested++;
          return this.#push('subsection');
        }
        frame.sum = NaN;
        return false;
      case 'field':
        this.#setOf(frame, undefined, undefined);
        return false;
    }
  }

  protected end(): void {
    const frame = this.#frames[this.#open--];
    const outer = this.#frames[this.#open];
    switch (frame.level) {
      case 'device':
        this.#addDevice(frame);
        break;
      case 'subsection':
        this.#nested--;
        outer.sum += SUBSECTION_BYTES + frame.nameBytes + stateBytes(frame);
        break;
      case 'field':
        outer.sum += frame.size * frame.elements;
        break;
      case 'fields':
        outer.fields = frame.sum;
        break;
      case 'subsections':
        outer.subsections = frame.sum;
        break;
    }
  }

  protected passed(): void {
    if (this.#passedPlace && typeof this.#configuration === 'object') this.#configuration.to = this.position;
    this.#passedPlace = false;
  }

  protected key(): void {
    this.#frames[this.#open].key = this.#capturedKey();
  }

  protected wantsString(): boolean {
    const frame = this.#frames[this.#open] as Frame | undefined;
    return (
      (frame?.level === 'device' && frame.key === 'name') ||
      (frame?.level === 'subsection' && frame.key === 'vmsd_name')
    );
  }

  protected text(): void {
    const frame = this.#frames[this.#open];
    this.#setOf(frame, this.capturedBytes > CAPTURE_BYTES ? undefined : this.#capturedText(), undefined);
  }

  protected number(): void {
    const value =
      this.capturedBytes > MAX_NUMBER_BYTES
        ? NaN
        : Number(this.captured.toString('latin1', 0, this.capturedBytes));
    this.#scalar(Number.isSafeInteger(value) && value >= 0 ? value : undefined);
  }

  protected other(): void {
    this.#scalar(undefined);
  }

  // ---- values ----

  /** Anything but an object, an array or a wanted string. */
  #scalar(count: number | undefined): void {
    if (this.#open < 0) return;
    const frame = this.#frames[this.#open];
    switch (frame.level) {
      case 'description':
        if (frame.key === 'page_size') this.#pageSize = count;
        if (frame.key === 'configuration') this.#configuration = 'other';
        if (frame.key === 'devices') this.#forgetDevices();
        break;
      case 'devices':
        this.#noDevice();
        break;
      case 'fields':
      case 'subsections':
        frame.sum = NaN;
        break;
      default:
        this.#setOf(frame, undefined, count);
    }
  }

  /** Of a device, a subsection or a field: the value of its key. */
  #setOf(frame: Frame, text: string | undefined, count: number | undefined): void {
    switch (frame.key) {
      case 'name':
        if (frame.level === 'device') frame.name = text;
        break;
      case 'vmsd_name':
        if (frame.level === 'subsection')
          frame.nameBytes = text === undefined ? NaN : Buffer.byteLength(text);
        break;
      case 'instance_id':
        frame.instanceId = count;
        break;
      case 'version':
        frame.version = count;
        break;
      case 'fields':
        frame.fields = 0;
        break;
      case 'subsections':
        frame.subsections = 0;
        break;
      case 'size':
        frame.size = count ?? NaN;
        break;
      case 'array_len':
        frame.elements = count ?? NaN;
        break;
    }
  }

  #addDevice({ name, instanceId, version, fields, subsections }: Frame): void {
    if (name === undefined || instanceId === undefined) return this.#noDevice();
    const nameBytes = Buffer.byteLength(name);
    if (nameBytes > MAX_NAME_BYTES) {
      this.#problem ??= `received a device (number ${this.#deviceCount}) whose name has ${nameBytes} bytes, expected at most ${MAX_NAME_BYTES}`;
      return;
    }
    const bytes = stateBytes({ fields, subsections });
    this.#deviceCount++;
    if (!isEarlyDevice(name)) {
      this.#sections++;
      this.#sectionBytes += SECTION_HEAD_BYTES + nameBytes + SECTION_IDS_BYTES + bytes;
    }
    if (!this.#keepDevices) return;
    this.#devices ??= [];
    this.#devices.push({
      name,
      instanceId,
      ...(version !== undefined && { version }),
      ...(!Number.isNaN(bytes) && { bytes }),
    });
  }

  #noDevice(): void {
    this.#problem ??= `received a device (number ${this.#deviceCount}) without name or instance id`;
  }

  #forgetDevices(): void {
    this.#hasDevices = false;
    this.#devices = undefined;
    this.#deviceCount = 0;
    this.#problem = undefined;
    this.#sectionBytes = 0;
    this.#sections = 0;
  }

  #push(level: Level): true {
    const frame = (this.#frames[++this.#open] ??= {} as Frame);
    frame.level = level;
    frame.key = '';
    frame.fields = 0;
    frame.subsections = 0;
    frame.name = undefined;
    frame.instanceId = undefined;
    frame.version = undefined;
    frame.nameBytes = NaN;
    frame.sum = 0;
    frame.size = NaN;
    frame.elements = 1;
    return true;
  }

  /** '' for any other. */
  #capturedKey(): string {
    const { captured, capturedBytes } = this;
    if (this.escaped) return capturedBytes > CAPTURE_BYTES ? '' : this.#capturedText();
    const known = KEYS.get(keyHash(capturedBytes, captured[0]));
    if (known === undefined) return '';
    for (let i = 0; i < capturedBytes; i++) if (captured[i] !== known.bytes[i]) return '';
    return known.text;
  }

  #capturedText(): string {
    const text = this.captured.toString('utf8', 0, this.capturedBytes);
    return this.escaped ? (JSON.parse(`"${text}"`) as string) : text;
  }
}

/** NaN where a size is missing, or the numbers are none that are exact. */
function stateBytes({ fields, subsections }: Pick<Frame, 'fields' | 'subsections'>): number {
  const sum = fields + subsections;
  return Number.isSafeInteger(sum) ? sum : NaN;
}

/** Of each known key another one. */
function keyHash(length: number, first: number): number {
  return (length << 8) | first;
}
