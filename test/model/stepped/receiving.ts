/**
 * A run of the receiving side: two channels with streams of device states, private pages and SYNCs, a receiver that delivers
 * and syncs; and an end that is orderly, or comes at any moment.
 */
import type { Receiver } from '../../../src/recv/receiver.js';
import { DEVICE_STATE_HEADER_BYTES, fillDeviceState } from '../../../src/wire/device-state.js';
import { MULTIFD_FLAG_SYNC, fillPacket, packetHeaderBytes } from '../../../src/wire/packet.js';
import {
  DEVICE_BYTES,
  DEVICE_NUMBERS,
  PAGE_SIZE,
  PRIVATE_NUMBERS,
  PRIVATE_PAGES,
  isStamped,
  stamp,
  stampPages,
} from './jobs.js';
import { CHANNELS, NOTE_BREAKS, NOTE_SIDE, type Stepper } from './stepper.js';
import type * as Pieces from './pieces.js';

const ENDS = ['end', 'end', 'end', 'close', 'break', 'load fails'] as const;
const MAX_DEVICES = 16;
const HEADER_BYTES = packetHeaderBytes(PAGE_SIZE);

const pages = Buffer.alloc(PRIVATE_PAGES * PAGE_SIZE);
stampPages(pages, PRIVATE_NUMBERS);
const memory = Buffer.alloc(PRIVATE_PAGES * PAGE_SIZE);
const NAME = Buffer.alloc(256);
NAME.write('private');

export async function receiveRun(stepper: Stepper, { createReceiver }: typeof Pieces): Promise<void> {
  const { notes } = stepper;
  notes[NOTE_SIDE] = 1;
  const how = ENDS[stepper.draw(ENDS.length)];
  if (how === 'break') notes[NOTE_BREAKS] = 1 + stepper.draw(10);
  const run = new ReceiveRun(stepper, how === 'load fails' ? stepper.draw(3) : -1);
  let receiver: Receiver | undefined;
  try {
    receiver = await createReceiver({
      address: 'tcp:127.0.0.1:1',
      channels: CHANNELS,
      pageSize: PAGE_SIZE,
      deviceStateBytes: DEVICE_BYTES,
      blocks: [{ name: 'private', memory }],
      devices: Array.from({ length: MAX_DEVICES }, (_, instanceId) => ({
        idstr: 'device',
        instanceId,
        load: (data: Uint8Array) => run.load(instanceId, data),
      })),
    });
    const closing = how === 'close' ? run.closeSoon(receiver) : undefined;
    await run.sync(receiver);
    if (how === 'end' || how === 'break') await receiver.end();
    await closing;
  } catch (thrown) {
    if (how === 'end') stepper.fail(`no end: ${String(thrown)}`);
    if (!(thrown as { code?: string }).code?.startsWith('ERR_MULTIFD_'))
      stepper.fail(`${how}: ${(thrown as Error).stack}`);
  }
  await receiver?.close();
}

class ReceiveRun {
  readonly #stepper: Stepper;
  readonly #failsAt: number;
  /** Of each phase, what comes before its SYNC. */
  readonly #phases: number[][] = [];
  readonly #loaded: number[] = [];
  /** Of each device state, its channel. */
  readonly #channelOf: number[] = [];

  constructor(stepper: Stepper, failsAt: number) {
    this.#stepper = stepper;
    this.#failsAt = failsAt;
    memory.fill(0);
    const syncs = 1 + stepper.draw(2);
    for (let i = 0; i < syncs; i++) this.#phases.push([]);
    let page = 0;
    stepper.streams = [];
    for (let id = 0; id < CHANNELS; id++) {
      const packets: Buffer[] = [];
      for (const phase of this.#phases) {
        for (let left = stepper.draw(3); left > 0; left--) {
          if (stepper.draw(2) === 0) {
            const number = DEVICE_NUMBERS + this.#channelOf.length;
            packets.push(deviceState(this.#channelOf.length, number));
            this.#channelOf.push(id);
            phase.push(number);
          } else {
            packets.push(...pagePacket(page));
            phase.push(PRIVATE_NUMBERS + page++);
          }
        }
        packets.push(syncPacket());
      }
      stepper.streams.push(Buffer.concat(packets));
    }
  }

  async load(instanceId: number, data: Uint8Array): Promise<void> {
    const stepper = this.#stepper;
    const number = DEVICE_NUMBERS + instanceId;
    for (let pause = stepper.draw(3); pause > 0; pause--) await stepper.turn();
    if (!isStamped(data, number)) stepper.fail(`device state ${number} was not there any more`);
    if (this.#loaded.includes(number)) stepper.fail(`device state ${number} came twice`);
    const id = this.#channelOf[instanceId];
    if (this.#loaded.some((other) => other > number && this.#channelOf[other - DEVICE_NUMBERS] === id))
      stepper.fail(`device state ${number} came after a later one of its channel`);
    if (this.#loaded.length === this.#failsAt) throw new Error('a load() that fails');
    this.#loaded.push(number);
  }

  async sync(receiver: Receiver): Promise<void> {
    const stepper = this.#stepper;
    for (const [i, phase] of this.#phases.entries()) {
      for (let pause = stepper.draw(4); pause > 0; pause--) await stepper.turn();
      await receiver.sync();
      const late = phase.filter((number) => !this.#isThere(number));
      if (late.length > 0) stepper.fail(`sync ${i + 1} returned before job ${late.join(', ')}`);
    }
  }

  #isThere(number: number): boolean {
    if (number >= DEVICE_NUMBERS) return this.#loaded.includes(number);
    const at = (number - PRIVATE_NUMBERS) * PAGE_SIZE;
    return isStamped(memory.subarray(at, at + PAGE_SIZE), number);
  }

  async closeSoon(receiver: Receiver): Promise<void> {
    for (let pause = this.#stepper.draw(25); pause > 0; pause--) await this.#stepper.turn();
    await receiver.close();
  }
}

function deviceState(instanceId: number, number: number): Buffer {
  const packet = Buffer.alloc(DEVICE_STATE_HEADER_BYTES + DEVICE_BYTES);
  fillDeviceState(packet, { idstr: 'device', instanceId, nextPacketSize: DEVICE_BYTES });
  stamp(packet.subarray(DEVICE_STATE_HEADER_BYTES), number);
  return packet;
}

function pagePacket(page: number): Buffer[] {
  const header = Buffer.alloc(HEADER_BYTES);
  fillPacket(header, PAGE_SIZE, {
    flags: 0,
    normalPages: 1,
    zeroPages: 0,
    nextPacketSize: PAGE_SIZE,
    packetNum: page,
    ramblock: NAME,
    pages: page,
  });
  return [header, pages.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)];
}

function syncPacket(): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  const packet = { normalPages: 0, zeroPages: 0, nextPacketSize: 0, packetNum: 0 };
  fillPacket(header, PAGE_SIZE, {
    ...packet,
    flags: MULTIFD_FLAG_SYNC,
    ramblock: undefined,
    pages: new Uint32Array(0),
  });
  return header;
}
