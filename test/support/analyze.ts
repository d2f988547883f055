/**
 * Reads a mapped-ram file as QEMU's scripts/analyze-migration.py does, by its VM description alone, and shares no code
 * with src/: sections have no length, so each is as long as the description says, field by field, and whatever the
 * description does not name ends the reading with an error.
 *
 *     1  the description, from the end of the file
 *     2  the configuration by "configuration" (where there is none: the machine's name, and no subsections)
 *     3  section by section: ram by its records and mapped-ram headers, all others by "devices"
 *     4  EOF, and the description again, where it was
 */
import { createHash } from 'node:crypto';

interface Field {
  name: string;
  type: string;
  size: number;
  array_len?: number;
  index?: number;
  struct?: Described;
}

interface Described {
  vmsd_name?: string;
  name?: string;
  instance_id?: number;
  version?: number;
  fields?: Field[];
  subsections?: Described[];
}

interface Description {
  configuration?: Described;
  page_size: number;
  devices: Described[];
}

export interface Analyzed {
  machine: string;
  /** Names of the configuration's subsections. */
  subsections: string[];
  capabilities: string[];
  /** Sections of devices in order, `name/instance`. */
  devices: string[];
  pageSize: number;
  /** SHA-256 of each block's RAM, in hex. */
  ram: Map<string, string>;
}

export function analyze(file: Buffer): Analyzed {
  return new Analyzer(file).read();
}

class Analyzer {
  readonly #file: Buffer;
  #at = 0;
  readonly #description: Description;
  readonly #jsonAt: number;
  /** id to name/instance, as START and FULL said. */
  readonly #sections = new Map<number, string>();
  readonly #result: Analyzed;

  constructor(file: Buffer) {
    this.#file = file;
    this.#jsonAt = file.indexOf('{', file.lastIndexOf(0));
    this.#description = JSON.parse(file.toString('utf8', this.#jsonAt)) as Description;
    const pageSize = this.#description.page_size;
    this.#result = { machine: '', subsections: [], capabilities: [], devices: [], pageSize, ram: new Map() };
  }

  read(): Analyzed {
    this.#expect(this.#bytes(8).toString('hex'), '5145564d00000003', 'file header');
    for (;;) {
      const type = this.#u8();
      if (type === 0) break;
      if (type === 7) this.#configuration();
      else if (type === 1 || type === 4) this.#section(this.#head());
      else if (type === 2 || type === 3) this.#section(this.#sections.get(this.#u32()) ?? 'no section');
      else if (type === 8) this.#bytes(this.#bytes(4).readUInt16BE(2));
      else if (type === 0x7e) this.#expect(this.#sections.has(this.#u32()), true, 'id of a footer');
      else throw new Error(`unknown section type ${type} before byte ${this.#at}`);
    }
    this.#expect(this.#u8(), 6, 'type of the description');
    this.#expect(this.#u32(), this.#file.length - this.#jsonAt, 'bytes of the description');
    this.#expect(this.#at, this.#jsonAt, 'place of the description');
    return this.#result;
  }

  #configuration(): void {
    const { configuration } = this.#description;
    const start = this.#at;
    const nameBytes = this.#u32();
    this.#result.machine = this.#bytes(nameBytes).toString();
    if (configuration === undefined) return;
    this.#at = start;
    this.#state(configuration);
    this.#result.subsections = (configuration.subsections ?? []).map((one) => one.vmsd_name ?? '');
  }

  #head(): string {
    const id = this.#u32();
    const name = this.#bytes(this.#u8()).toString();
    const section = `${name}/${this.#u32()}`;
    this.#u32();
    this.#sections.set(id, section);
    return section;
  }

  #section(section: string): void {
    if (section === 'ram/0') return this.#ram();
    const device = this.#description.devices.find((one) => `${one.name}/${one.instance_id}` === section);
    if (device === undefined) throw new Error(`${section} is not described`);
    this.#result.devices.push(section);
    this.#state(device);
  }

  #ram(): void {
    const pageSize = this.#description.page_size;
    for (;;) {
      const word = this.#u64();
      const flags = word % pageSize;
      if (flags === 0x10) return;
      this.#expect(flags, 4, 'flags of a record in ram');
      for (let left = word - flags; left > 0;) left -= this.#block();
    }
  }

  #block(): number {
    const pageSize = this.#description.page_size;
    const name = this.#bytes(this.#u8()).toString();
    const length = this.#u64();
    this.#expect(this.#u32(), 1, 'version');
    this.#expect(this.#u64(), pageSize, 'page size');
    const bitmap = this.#u64();
    const pages = this.#u64();
    const ram = Buffer.alloc(length);
    for (let page = 0; page * pageSize < length; page++) {
      if (((this.#file[bitmap + (page >> 3)] >> (page & 7)) & 1) === 0) continue;
      this.#file.copy(ram, page * pageSize, pages + page * pageSize, pages + (page + 1) * pageSize);
    }
    this.#result.ram.set(name, createHash('sha256').update(ram).digest('hex'));
    this.#at = pages + length;
    return length;
  }

  #state({ fields = [], subsections = [] }: Described): void {
    for (const field of fields) {
      for (let i = 0; i < (field.array_len ?? 1); i++) this.#field(field);
    }
    for (const subsection of subsections) {
      this.#expect(this.#u8(), 5, `type of ${subsection.vmsd_name}`);
      this.#expect(this.#bytes(this.#u8()).toString(), subsection.vmsd_name, 'name of a subsection');
      this.#expect(this.#u32(), subsection.version, 'version of a subsection');
      this.#state(subsection);
    }
  }

  #field({ name, type, size, struct, index }: Field): void {
    const start = this.#at;
    if (struct !== undefined) this.#state(struct);
    else if (type === 'capability') {
      this.#expect(this.#result.capabilities.length, index ?? this.#result.capabilities.length, 'index');
      this.#result.capabilities.push(this.#bytes(this.#u8()).toString());
    } else this.#bytes(size);
    this.#expect(this.#at - start, size, `size of ${name}`);
  }

  #expect(received: unknown, expected: unknown, what: string): void {
    if (received !== expected) {
      throw new Error(`${what} before byte ${this.#at}: ${String(received)}, expected ${String(expected)}`);
    }
  }

  #bytes(count: number): Buffer {
    if (this.#at + count > this.#file.length)
      throw new Error(`the file ends in ${count} bytes at ${this.#at}`);
    this.#at += count;
    return this.#file.subarray(this.#at - count, this.#at);
  }

  #u8(): number {
    return this.#bytes(1)[0];
  }

  #u32(): number {
    return this.#bytes(4).readUInt32BE(0);
  }

  #u64(): number {
    return Number(this.#bytes(8).readBigUInt64BE(0));
  }
}
