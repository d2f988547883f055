/**
 * The device-state client (QEMU >= 10.0), on the calling thread: payloads of devices, one a slot, beside the RAM client's
 * pages and on whichever channel is idle.
 *
 * Calls take their turns in the order they came. A payload's bytes are the embedder's until its turn has come, then
 * they are copied into this client's slot and handed over; the embedder may use them again once the call has resolved.
 */
import { types } from 'node:util';
import { MultifdError } from '../errors.js';
import { integer } from '../option-checks.js';
import { isIdstr } from '../options.js';
import { PAYLOAD_DEVICE_STATE, type Slot } from '../shared/control.js';
import type { Bandwidth } from './bandwidth.js';
import { ANY_CHANNEL, type HandOver } from './hand-over.js';
import type { SessionAccess } from './session-access.js';

export class DeviceClient {
  readonly #session: Pick<SessionAccess, 'check' | 'broken'>;
  readonly #handOver: HandOver;
  readonly #bandwidth: Bandwidth;
  readonly #maxBytes: number;
  #slot: Slot;
  #tail: Promise<unknown> = Promise.resolve();

  /**
   * @param slot the client's first
   * @param maxBytes that a slot has room for
   */
  constructor(
    slot: Slot,
    maxBytes: number,
    session: Pick<SessionAccess, 'check' | 'broken'>,
    pieces: { handOver: HandOver; bandwidth: Bandwidth },
  ) {
    this.#slot = slot;
    this.#maxBytes = maxBytes;
    this.#session = session;
    this.#handOver = pieces.handOver;
    this.#bandwidth = pieces.bandwidth;
  }

  /** Resolves, and never rejects, when the calls made so far have had their turns. */
  get tail(): Promise<unknown> {
    return this.#tail;
  }

  /** As Sender.queueDeviceState(). */
  async queue(idstr: string, instanceId: number, data: Uint8Array): Promise<void> {
    if (typeof idstr !== 'string' || !isIdstr(idstr)) {
      throw new MultifdError(
        'ERR_MULTIFD_OPTION',
        `option idstr: given ${JSON.stringify(idstr)}, allowed 1 to 255 printable ASCII characters`,
      );
    }
    integer('instanceId', instanceId, undefined, 0, 0xffffffff);
    if (!types.isUint8Array(data)) {
      const given = Object.prototype.toString.call(data);
      throw new MultifdError('ERR_MULTIFD_OPTION', `option data: given ${given}, allowed a Uint8Array`);
    }
    const length = data.byteLength;
    integer('data.length', length, undefined, 1, this.#maxBytes);
    const turn = this.#tail.then(async () => {
      await this.#session.check();
      if (data.byteLength !== length) {
        const changed = `given ${length} bytes, ${data.byteLength} when its turn came`;
        throw new MultifdError('ERR_MULTIFD_OPTION', `option data: ${changed}, allowed no change`);
      }
      const slot = this.#slot;
      slot.type = PAYLOAD_DEVICE_STATE;
      slot.idstr = idstr;
      slot.instanceId = instanceId;
      slot.length = length;
      slot.data.set(data);
      await this.#bandwidth.throttle();
      this.#slot = await this.#handOver.give(slot, ANY_CHANNEL);
    });
    this.#tail = turn.catch(() => {});
    try {
      await turn;
    } catch (thrown) {
      await this.#session.broken(thrown, 'ERR_MULTIFD_OPTION', 'queueing device state');
    }
  }
}
