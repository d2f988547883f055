/**
 * What only the calling thread can put into place: the channels offer it in their slots, and it is taken out here.
 *
 *     channel: slot filled, pendingJob = 1 --> device state      to the device's load(), as a copy of its own
 *                                              a migration's     handed on (hooks.deviceState)
 *                                              private memory    copied page by page
 *                                              a relay's pages   handed on (hooks.pages)
 *     slot empty, taken() --> the channel reads on
 *
 * Who owns the bytes: the slot is this thread's from the channel's offer to taken(). One delivery for each channel at a
 * time, and channels do not wait for each other's.
 */
import { performance } from 'node:perf_hooks';
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { isIdstr, type Device } from '../options.js';
import { quote } from '../printable.js';
import type { RAMBlock } from '../ram/block.js';
import type { MemorySource } from '../ram/memory.js';
import { Windows } from '../ram/windows.js';
import { isZeroRange } from '../ram/zero-page.js';
import { PAYLOAD_DEVICE_STATE, STOP_RUN, markPages, type Control, type Slot } from '../shared/control.js';

const YIELD_MS = 2;
const SPIN = 400;

export interface DeliveryOptions {
  control: Control;
  /** By `idstr/instanceId`. */
  devices: ReadonlyMap<string, Device>;
  /** Takes the pages of blocks of kind stream out of a slot; the slot is empty afterwards. */
  pages: ((slot: Slot) => Promise<void>) | undefined;
  /** Takes the device state of any device, in place of `devices`. */
  deviceState: ((idstr: string, instanceId: number, payload: Buffer) => Promise<void>) | undefined;
  fail: (error: MultifdError) => void;
}

/** A block as it is when the channels start. */
export interface DeliveredBlock {
  block: RAMBlock;
  /** Bitmap of received pages. */
  words: Int32Array;
  /** As in placement.ts. */
  arrived: Int32Array | undefined;
}

export class Delivery {
  readonly #options: DeliveryOptions;
  #blocks: readonly DeliveredBlock[] = [];
  #pageSize = 0;
  /** Channels whose slot this thread is emptying. */
  readonly #delivering = new Set<number>();

  constructor(options: DeliveryOptions) {
    this.#options = options;
  }

  /** Is this side what is waited for? */
  get busy(): boolean {
    return this.#delivering.size > 0;
  }

  /** Empties the slots that channels offer, until the session stops; nothing to do where channels reach all themselves. */
  start(blocks: readonly DeliveredBlock[], pageSize: number): void {
    this.#blocks = blocks;
    this.#pageSize = pageSize;
    const { devices, pages, deviceState } = this.#options;
    const needed = devices.size > 0 || pages !== undefined || deviceState !== undefined;
    if (needed || blocks.some(({ block }) => block.kind === 'private')) void this.#deliver();
  }

  async #deliver(): Promise<void> {
    const { control } = this.#options;
    let last = performance.now();
    for (;;) {
      const seen = control.readyCount;
      // Behind the count, as everything that is looked at: a stop between the two would leave this asleep for good.
      if (control.stopped !== STOP_RUN) return;
      for (let id = 0; id < control.channels; id++) {
        if (!this.#delivering.has(id) && control.hasJob(id)) {
          this.#delivering.add(id);
          void this.#take(id);
        }
      }
      const wait = control.waitReady(seen, SPIN);
      if (wait !== undefined) await wait;
      // With many channels there is always one that offers.
      if (performance.now() - last > YIELD_MS) {
        await yieldToLoop();
        last = performance.now();
      }
    }
  }

  async #take(id: number): Promise<void> {
    const { control, devices, pages, deviceState } = this.#options;
    const slot = control.slotOf(id);
    try {
      if (slot.type === PAYLOAD_DEVICE_STATE && deviceState !== undefined) {
        requireIdstr(slot.idstr);
        await deviceState(slot.idstr, slot.instanceId, slot.data.subarray(0, slot.length));
      } else if (slot.type === PAYLOAD_DEVICE_STATE) {
        const device = devices.get(`${slot.idstr}/${slot.instanceId}`);
        // The device's to keep: the slot is used again, and in Node's pool lie others' bytes beside it.
        const data = Buffer.allocUnsafeSlow(slot.length);
        slot.data.copy(data, 0, 0, slot.length);
        await device?.load(data);
      } else if (pages !== undefined) await pages(slot);
      else this.#placePages(slot);
    } catch (thrown) {
      if (slot.type !== PAYLOAD_DEVICE_STATE) {
        this.#options.fail(MultifdError.wrap(thrown, 'ERR_MULTIFD_BLOCK', 'placing pages'));
        return;
      }
      if (deviceState !== undefined) {
        this.#options.fail(
          MultifdError.wrap(thrown, 'ERR_MULTIFD_DEVICE_STATE', 'device state').onChannel(id),
        );
        return;
      }
      const message = `load() of device ${slot.idstr} instance ${slot.instanceId} failed`;
      this.#options.fail(new MultifdError('ERR_MULTIFD_HOOK', message, { channel: id, cause: thrown }));
    }
    // Before taken(): the channel may offer again at once, and its post must find this thread ready for it.
    this.#delivering.delete(id);
    control.taken(id);
  }

  #placePages(slot: Slot): void {
    const state = this.#blocks[slot.block];
    const memory = state.block.memory as MemorySource;
    const size = this.#pageSize;
    for (let i = 0; i < slot.num; i++) {
      const offset = slot.pages[i] * size;
      const window = memory.windowAt(offset);
      const at = offset % Windows.WINDOW_BYTES;
      const first = markPages(state.words, slot.pages[i], 1);
      if (i < slot.normalNum) slot.data.copy(window, at, i * size, (i + 1) * size);
      else if (!(first && state.block.fresh) && !isZeroRange(window, at, size)) window.fill(0, at, at + size);
      if (state.arrived !== undefined) markPages(state.arrived, slot.pages[i], 1);
    }
  }
}

/** No device has another, and nobody could send it on. */
function requireIdstr(idstr: string): void {
  if (isIdstr(idstr)) return;
  const message = receivedExpected('device-state idstr', quote(idstr), '1 to 255 printable ASCII characters');
  throw new MultifdError('ERR_MULTIFD_DEVICE_STATE', message);
}
