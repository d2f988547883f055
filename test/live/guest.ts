/**
 * A model guest that goes on writing to its memory while it is moved. Memory that is shared is written by a thread of its own, any
 * other between two turns of the event loop, as is one whose bitmap is not shared; memory that can grow does so meanwhile.
 */
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import type { Test } from 'tap';
import type { DirtyOption, DirtyRange } from '../../src/index.js';
import { type LiveGuestTask, PAUSE, RUN, nextWrite } from '../fixtures/live-guest-worker.js';
import { Random } from '../support/random.js';
import { makeLiveStore, type LiveKind, type LiveStore } from './kinds.js';

export const PAGE_SIZE = 4096;
const BLOCK = 'guest.ram';

/** How its dirty pages are told: a bitmap that threads share, one of its own thread, a function. */
/** `none`: the migration finds them by itself. */
export type DirtyForm = 'bitmap' | 'own-bitmap' | 'function' | 'none';

export class LiveGuest {
  readonly store: LiveStore;
  /** Zeroed memory of the same kind at the destination. */
  readonly there: LiveStore;
  readonly dirty: DirtyOption | undefined;
  /** pause and resume, as they were called. */
  readonly calls: string[] = [];
  readonly pageCount: number;
  readonly #bitmap: Int32Array;
  readonly #hasThread: boolean;
  readonly #control = new Int32Array(new SharedArrayBuffer(8));
  readonly #random: Random;
  #timer: NodeJS.Immediate | undefined;
  /** It has begun to write. */
  running: Promise<unknown> = Promise.resolve();

  constructor(t: Test, kind: LiveKind, form: DirtyForm, seed: number, pageCount = 2048) {
    this.pageCount = pageCount;
    this.store = makeLiveStore(t, kind, BLOCK, pageCount * PAGE_SIZE);
    this.there = makeLiveStore(t, kind, `${BLOCK}-there`, pageCount * PAGE_SIZE);
    this.store.options.name = this.there.options.name = BLOCK;
    const bitmapBytes = 4 * Math.ceil(pageCount / 32);
    this.#bitmap = new Int32Array(
      form === 'own-bitmap' ? new ArrayBuffer(bitmapBytes) : new SharedArrayBuffer(bitmapBytes),
    );
    if (form === 'function') this.dirty = () => this.#ranges();
    else if (form !== 'none') this.dirty = { [BLOCK]: this.#bitmap };
    this.#random = new Random(seed);
    // Half of it has never been written to.
    for (let page = 0; page < pageCount / 2; page++) {
      const bytes = Buffer.alloc(PAGE_SIZE);
      this.#random.bytes(bytes.subarray(0, page % 3 === 0 ? 64 : PAGE_SIZE));
      this.store.write(page * PAGE_SIZE, bytes);
    }
    const { memory } = this.store.options;
    this.#hasThread = memory instanceof SharedArrayBuffer && form !== 'own-bitmap';
    if (this.#hasThread) this.#startThread(t, memory as SharedArrayBuffer, seed);
    else {
      this.#turn();
      t.teardown(() => clearImmediate(this.#timer));
    }
  }

  async pause(): Promise<void> {
    this.calls.push('pause');
    clearImmediate(this.#timer);
    if (!this.#hasThread) return;
    Atomics.store(this.#control, 0, PAUSE);
    const wait = Atomics.waitAsync(this.#control, 0, PAUSE);
    if (wait.async) await wait.value;
  }

  resume(): void {
    this.calls.push('resume');
    if (this.#hasThread) {
      Atomics.store(this.#control, 0, RUN);
      Atomics.notify(this.#control, 0);
    } else this.#turn();
  }

  #startThread(t: Test, memory: SharedArrayBuffer, seed: number): void {
    const bitmap = this.#bitmap.buffer as SharedArrayBuffer;
    const control = this.#control.buffer;
    const workerData: LiveGuestTask = { memory, bitmap, control, seed, pageSize: PAGE_SIZE };
    const file = fileURLToPath(new URL('../fixtures/live-guest-worker.js', import.meta.url));
    const worker = new Worker(file, { workerData });
    this.running = once(worker, 'message');
    t.teardown(async () => {
      const exit = once(worker, 'exit');
      await worker.terminate();
      await exit.catch(() => {});
    });
  }

  #turn(): void {
    for (let i = 0; i < 2; i++) {
      const { page, at, bytes } = nextWrite(this.#random, this.pageCount, PAGE_SIZE);
      this.store.write(page * PAGE_SIZE + at, bytes);
      Atomics.or(this.#bitmap, page >> 5, 1 << (page & 31));
    }
    this.store.grow?.();
    this.there.grow?.();
    this.#timer = setImmediate(() => this.#turn());
  }

  *#ranges(): Generator<DirtyRange> {
    for (let page = 0; page < this.pageCount; page++) {
      const bit = 1 << (page & 31);
      if ((Atomics.and(this.#bitmap, page >> 5, ~bit) & bit) === 0) continue;
      yield { block: BLOCK, offset: page * PAGE_SIZE, length: PAGE_SIZE };
    }
  }
}
