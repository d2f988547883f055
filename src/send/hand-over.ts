/**
 * The hand-over of a slot to a channel, on the calling thread. Slots and their words are src/shared/control.ts's; which
 * channel gets one, and who is served first, is decided here.
 *
 *     client's slot: full --give()--> an idle channel's (pendingJob = 1); back comes that channel's own slot, empty
 *
 * Until give() or offer() the bytes of the slot are the client's; from then on they are the channel's, and the client has
 * the slot that came back. Both clients (RAM, device state) hand over here: those that have to wait for an idle channel
 * draw a ticket and are served in the order they came, and nobody overtakes a ticket without one.
 */
import { STOP_RUN, type Control, type Slot } from '../shared/control.js';
import type { SessionAccess } from './session-access.js';
import type { Turns } from './turns.js';

export const ANY_CHANNEL = -1;
/** How many looks for an idle channel before sleeping: about 10 µs. */
export const SPIN = 400;

export class HandOver {
  readonly #session: Pick<SessionAccess, 'control' | 'until'>;
  readonly #control: Control;
  readonly #turns: Pick<Turns, 'taken'>;
  #nextTicket = 0;
  #serving = 0;
  #nextChannel = 0;

  constructor(session: Pick<SessionAccess, 'control' | 'until'>, turns: Pick<Turns, 'taken'>) {
    this.#session = session;
    this.#control = session.control;
    this.#turns = turns;
  }

  /** Is there a channel that waits for work? */
  hasIdle(): boolean {
    return this.#findIdle(ANY_CHANNEL) >= 0;
  }

  /** Gives the slot away if that needs no waiting. @returns the empty slot that came back, or else the same one */
  offer(slot: Slot): Slot {
    if (this.#nextTicket !== this.#serving) return slot;
    const id = this.#findIdle(ANY_CHANNEL);
    return id >= 0 ? this.#swap(id, slot) : slot;
  }

  /**
   * Gives the slot to `target`, or to any idle channel, and returns the empty slot that comes back.
   *
   * @throws MultifdError the session's error
   */
  async give(slot: Slot, target: number): Promise<Slot> {
    let id =
      this.#nextTicket === this.#serving && this.#control.stopped === STOP_RUN ? this.#findIdle(target) : -1;
    if (id < 0) {
      const ticket = this.#nextTicket++;
      const slept = await this.#session.until(
        () => this.#serving === ticket && (id = this.#findIdle(target)) >= 0,
        SPIN,
      );
      if (slept) this.#turns.taken();
      this.#serving++;
      // Whoever is next in line may be asleep on READY with a channel idle.
      if (this.#serving !== this.#nextTicket) this.#control.postReady();
    }
    return this.#swap(id, slot);
  }

  #swap(id: number, slot: Slot): Slot {
    this.#nextChannel = (id + 1) % this.#control.channels;
    return this.#control.publish(id, slot);
  }

  /** From a rotating start, so that equally fast channels get equal shares. */
  #findIdle(target: number): number {
    const control = this.#control;
    if (target !== ANY_CHANNEL) return control.isIdle(target) ? target : -1;
    for (let i = 0; i < control.channels; i++) {
      const id = (this.#nextChannel + i) % control.channels;
      if (control.isIdle(id)) return id;
    }
    return -1;
  }
}
