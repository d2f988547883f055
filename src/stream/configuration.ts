/**
 * How the main stream begins: the file header, and the CONFIGURATION section, which is there unless the source's
 * machine has `send-configuration=off`. All integers big-endian.
 *
 *     51 45 56 4d  00 00 00 03            "QEVM", version 3
 *     07                                  CONFIGURATION
 *       u32 n, n bytes                    the machine type's full name, no NUL
 *       05 u8 n, n bytes name, u32 1      then, in this order and each at most once:
 *          configuration/target-page-bits     u32 bits
 *          configuration/capabilities         u32 count, count x (u8 n, n bytes name)
 *          configuration/uuid                 16 bytes
 *
 * The section has no length: it ends where the next byte is not 05. So a subsection that is not known cannot be
 * passed over and is refused. What is read here is written again byte for byte by the encoders beside it.
 */
import { UUID_BYTES } from '../wire/hello.js';
import type { ByteReader } from './byte-reader.js';
import { quote, refusal } from './codes.js';

export const QEMU_VM_FILE_MAGIC = 0x5145564d;
export const QEMU_VM_FILE_VERSION = 3;
export const FILE_HEADER_BYTES = 8;
export const QEMU_VM_CONFIGURATION = 0x07;
export const QEMU_VM_SUBSECTION = 0x05;
const SUBSECTION_VERSION = 1;

/** Bounds, by choice: QEMU's own names have some 30 bytes, and two capabilities are announced at all. */
const MAX_MACHINE_BYTES = 255;
const MAX_CAPABILITIES = 64;
/** Its length is one byte. */
const MAX_NAME_BYTES = 255;
/** 4 KiB to 64 KiB, as everywhere in this library. */
const MIN_PAGE_BITS = 12;
const MAX_PAGE_BITS = 16;

export const CAPABILITY_MAPPED_RAM = 'mapped-ram';
export const CAPABILITY_IGNORE_SHARED = 'x-ignore-shared';

const NAME_TARGET_PAGE_BITS = 'configuration/target-page-bits';
export const NAME_CAPABILITIES = 'configuration/capabilities';
const NAME_UUID = 'configuration/uuid';
const SUBSECTION_ORDER = [NAME_TARGET_PAGE_BITS, NAME_CAPABILITIES, NAME_UUID];

/** The machine's name and the subsections that the section has. */
export interface Configuration {
  /** Full name, for instance `pc-i440fx-10.0`. */
  machine: string;
  /** log2 of the target page size; only targets with a variable one send it. */
  targetPageBits?: number;
  /** The capabilities that both sides must agree on; the subsection is absent where this is. */
  capabilities?: string[];
  /** 16 raw bytes; only with capability validate-uuid. */
  uuid?: Buffer;
}

export function hasCapability(configuration: Configuration | undefined, capability: string): boolean {
  return configuration?.capabilities?.includes(capability) ?? false;
}

/** Printable ASCII: names are shown to people and compared by bytes. */
export function isPlainName(name: string): boolean {
  return /^[\x20-\x7e]+$/.test(name);
}

export function encodeFileHeader(): Buffer {
  const bytes = Buffer.alloc(FILE_HEADER_BYTES);
  bytes.writeUInt32BE(QEMU_VM_FILE_MAGIC, 0);
  bytes.writeUInt32BE(QEMU_VM_FILE_VERSION, 4);
  return bytes;
}

/** @throws MultifdError STREAM_ERRORS.magic, .eof */
export async function decodeFileHeader(reader: ByteReader): Promise<void> {
  const at = reader.position;
  const bytes = await reader.exactly(FILE_HEADER_BYTES, 'the file header');
  if (bytes.readUInt32BE(0) !== QEMU_VM_FILE_MAGIC) {
    const what = `${reader.name} at byte ${at}: magic`;
    throw refusal('magic', what, `0x${bytes.toString('hex', 0, 4)}`, '0x5145564d ("QEVM")');
  }
  const version = bytes.readUInt32BE(4);
  if (version !== QEMU_VM_FILE_VERSION) {
    throw refusal('magic', `${reader.name} at byte ${at + 4}: version`, version, QEMU_VM_FILE_VERSION);
  }
}

/** The section with its type byte. */
export function encodeConfiguration(configuration: Configuration): Buffer {
  const { machine, targetPageBits, capabilities, uuid } = configuration;
  const pieces = [
    Buffer.of(QEMU_VM_CONFIGURATION),
    encodeU32(Buffer.byteLength(machine, 'latin1')),
    Buffer.from(machine, 'latin1'),
  ];
  if (targetPageBits !== undefined) {
    pieces.push(encodeSubsectionStart(NAME_TARGET_PAGE_BITS), encodeU32(targetPageBits));
  }
  if (capabilities !== undefined) {
    pieces.push(encodeSubsectionStart(NAME_CAPABILITIES), encodeU32(capabilities.length));
    pieces.push(...capabilities.map(encodeName));
  }
  if (uuid !== undefined) pieces.push(encodeSubsectionStart(NAME_UUID), uuid);
  return Buffer.concat(pieces);
}

/** A subsection as a VM description lists it. */
export interface DescribedSubsection {
  vmsd_name: string;
  version: number;
  fields: object[];
}

/** The section's subsections as QEMU describes them, in the stream's order. */
export function describedSubsections(configuration: Configuration): DescribedSubsection[] {
  const { targetPageBits, capabilities, uuid } = configuration;
  const described: DescribedSubsection[] = [];
  const add = (name: string, ...fields: object[]): void => {
    described.push({ vmsd_name: name, version: SUBSECTION_VERSION, fields });
  };
  if (targetPageBits !== undefined) {
    add(NAME_TARGET_PAGE_BITS, { name: 'target_page_bits', type: 'uint32', size: 4 });
  }
  if (capabilities !== undefined) {
    const elements = capabilities.map((capability, index) => ({
      name: 'capabilities',
      // The elements' sizes differ, so none stands for all (array_len).
      ...(capabilities.length > 1 && { index }),
      type: 'capability',
      size: encodeName(capability).length,
    }));
    add(NAME_CAPABILITIES, { name: 'caps_count', type: 'uint32', size: 4 }, ...elements);
  }
  if (uuid !== undefined)
    add(NAME_UUID, { name: 'uuid.data', array_len: UUID_BYTES, type: 'uint8', size: 1 });
  return described;
}

/**
 * From the type byte on, which the caller has peeked at.
 *
 * @throws MultifdError STREAM_ERRORS.format, .limit, .pageSize, .unsupported, .eof
 */
export async function decodeConfiguration(reader: ByteReader): Promise<Configuration> {
  await reader.u8('the configuration');
  const at = reader.position;
  const machineBytes = await reader.u32("the machine name's length");
  if (machineBytes === 0 || machineBytes > MAX_MACHINE_BYTES) {
    const what = `${reader.name} at byte ${at}: bytes of the machine name`;
    throw refusal('limit', what, machineBytes, `1 to ${MAX_MACHINE_BYTES}`);
  }
  const configuration: Configuration = { machine: await decodePlain(reader, machineBytes, 'machine name') };
  let allowed = SUBSECTION_ORDER;
  while ((await reader.peek(1))[0] === QEMU_VM_SUBSECTION) {
    const name = await decodeSubsectionStart(reader, allowed);
    allowed = allowed.slice(allowed.indexOf(name) + 1);
    if (name === NAME_TARGET_PAGE_BITS) {
      configuration.targetPageBits = await decodePageBits(reader);
    } else if (name === NAME_CAPABILITIES) {
      configuration.capabilities = await decodeCapabilities(reader);
    } else {
      configuration.uuid = Buffer.from(await reader.exactly(UUID_BYTES, NAME_UUID));
    }
  }
  return configuration;
}

async function decodeSubsectionStart(reader: ByteReader, allowed: readonly string[]): Promise<string> {
  const at = reader.position;
  await reader.u8('a subsection');
  const name = await decodeName(reader, 'name of a configuration subsection');
  if (!allowed.includes(name)) {
    const what = `${reader.name} at byte ${at}: configuration subsection`;
    throw refusal(
      'unsupported',
      what,
      quote(name),
      allowed.length === 0 ? 'no further one' : allowed.join(' or '),
    );
  }
  const version = await reader.u32("a subsection's version");
  if (version !== SUBSECTION_VERSION) {
    const what = `${reader.name} at byte ${at}: version of ${name}`;
    throw refusal('unsupported', what, version, SUBSECTION_VERSION);
  }
  return name;
}

async function decodePageBits(reader: ByteReader): Promise<number> {
  const at = reader.position;
  const bits = await reader.u32(NAME_TARGET_PAGE_BITS);
  if (bits < MIN_PAGE_BITS || bits > MAX_PAGE_BITS) {
    const what = `${reader.name} at byte ${at}: target page bits`;
    throw refusal('pageSize', what, bits, `${MIN_PAGE_BITS} to ${MAX_PAGE_BITS}`);
  }
  return bits;
}

async function decodeCapabilities(reader: ByteReader): Promise<string[]> {
  const at = reader.position;
  const count = await reader.u32('the number of capabilities');
  if (count > MAX_CAPABILITIES) {
    const what = `${reader.name} at byte ${at}: number of capabilities`;
    throw refusal('limit', what, count, `at most ${MAX_CAPABILITIES}`);
  }
  const capabilities: string[] = [];
  while (capabilities.length < count) capabilities.push(await decodeName(reader, 'name of a capability'));
  return capabilities;
}

/**
 * `u8 n, n bytes`, as all names of the stream are written but the machine's.
 *
 * @throws MultifdError STREAM_ERRORS.format for an empty name, or one that is not printable ASCII
 */
export async function decodeName(reader: ByteReader, what: string): Promise<string> {
  return decodePlain(reader, await reader.u8(what), what);
}

export function encodeName(name: string): Buffer {
  if (!isPlainName(name) || name.length > MAX_NAME_BYTES) {
    throw refusal('format', 'name', quote(name), `1 to ${MAX_NAME_BYTES} printable ASCII characters`);
  }
  const bytes = Buffer.allocUnsafe(1 + name.length);
  bytes[0] = name.length;
  bytes.write(name, 1, 'latin1');
  return bytes;
}

export function encodeU32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(value, 0);
  return bytes;
}

function encodeSubsectionStart(name: string): Buffer {
  return Buffer.concat([Buffer.of(QEMU_VM_SUBSECTION), encodeName(name), encodeU32(SUBSECTION_VERSION)]);
}

async function decodePlain(reader: ByteReader, length: number, what: string): Promise<string> {
  const at = reader.position;
  const bytes = await reader.exactly(length, what);
  const name = bytes.toString('latin1');
  if (!isPlainName(name)) {
    throw refusal(
      'format',
      `${reader.name} at byte ${at}: ${what}`,
      length === 0 ? 'no bytes' : `0x${bytes.toString('hex', 0, 32)}`,
      'printable ASCII',
    );
  }
  return name;
}
