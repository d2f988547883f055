/**
 * The RAM client, on the calling thread: the calls that queue pages, one after the other, page by page into the slot.
 *
 *     queue(), queueZero(), queueBytes()
 *        |  nothing to wait for, nobody waiting: #tryQueue(), without a promise made or awaited
 *        |  else: exclusive(), behind the calls that came before
 *        v
 *     #append(): queued before in this phase? --> deferred.ts     zero, mode legacy? --> legacy-zero-pages.ts
 *        | else
 *        v
 *     ram-slot.ts: the slot, handed over when it holds a packet's pages and a channel is idle, or else when it is full,
 *                  when the block changes, and at flush() and sync()
 *
 * The embedder's bytes stay the embedder's: a call only reads them, into the slot or to tell zeros. The slot is that of
 * the call whose turn it is, and only as long as it is its turn. A call that fails half way ends the session.
 *
 * A phase is what lies between two syncs. `#queued` holds the pages whose first copy is in a slot or under way.
 */
import { PageBitmap } from '../ram/bitmap.js';
import type { RAMBlock } from '../ram/block.js';
import { STOP_RUN, type Control } from '../shared/control.js';
import type { Bandwidth } from './bandwidth.js';
import { clearInTurns } from './clear-in-turns.js';
import { Deferred } from './deferred.js';
import { ANY_CHANNEL } from './hand-over.js';
import type { LegacyZeroPages } from './legacy-zero-pages.js';
import type { RamSlot } from './ram-slot.js';
import type { SessionAccess } from './session-access.js';
import type { Turns } from './turns.js';

const RESOLVED = Promise.resolve();
/** Pages: so far a bitmap is looked at in one go. */
const LONGEST_RUN = 2 ** 20;

export interface RamClientPieces {
  slot: RamSlot;
  /** In mode legacy. */
  legacy: LegacyZeroPages | undefined;
  bandwidth: Bandwidth;
  turns: Turns;
}

export class RamClient {
  readonly #session: Pick<SessionAccess, 'check' | 'broken'>;
  readonly #control: Control;
  readonly #slot: RamSlot;
  readonly #legacy: LegacyZeroPages | undefined;
  readonly #bandwidth: Bandwidth;
  readonly #turns: Turns;
  readonly #deferred: Deferred;
  /** Of each block: queued since the last sync. */
  readonly #queued: PageBitmap[];
  /** Pages of a packet. */
  readonly #packetPages: number;
  /** The last call that has to wait, and how many there are. */
  #tail: Promise<unknown> = RESOLVED;
  #busy = 0;

  constructor(
    blocks: readonly RAMBlock[],
    packetPages: number,
    session: Pick<SessionAccess, 'control' | 'check' | 'broken'>,
    pieces: RamClientPieces,
  ) {
    this.#session = session;
    this.#control = session.control;
    this.#slot = pieces.slot;
    this.#legacy = pieces.legacy;
    this.#bandwidth = pieces.bandwidth;
    this.#turns = pieces.turns;
    this.#deferred = new Deferred(blocks);
    this.#queued = blocks.map((block) => new PageBitmap(block.pageCount));
    this.#packetPages = packetPages;
  }

  /** Pages side by side. Resolves when the next may be queued. */
  queue(block: RAMBlock, page: number, count: number): Promise<void> {
    try {
      if (this.#tryQueue(block, page, count, false)) return RESOLVED;
    } catch (thrown) {
      return this.#session.broken(thrown, 'ERR_MULTIFD_BLOCK', 'queueing pages');
    }
    return this.exclusive(() => this.#queueInTurn(block, page, count));
  }

  /**
   * Pages that are zero whatever their memory holds, each at most once in a phase.
   *
   * @returns undefined if they are queued and nothing has to be waited for
   */
  queueZero(block: RAMBlock, first: number, count: number): Promise<void> | undefined {
    try {
      if (this.#tryQueue(block, first, count, true)) return undefined;
    } catch (thrown) {
      return this.#session.broken(thrown, 'ERR_MULTIFD_BLOCK', 'queueing pages');
    }
    const end = first + count;
    return this.exclusive(async () => {
      const slot = this.#slot;
      const room = slot.room(block);
      for (let page = first; page < end;) {
        if (!slot.takes(block, true, room)) await slot.flush(ANY_CHANNEL);
        const { num } = slot;
        const count = Math.min(end - page, room - num);
        slot.list(block, page, count, true);
        page += count;
        if (num + count >= room) await slot.flush(ANY_CHANNEL);
      }
    });
  }

  /**
   * Pages whose bits are set, `count` of them, as by a call of queue() for each run: where runs are short, such as those of
   * what a guest has written to in a round, the calls would take longer than the channels.
   */
  queueBits(block: RAMBlock, bits: PageBitmap, count: number): Promise<void> {
    return this.exclusive(async () => {
      const slot = this.#slot;
      const packet = this.#packetPages;
      let left = count;
      for (let page = bits.next(0); page >= 0; page = bits.next(page)) {
        let run = bits.runLength(page, LONGEST_RUN);
        if (run >= packet || this.#legacy !== undefined) await this.#queueInTurn(block, page, run);
        else {
          const room = Math.min(slot.room(block), this.#share(left));
          if (!slot.takes(block, false, room)) await slot.flush(ANY_CHANNEL);
          run = Math.min(run, slot.ahead(room, false));
          this.#appendAll(block, page, run, undefined);
          if (slot.num >= room) await slot.flush(ANY_CHANNEL);
          else slot.offer();
          if (this.#turns.isDueAfter(run)) await this.#turns.take();
        }
        page += run;
        left -= run;
      }
    });
  }

  /** Of pages that are left, how many a slot takes: towards the end ever less, so that all channels have work until then. */
  #share(left: number): number {
    const packet = this.#packetPages;
    return Math.max(packet, Math.floor(left / (2 * this.#control.channels * packet)) * packet);
  }

  /** Pages of a block of kind stream: `normal` of them with their bytes in `data`, one after the other, then zero pages. */
  queueBytes(block: RAMBlock, pages: Uint32Array, normal: number, num: number, data: Buffer): Promise<void> {
    return this.exclusive(async () => {
      const slot = this.#slot;
      for (let i = 0; i < num; i++) {
        const allZero = i >= normal;
        if (!slot.takes(block, allZero, this.#packetPages)) await slot.flush(ANY_CHANNEL);
        if (allZero) slot.list(block, pages[i], 1, true);
        else slot.putCopy(block, pages[i], data, i);
        if (slot.num >= this.#packetPages) await slot.flush(ANY_CHANNEL);
      }
    });
  }

  /** Runs calls one after the other; what they throw ends the session. */
  async exclusive(call: () => Promise<void>): Promise<void> {
    this.#busy++;
    const before = this.#tail;
    const turn = (async () => {
      if (this.#busy > 1) await before;
      await this.#session.check();
      await call();
    })();
    this.#tail = turn.catch(() => {});
    try {
      await turn;
    } catch (thrown) {
      await this.#session.broken(thrown, 'ERR_MULTIFD_BLOCK', 'queueing pages');
    } finally {
      this.#busy--;
    }
  }

  /** Hands over what is in the slot; in a turn of its own, by exclusive(). */
  flush(): Promise<void> {
    return this.#slot.flush(ANY_CHANNEL);
  }

  /** Before the sync point of a phase, in a turn of its own: all that was queued is with the channels, or was reported. */
  async finishPhase(): Promise<void> {
    await this.#slot.flush(ANY_CHANNEL);
    if (this.#deferred.any) {
      await this.#deferred.send(this.#slot, this.#control.channels, this.#packetPages, this.#turns);
    }
    if (this.#legacy !== undefined) await this.#legacy.report(this.#turns);
  }

  /** After the sync point, in the same turn: every page may be queued as if for the first time. */
  beginPhase(): Promise<void> {
    return clearInTurns(this.#queued, this.#turns);
  }

  /**
   * Pages that the slot has room for, without waiting for anything, and without the promises that waiting costs; false, and
   * nothing done, if that cannot be.
   */
  #tryQueue(block: RAMBlock, first: number, count: number, allZero: boolean): boolean {
    if (this.#busy > 0 || this.#bandwidth.limit > 0 || this.#control.stopped !== STOP_RUN) return false;
    if (count === 0 || (this.#legacy !== undefined && block.memory === undefined)) return false;
    // Calls that never wait would keep the event loop from turning.
    if (this.#turns.isDueAfter(count)) return false;
    const slot = this.#slot;
    const room = slot.room(block);
    if (!slot.takes(block, allZero, room)) return false;
    if (count > 1 && count > slot.ahead(room, this.#legacy !== undefined)) return false;
    // What a block's memory() calls has to wait for its turn: the slot is being filled.
    this.#busy++;
    if (allZero) slot.list(block, first, count, true);
    else this.#appendAll(block, first, count, undefined);
    this.#busy--;
    // With all channels busy a full slot stays until the next call, which then waits.
    slot.offer();
    return true;
  }

  async #queueInTurn(block: RAMBlock, first: number, count: number): Promise<void> {
    const slot = this.#slot;
    const end = first + count;
    const whole = this.#legacy !== undefined;
    let page = first;
    while (page < end) {
      const room = Math.min(slot.room(block), this.#share(end - page));
      if (!slot.takes(block, false, room)) await slot.flush(ANY_CHANNEL);
      const count = Math.min(end - page, slot.ahead(room, whole));
      const scratch =
        this.#legacy !== undefined && block.memory === undefined
          ? await this.#legacy.read(block, page, page + count)
          : undefined;
      this.#appendAll(block, page, count, scratch);
      page += count;
      if (slot.num >= room) await slot.flush(ANY_CHANNEL);
      else {
        slot.offer();
        if (this.#turns.isDue()) await this.#turns.take();
      }
    }
  }

  /**
   * Pages into the slot, which has room for them.
   *
   * @param scratch as in LegacyZeroPages.take()
   */
  #appendAll(block: RAMBlock, first: number, count: number, scratch: Buffer | undefined): void {
    const queued = this.#queued[block.index];
    if (this.#legacy !== undefined || queued.hasAny(first, count)) {
      for (let i = 0; i < count; i++) this.#append(block, queued, first + i, scratch, i);
    } else {
      queued.setRange(first, count);
      this.#slot.put(block, first, count);
    }
  }

  /** One page into the slot, which has room, unless it was queued in this phase or is zero in mode legacy. */
  #append(block: RAMBlock, queued: PageBitmap, page: number, scratch: Buffer | undefined, i: number): void {
    if (queued.has(page)) {
      this.#deferred.note(block, page);
      return;
    }
    if (this.#legacy?.take(block, page, scratch, i) === true) return;
    queued.testAndSet(page);
    this.#slot.put(block, page, 1);
  }
}
