/**
 * What a receive channel tells the calling thread from its own thread, and mostly waits for: a SYNC, the pages of private
 * memory and streams, a device's state; and how far it is.
 *
 *     the channel                                  the calling thread (receiver.ts)
 *     sync()              SYNC_DONE + 1      -->   sync(): has one from every channel
 *                         until released     <--   SYNC_RELEASED + 1 on all of them
 *     offerPages()        fills its slot     -->   takes the payload out
 *     offerDeviceState()  until idle         <--   taken()
 *
 * Who owns the bytes: the slot is the channel's until it is offered, then the calling thread's, and the channel's again when
 * the wait is over. Every wait also ends on STOP; whether it has come is then for the channel to ask.
 */
import { performance } from 'node:perf_hooks';
import { PAYLOAD_DEVICE_STATE, PAYLOAD_RAM, STOP_RUN, type Control } from '../shared/control.js';
import type { DeviceStateHeader } from '../wire/device-state.js';
import type { PacketHeader } from '../wire/packet.js';

/** How many looks at a word before sleeping: about 10 µs. */
const SPIN = 400;

export class CallingThread {
  readonly #control: Control;
  readonly #id: number;
  #syncsSeen = 0;
  #lastProgress = 0;

  constructor(control: Control, id: number) {
    this.#control = control;
    this.#id = id;
  }

  /** A packet is in place: says so, but not more often than the calling thread wants to hear it. */
  progress(): void {
    const { progressMs } = this.#control;
    if (progressMs === 0) return;
    const now = performance.now();
    if (now - this.#lastProgress < progressMs) return;
    this.#lastProgress = now;
    this.#control.postProgress();
  }

  /** SYNC was read: says so; resolves when the calling thread has seen it on every channel. */
  sync(pagesAlloc: number): Promise<void> {
    const control = this.#control;
    if (control.progressMs > 0) control.postProgress();
    this.#syncsSeen = (this.#syncsSeen + 1) | 0;
    control.setSyncAlloc(this.#id, pagesAlloc);
    control.syncDone(this.#id);
    return this.#until(() => control.syncsReleased(this.#id) === this.#syncsSeen);
  }

  /** The normal pages lie in the slot's data. */
  offerPages(packet: PacketHeader): Promise<void> {
    const slot = this.#control.slotOf(this.#id);
    slot.type = PAYLOAD_RAM;
    slot.block = packet.block;
    slot.num = packet.normalPages + packet.zeroPages;
    slot.normalNum = packet.normalPages;
    slot.pages.set(packet.pages);
    return this.#offered();
  }

  /** Its bytes lie in the slot's data. */
  offerDeviceState(device: DeviceStateHeader): Promise<void> {
    const slot = this.#control.slotOf(this.#id);
    slot.type = PAYLOAD_DEVICE_STATE;
    slot.idstr = device.idstr;
    slot.instanceId = device.instanceId;
    slot.length = device.nextPacketSize;
    return this.#offered();
  }

  #offered(): Promise<void> {
    this.#control.offer(this.#id);
    return this.#until(() => this.#control.isIdle(this.#id));
  }

  async #until(condition: () => boolean): Promise<void> {
    const control = this.#control;
    for (;;) {
      const seen = control.semCount(this.#id);
      if (condition() || control.stopped !== STOP_RUN) return;
      const wait = control.waitSem(this.#id, seen, SPIN);
      if (wait !== undefined) await wait;
    }
  }
}
