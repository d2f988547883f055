/**
 * A run of the sending side: a sender with two clients and two channels, whatever order its steps come in. Pages one by one, by
 * the packet, staged, zero, and queued again; device states; syncs; and an end that is orderly, or comes at any moment.
 */
import type { Sender } from '../../../src/send/sender.js';
import {
  DEVICE_BYTES,
  DEVICE_NUMBERS,
  PACKET_PAGES,
  PAGE_SIZE,
  PRIVATE_NUMBERS,
  PRIVATE_PAGES,
  SHARED_PAGES,
  stamp,
  stampPages,
} from './jobs.js';
import { CHANNELS, NOTE_BREAKS, NOTE_STUCK, type Stepper } from './stepper.js';
import { loggedOf } from './wire-log.js';
import type * as Pieces from './pieces.js';

const ENDS = ['end', 'end', 'end', 'close', 'break', 'stuck'] as const;

const shared = new SharedArrayBuffer(SHARED_PAGES * PAGE_SIZE);
const own = Buffer.alloc(PRIVATE_PAGES * PAGE_SIZE);
stampPages(new Uint8Array(shared), 1);
stampPages(own, PRIVATE_NUMBERS);

const OPTIONS = {
  address: 'tcp:127.0.0.1:1',
  channels: CHANNELS,
  pageSize: PAGE_SIZE,
  zeroPageDetection: 'none',
  deviceStateBytes: DEVICE_BYTES,
  blocks: [
    { name: 'shared', memory: shared },
    { name: 'private', memory: own },
  ],
} as const;

export async function sendRun(stepper: Stepper, { createSender }: typeof Pieces): Promise<void> {
  const how = ENDS[stepper.draw(ENDS.length)];
  if (how === 'break') stepper.notes[NOTE_BREAKS] = 1 + stepper.draw(8);
  if (how === 'stuck') stepper.notes[NOTE_STUCK] = 1 + stepper.draw(8);
  let run: SendRun | undefined;
  try {
    const opening = createSender(OPTIONS);
    // Stuck in its first write it has to be given up from here; there is nobody to close yet.
    if (how === 'stuck') stepper.notes[NOTE_STUCK] += CHANNELS;
    const sender = await opening;
    run = new SendRun(stepper, sender);
    const closing = how === 'close' || how === 'stuck' ? run.closeSoon() : undefined;
    await Promise.all([run.ram(), run.device()]);
    if (how === 'end' || how === 'break') await sender.end();
    await closing;
  } catch (thrown) {
    if (how === 'end') stepper.fail(`no end: ${String(thrown)}`);
    if (!(thrown as { code?: string }).code?.startsWith('ERR_MULTIFD_'))
      stepper.fail(`${how}: ${(thrown as Error).stack}`);
  }
  await run?.close();
  if (how === 'end') run?.checkEnd();
}

class SendRun {
  readonly #stepper: Stepper;
  readonly #sender: Sender;
  /** Numbers of what was handed over, and how often each must go out. */
  readonly #queued = new Map<number, number>();
  #devices: number[] = [];
  #closed = false;
  #page = 0;
  #privatePage = 0;
  #syncs = 0;

  constructor(stepper: Stepper, sender: Sender) {
    this.#stepper = stepper;
    this.#sender = sender;
  }

  async ram(): Promise<void> {
    const stepper = this.#stepper;
    const sender = this.#sender;
    for (let left = 1 + stepper.draw(3); left > 0; left--) {
      await this.#job();
      if (stepper.draw(2) === 0) await sender.flush();
      if (stepper.draw(3) === 0) await this.#sync();
    }
    if (stepper.draw(3) > 0) await this.#sync();
  }

  async #job(): Promise<void> {
    const sender = this.#sender;
    const page = this.#page;
    switch (this.#stepper.draw(5)) {
      case 0: {
        // A packet's pages: handed over without a wait where a channel is idle.
        this.#page += PACKET_PAGES;
        for (let i = 0; i < PACKET_PAGES; i++) this.#queued.set(1 + page + i, 1);
        return sender.queueRange('shared', page * PAGE_SIZE, PACKET_PAGES * PAGE_SIZE);
      }
      case 1: {
        const number = PRIVATE_NUMBERS + this.#privatePage;
        this.#queued.set(number, 1);
        return sender.queuePage('private', this.#privatePage++ * PAGE_SIZE);
      }
      case 2:
        this.#queued.set(1 + page, 1);
        this.#page++;
        return sender.queueZeroRange('shared', page * PAGE_SIZE, PAGE_SIZE);
      case 3:
        // Queued twice in a phase: once more on every channel, which the sync of the phase sees to.
        this.#queued.set(1 + page, 1 + CHANNELS);
        this.#page++;
        await sender.queuePage('shared', page * PAGE_SIZE);
        await sender.queuePage('shared', page * PAGE_SIZE);
        return this.#sync();
      default:
        this.#queued.set(1 + page, 1);
        this.#page++;
        return sender.queuePage('shared', page * PAGE_SIZE);
    }
  }

  async device(): Promise<void> {
    const stepper = this.#stepper;
    const payload = Buffer.alloc(DEVICE_BYTES);
    for (let left = stepper.draw(4); left > 0; left--) {
      for (let pause = stepper.draw(4); pause > 0; pause--) await stepper.turn();
      const instance = this.#devices.length;
      stamp(payload, DEVICE_NUMBERS + instance);
      this.#devices.push(DEVICE_NUMBERS + instance);
      await this.#sender.queueDeviceState('device', instance, payload);
    }
  }

  async #sync(): Promise<void> {
    const before = [...this.#queued.keys(), ...this.#devices];
    await this.#sender.sync();
    this.#syncs++;
    this.#checkOrder(before);
  }

  /** What was queued before the sync that has just returned lies before its SYNC packet. */
  #checkOrder(before: readonly number[]): void {
    const seen = new Set<number>();
    for (let id = 0; id < CHANNELS; id++) {
      const log = loggedOf(this.#stepper.notes, id);
      let syncs = 0;
      for (const number of log) {
        if (number < 0 && ++syncs === this.#syncs) break;
        seen.add(number);
      }
      if (syncs !== this.#syncs)
        this.#stepper.fail(`channel ${id} has written ${syncs} SYNCs of ${this.#syncs}`);
    }
    const late = before.filter((number) => !seen.has(number));
    if (late.length > 0) this.#stepper.fail(`sync ${this.#syncs} returned before job ${late.join(', ')}`);
  }

  /** Nothing lost, nothing twice. */
  checkEnd(): void {
    const counts = new Map<number, number>();
    for (let id = 0; id < CHANNELS; id++) {
      for (const number of loggedOf(this.#stepper.notes, id))
        counts.set(number, (counts.get(number) ?? 0) + 1);
    }
    const expected = new Map(this.#queued);
    for (const number of this.#devices) expected.set(number, 1);
    if (this.#syncs > 0) expected.set(-1, this.#syncs * CHANNELS);
    for (const [number, count] of expected) {
      if (counts.get(number) !== count)
        this.#stepper.fail(`job ${number} was written ${counts.get(number) ?? 0} times, not ${count}`);
    }
    if (counts.size !== expected.size) this.#stepper.fail('a job was written that nobody has queued');
  }

  async closeSoon(): Promise<void> {
    for (let pause = this.#stepper.draw(25); pause > 0; pause--) await this.#stepper.turn();
    await this.close();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#sender.close();
  }
}
