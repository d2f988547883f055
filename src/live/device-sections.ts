/**
 * The devices' state behind ram's END: what a source of ours writes there and a destination of ours reads. The frame is
 * QEMU's; a device's body is ours, since its length is the one thing that QEMU's sections do not tell.
 *
 *     04 u32 id, u8 n, n bytes idstr, u32 instance_id, u32 version_id      FULL, one for each device
 *        u32 length, length bytes                                          the body
 *     7e u32 id                                                            footer
 *     00                                                                   EOF
 *     06 u32 n, n bytes                                                    VM description
 *
 * The description names the body's two fields with their sizes, as QEMU's does for its devices. So whoever goes by it finds
 * his way without knowing the devices: `multifd receive` and `inspect`, QEMU's scripts/analyze-migration.py.
 *
 * The peer is not trusted: every section's head is held against the devices that are expected, and a length is believed only
 * as far as its bytes have come, and up to `maxDeviceBytes` for all devices together.
 */
import { types } from 'node:util';
import { MultifdError, receivedExpected } from '../errors.js';
import type { ByteReader } from '../stream/byte-reader.js';
import { atMost } from '../stream/bounds.js';
import { type StreamError, quote, refusal } from '../stream/codes.js';
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
const PIECE_BYTES = 2 ** 16;
const MAX_NAMES_SAID = 20;

/** A device by the head of its section. */
export interface DeviceId {
  idstr: string;
  instanceId: number;
  version: number;
}

export interface DeviceState<D extends DeviceId = DeviceId> {
  device: D;
  data: Uint8Array;
}

/** As messages name it. */
export function nameOf({ idstr, instanceId }: Pick<DeviceId, 'idstr' | 'instanceId'>): string {
  return `${quote(idstr)} ${instanceId}`;
}

// ---- writing ----

/** The pieces of one device's section; its data is among them, not copied. */
export function encodeDeviceSection(sectionId: number, { device, data }: DeviceState): Buffer[] {
  const { idstr, instanceId, version } = device;
  return [
    encodeOtherSection({ section: 'full', sectionId, idstr, instanceId, versionId: version }),
    encodeU32(data.length),
    Buffer.from(data.buffer, data.byteOffset, data.length),
    encodeFooter(sectionId),
  ];
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
    fields: [
      { name: 'length', type: 'uint32', size: 4 },
      { name: 'data', type: 'buffer', size: data.length },
    ],
  }));
  const json = Buffer.from(JSON.stringify({ page_size: pageSize, devices }));
  const described = describeConfiguration(json, configuration);
  return Buffer.concat([
    Buffer.of(QEMU_VM_EOF, QEMU_VM_VMDESCRIPTION),
    encodeU32(described.length),
    described,
  ]);
}

// ---- reading ----

export interface DeviceSectionsOptions<D extends DeviceId> {
  /** Those that are expected: each of them, once, and no other; of this version at the most. */
  devices: readonly D[];
  /** Do sections end with a footer? */
  footers: boolean;
  /** Bytes of all devices together. */
  maxDeviceBytes: number;
  maxDescription: number;
}

/** The version is the one that was sent. */
export interface ReceivedState<D extends DeviceId> extends DeviceState<D> {
  version: number;
  data: Buffer;
}

/**
 * All of it, to the last byte of the VM description.
 *
 * @returns in the order of `devices`
 * @throws MultifdError STREAM_ERRORS.format, .unsupported, .limit, .eof
 */
export async function readDeviceSections<D extends DeviceId>(
  reader: ByteReader,
  options: DeviceSectionsOptions<D>,
): Promise<ReceivedState<D>[]> {
  const { devices, maxDescription } = options;
  const states = new Map<D, ReceivedState<D>>();
  const budget = { left: options.maxDeviceBytes, all: options.maxDeviceBytes };
  for (;;) {
    const at = reader.position;
    const type = await reader.u8("a device's section, or the end");
    if (type === QEMU_VM_EOF) break;
    if (type !== QEMU_VM_SECTION_FULL) {
      const what = `devices' state at byte ${at}: section`;
      throw refusal('format', what, sectionName(type), 'FULL, or EOF');
    }
    const state = await readSection(reader, options, budget);
    if (states.has(state.device)) throw bad('format', state.device, 'sections', 'a second one', 'one');
    states.set(state.device, state);
  }
  const missing = devices.filter((device) => !states.has(device));
  if (missing.length > 0) {
    const expected = `a section of ${listOf(missing)} (option devices)`;
    throw refusal('format', "devices' state", 'its end', expected);
  }
  const type = await reader.u8('the VM description');
  if (type !== QEMU_VM_VMDESCRIPTION)
    throw refusal('format', 'behind EOF', sectionName(type), 'VM description');
  let left = await reader.u32("the VM description's length");
  if (left > maxDescription) {
    const expected = atMost('maxDescription', maxDescription);
    throw refusal('limit', 'main stream: bytes of the VM description', left, expected);
  }
  // Nobody needs it here: the devices themselves have come.
  for (; left > 0; left -= Math.min(left, PIECE_BYTES))
    await reader.exactly(Math.min(left, PIECE_BYTES), 'the VM description');
  return devices.map((device) => states.get(device) as ReceivedState<D>);
}

async function readSection<D extends DeviceId>(
  reader: ByteReader,
  { devices, footers }: DeviceSectionsOptions<D>,
  budget: { left: number; all: number },
): Promise<ReceivedState<D>> {
  const sectionId = await reader.u32('a section id');
  const idBytes = await reader.exactly(await reader.u8('an idstr'), 'an idstr');
  const idstr = idBytes.toString('latin1');
  const instanceId = await reader.u32('an instance id');
  const version = await reader.u32('a version id');
  const device = devices.find((one) => one.idstr === idstr && one.instanceId === instanceId);
  if (device === undefined) {
    const expected = devices.length === 0 ? 'none' : `one of ${listOf(devices)}`;
    throw refusal('unsupported', 'device', nameOf({ idstr, instanceId }), `${expected} (option devices)`);
  }
  if (version > device.version) {
    const expected = `at most ${device.version} (option devices)`;
    throw bad('unsupported', device, 'version', version, expected);
  }
  const length = await reader.u32("the length of a device's state");
  if (length > budget.left) {
    const expected = `at most ${budget.left} more (option maxDeviceBytes, ${budget.all} for all devices together)`;
    throw bad('limit', device, 'bytes of its state', length, expected);
  }
  budget.left -= length;
  const data = await readData(reader, length);
  if (footers) {
    const type = await reader.u8('a footer');
    const id = await reader.u32('a footer');
    if (type !== QEMU_VM_SECTION_FOOTER) throw bad('format', device, 'end', sectionName(type), 'its footer');
    if (id !== sectionId) throw bad('format', device, 'section id of its footer', id, sectionId);
  }
  return { device, version, data };
}

/** Memory is taken for what has come, and not for what is said to come. */
async function readData(reader: ByteReader, length: number): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for (let left = length; left > 0;) {
    const count = Math.min(left, PIECE_BYTES);
    pieces.push(Buffer.from(await reader.exactly(count, "a device's state")));
    left -= count;
  }
  return Buffer.concat(pieces, length);
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

/**
 * What a device's save() gave.
 *
 * @throws MultifdError ERR_MULTIFD_HOOK
 */
export function requireBytes(device: DeviceId, saved: unknown): Uint8Array {
  const what = `device ${nameOf(device)}: save()`;
  if (!types.isUint8Array(saved)) {
    throw new MultifdError('ERR_MULTIFD_HOOK', receivedExpected(what, typeof saved, 'a Uint8Array'));
  }
  if (saved.length <= 0xffffffff) return saved;
  throw new MultifdError('ERR_MULTIFD_HOOK', receivedExpected(what, `${saved.length} bytes`, 'below 2^32'));
}
