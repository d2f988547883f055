/**
 * The devices' state behind ram's END: what a source of ours writes there and a destination of ours reads. The frame is
 * QEMU's; a device's body is ours, since its length is the one thing that QEMU's sections do not tell.
 *
 *     04 u32 id, u8 n, n bytes idstr, u32 instance_id, u32 version_id      FULL, one for each device
 *        the body                                                          below
 *     7e u32 id                                                            footer
 *     00                                                                   EOF
 *     06 u32 n, n bytes                                                    VM description
 *
 *     u32 length, length bytes                             its state
 *     u32 ffffffff, u64 bytes, u32 pieces                  a large one: it has come over the channels (device-pieces.ts)
 *     u32 ffffffff, u64 bytes, u32 0, bytes                likewise, but here: from a file, where there are no channels
 *
 * The description names the body's fields with their sizes, as QEMU's does for its devices. So whoever goes by it finds
 * his way without knowing the devices: `multifd receive` and `inspect`, QEMU's scripts/analyze-migration.py.
 *
 * The peer is not trusted: every section's head is held against the devices that are expected, and a length is believed only
 * as far as its bytes have come, and up to `maxDeviceBytes` for all devices together.
 */
import { types } from 'node:util';
import { type ErrorCode, MultifdError, receivedExpected } from '../errors.js';
import { encodeU64 } from '../stream/block-list.js';
import type { ByteReader } from '../stream/byte-reader.js';
import { atMost } from '../stream/bounds.js';
import { STREAM_ERRORS, type StreamError, quote, refusal } from '../stream/codes.js';
import { type Configuration, encodeU32 } from '../stream/configuration.js';
import { describeConfiguration } from '../stream/described-configuration.js';
import { encodeFooter, encodeOtherSection } from '../stream/main-writer.js';
import { sectionName } from '../stream/names.js';
import {
  QEMU_VM_EOF,
  QEMU_VM_SECTION_FOOTER,
  QEMU_VM_SECTION_FULL,
  QEMU_VM_VMDESCRIPTION,
} from '../stream/records.js';

/** What one read asks for. */
const READ_BYTES = 2 ** 16;
const MAX_NAMES_SAID = 20;
/** In place of a length: the longer form of the body. */
const IS_LARGE = 0xffffffff;

/** A device by the head of its section. */
export interface DeviceId {
  idstr: string;
  instanceId: number;
  version: number;
}

/** The digests of option verify travel as a device does (proof-section.ts); no device may have this name. */
export const PROOF_IDSTR = 'multifd-verify';
export const PROOF_DEVICE: DeviceId = { idstr: PROOF_IDSTR, instanceId: 0, version: 1 };

/** As it is known by. */
export type Named = Pick<DeviceId, 'idstr' | 'instanceId'>;

/** How many bytes a state has, and in how many pieces they have gone over the channels; 0: they follow. */
export interface StateSize {
  bytes: number;
  pieces: number;
}

export interface DeviceState {
  device: DeviceId;
  /** All of it, or what has gone over the channels. */
  data: Uint8Array | StateSize;
}

/** As messages name it. */
export function nameOf({ idstr, instanceId }: Named): string {
  return `${quote(idstr)} ${instanceId}`;
}

// ---- writing ----

/** The parts of one device's section; its data is among them, not copied. */
export function encodeDeviceSection(sectionId: number, { device, data }: DeviceState): Buffer[] {
  return [
    encodeSectionHead(sectionId, device),
    encodeStateSize(sizeOf(data)),
    types.isUint8Array(data) ? Buffer.from(data.buffer, data.byteOffset, data.length) : Buffer.alloc(0),
    encodeFooter(sectionId),
  ];
}

export function encodeSectionHead(sectionId: number, device: DeviceId): Buffer {
  const { idstr, instanceId, version } = device;
  return encodeOtherSection({ section: 'full', sectionId, idstr, instanceId, versionId: version });
}

/** What the body begins with. */
export function encodeStateSize(size: StateSize): Buffer {
  const { bytes, pieces } = size;
  if (!isLarge(size)) return encodeU32(bytes);
  return Buffer.concat([encodeU32(IS_LARGE), encodeU64(bytes), encodeU32(pieces)]);
}

function isLarge({ bytes, pieces }: StateSize): boolean {
  return pieces > 0 || bytes >= IS_LARGE;
}

function sizeOf(data: Uint8Array | StateSize): StateSize {
  return types.isUint8Array(data) ? { bytes: data.length, pieces: 0 } : data;
}

/** EOF and the VM description: the last bytes of all. */
export function encodeEnd(
  states: readonly DeviceState[],
  configuration: Configuration,
  pageSize: number,
): Buffer {
  const devices = states.map(({ device: { idstr, instanceId, version }, data }) => ({
    name: idstr,
    instance_id: instanceId,
    vmsd_name: idstr,
    version,
    fields: fieldsOf(sizeOf(data)),
  }));
  const json = Buffer.from(JSON.stringify({ page_size: pageSize, devices }));
  const described = describeConfiguration(json, configuration);
  return Buffer.concat([
    Buffer.of(QEMU_VM_EOF, QEMU_VM_VMDESCRIPTION),
    encodeU32(described.length),
    described,
  ]);
}

function fieldsOf(size: StateSize): { name: string; type: string; size: number }[] {
  const { bytes, pieces } = size;
  return [
    { name: 'length', type: 'uint32', size: 4 },
    ...(isLarge(size)
      ? [
          { name: 'bytes', type: 'uint64', size: 8 },
          { name: 'pieces', type: 'uint32', size: 4 },
        ]
      : []),
    ...(pieces === 0 ? [{ name: 'data', type: 'buffer', size: bytes }] : []),
  ];
}

// ---- reading ----

/** The devices that are expected, and what is kept of them: incoming-devices.ts. */
export interface Expected<D extends DeviceId> {
  /** Each of them, once, and no other; of this version at the most. */
  devices: readonly D[];
  /**
   * @returns where they go, if it is to be in one
   * @throws MultifdError where so many bytes are too many, or some have come over the channels
   */
  reserve(device: D, bytes: number): Buffer | undefined;
  /** What has come over the channels. @throws MultifdError unless it is exactly that */
  whole(device: D, size: StateSize): Buffer[];
}

export interface DeviceSectionsOptions<D extends DeviceId> {
  expected: Expected<D>;
  /** Do sections end with a footer? */
  footers: boolean;
  maxDescription: number;
}

/** The version is the one that was sent. */
export interface ReceivedState<D extends DeviceId> {
  device: D;
  version: number;
  /** Its state, one after the other. */
  parts: Buffer[];
}

/**
 * All of it, to the last byte of the VM description.
 *
 * @returns in the order of `devices`
 * @throws MultifdError STREAM_ERRORS.format, .unsupported, .limit, .eof
 */
export async function readDeviceSections<D extends DeviceId>(
  reader: ByteReader,
  { expected, footers, maxDescription }: DeviceSectionsOptions<D>,
): Promise<ReceivedState<D>[]> {
  const { devices } = expected;
  const states = new Map<D, ReceivedState<D>>();
  while (await nextSection(reader)) {
    const head = await readSectionHead(reader);
    const device = requireExpected(devices, head);
    const parts = await readState(reader, expected, device);
    if (footers) await readSectionFooter(reader, head);
    if (states.has(device)) throw bad('format', device, 'sections', 'a second one', 'one');
    states.set(device, { device, version: head.version, parts });
  }
  const missing = devices.filter((device) => !states.has(device));
  if (missing.length > 0) {
    const isProof = missing.every(({ idstr }) => idstr === PROOF_IDSTR);
    const option = isProof ? 'option verify of the source' : 'option devices';
    const expectedText = `a section of ${listOf(missing)} (${option})`;
    throw refusal('format', "devices' state", 'its end', expectedText);
  }
  await skipDescription(reader, maxDescription);
  return devices.map((device) => states.get(device) as ReceivedState<D>);
}

/** @returns false at EOF, which is read */
export async function nextSection(reader: ByteReader): Promise<boolean> {
  const at = reader.position;
  const type = await reader.u8("a device's section, or the end");
  if (type === QEMU_VM_EOF) return false;
  if (type === QEMU_VM_SECTION_FULL) return true;
  const what = `devices' state at byte ${at}: section`;
  throw refusal('format', what, sectionName(type), 'FULL, or EOF');
}

export interface SectionHead extends DeviceId {
  sectionId: number;
}

/** Behind its type. */
export async function readSectionHead(reader: ByteReader): Promise<SectionHead> {
  const sectionId = await reader.u32('a section id');
  const idBytes = await reader.exactly(await reader.u8('an idstr'), 'an idstr');
  const idstr = idBytes.toString('latin1');
  const instanceId = await reader.u32('an instance id');
  const version = await reader.u32('a version id');
  return { sectionId, idstr, instanceId, version };
}

/** What the body begins with. */
export async function readStateSize(reader: ByteReader): Promise<StateSize> {
  const length = await reader.u32("the length of a device's state");
  if (length !== IS_LARGE) return { bytes: length, pieces: 0 };
  const bytes = await reader.u64("the length of a device's state");
  return { bytes, pieces: await reader.u32("the pieces of a device's state") };
}

export async function readSectionFooter(reader: ByteReader, head: SectionHead): Promise<void> {
  const type = await reader.u8('a footer');
  const id = await reader.u32('a footer');
  if (type !== QEMU_VM_SECTION_FOOTER) throw bad('format', head, 'end', sectionName(type), 'its footer');
  if (id !== head.sectionId) throw bad('format', head, 'section id of its footer', id, head.sectionId);
}

/** Nobody needs it here: the devices themselves have come. */
export async function skipDescription(reader: ByteReader, maxDescription: number): Promise<void> {
  const type = await reader.u8('the VM description');
  if (type !== QEMU_VM_VMDESCRIPTION)
    throw refusal('format', 'behind EOF', sectionName(type), 'VM description');
  let left = await reader.u32("the VM description's length");
  if (left > maxDescription) {
    const expected = atMost('maxDescription', maxDescription);
    throw refusal('limit', 'main stream: bytes of the VM description', left, expected);
  }
  for (; left > 0; left -= Math.min(left, READ_BYTES))
    await reader.exactly(Math.min(left, READ_BYTES), 'the VM description');
}

function requireExpected<D extends DeviceId>(devices: readonly D[], head: SectionHead): D {
  const { version } = head;
  const device = findDevice(devices, head);
  if (device === undefined) throw unknownDevice(devices, head, STREAM_ERRORS.unsupported);
  if (version <= device.version) return device;
  const expected = `at most ${device.version} (option devices)`;
  throw bad('unsupported', device, 'version', version, expected);
}

export function findDevice<D extends DeviceId>(
  devices: readonly D[],
  { idstr, instanceId }: Named,
): D | undefined {
  return devices.find((one) => one.idstr === idstr && one.instanceId === instanceId);
}

/** One whose state comes, but which is not here. */
export function unknownDevice(devices: readonly DeviceId[], received: Named, code: ErrorCode): MultifdError {
  const known = devices.length === 0 ? 'none' : `one of ${listOf(devices)}`;
  const option =
    received.idstr === PROOF_IDSTR ? 'option verify, which the source has set' : 'option devices';
  return new MultifdError(code, receivedExpected('device', nameOf(received), `${known} (${option})`));
}

async function readState<D extends DeviceId>(
  reader: ByteReader,
  expected: Expected<D>,
  device: D,
): Promise<Buffer[]> {
  const size = await readStateSize(reader);
  if (size.pieces > 0) return expected.whole(device, size);
  const room = expected.reserve(device, size.bytes);
  if (room !== undefined) {
    let at = 0;
    for await (const part of readBytes(reader, size.bytes)) at += part.copy(room, at);
    return [room];
  }
  // Memory is taken for what has come, and not for what is said to come.
  const parts: Buffer[] = [];
  for await (const part of readBytes(reader, size.bytes)) parts.push(Buffer.from(part));
  return parts;
}

/** @returns views */
export async function* readBytes(reader: ByteReader, bytes: number): AsyncGenerator<Buffer, void, undefined> {
  for (let left = bytes; left > 0;) {
    const count = Math.min(left, READ_BYTES);
    yield await reader.exactly(count, "a device's state");
    left -= count;
  }
}

function listOf(devices: readonly DeviceId[]): string {
  const more = devices.length - MAX_NAMES_SAID;
  const names = devices.slice(0, MAX_NAMES_SAID).map(nameOf).join(', ');
  return more > 0 ? `${names} and ${more} more` : names;
}

function bad(
  error: StreamError,
  device: DeviceId,
  what: string,
  received: unknown,
  expected: unknown,
): MultifdError {
  return refusal(error, `device ${nameOf(device)}: ${what}`, received, expected);
}
