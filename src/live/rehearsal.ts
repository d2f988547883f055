/**
 * The code that runs for the first time while the guest stands still, run once before, on a VM with one device of no bytes.
 *
 * V8 compiles a function when it is called first. That is 2 ms for what writes the devices' state and 1 for what reads it, as
 * long as the rest of a small guest's downtime. So each end does it when it has to wait anyhow: the source while its threads
 * start, the destination before anybody connects.
 */
import { ByteReader } from '../stream/byte-reader.js';
import type { Configuration } from '../stream/configuration.js';
import {
  type DeviceId,
  type DeviceState,
  encodeDeviceSection,
  encodeEnd,
  readDeviceSections,
} from './device-sections.js';

const DEVICE: DeviceId = { idstr: 'rehearsal', instanceId: 0, version: 1 };
const SECTION_ID = 1;

/** @returns all that a source sends behind ram's END */
export function rehearseSaving(configuration: Configuration, pageSize: number): Buffer {
  const state: DeviceState = { device: DEVICE, data: Buffer.alloc(0) };
  const section = encodeDeviceSection(SECTION_ID, state);
  return Buffer.concat([...section, encodeEnd([state], configuration, pageSize)]);
}

/** The other end of it. */
export async function rehearseLoading(machine: string, pageSize: number): Promise<void> {
  const bytes = rehearseSaving({ machine }, pageSize);
  const source = (): Promise<Buffer> => Promise.resolve(bytes);
  await readDeviceSections(new ByteReader(source, { name: 'rehearsal' }), {
    expected: { devices: [DEVICE], reserve: () => undefined, whole: () => [] },
    footers: true,
    maxDescription: bytes.length,
  });
}
