/**
 * A model guest that goes on writing to its memory while it is moved. Memory that is shared is written by a thread of its own,
 * any other between two turns of the event loop; its dirty pages are told as a bitmap or by a function.
 */
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import type { Test } from 'tap';
import type { DirtyOption, DirtyRange } from '../../src/index.js';
import { type LiveGuestTask, PAUSE, RUN, nextWrite } from '../fixtures/live-guest-worker.js';
import { Random } from '../support/random.js';
import { makeStore, type Store, type StoreKind } from '../support/store.js';

export const PAGE_SIZE = 4096;
const BLOCK = 'guest.ram';

export class LiveGuest {
  readonly store: Store;
  /** Zeroed memory of the same kind at the destination. */
  readonly there: Store;
  readonly dirty: DirtyOption;
  /** pause and resume, as they were called. */
  readonly calls: string[] = [];
  readonly pageCount: number;
  readonly #bitmap: Int32Array;
  readonly #control = new Int32Array(new SharedArrayBuffer(8));
  readonly #random: Random;
  #timer: NodeJS.Immediate | undefined;
  /** It has begun to write. */
  running: Promise<unknown> = Promise.resolve();

  constructor(t: Test, kind: StoreKind, form: 'bitmap' | 'function', seed: number, pageCount = 2048) {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-live-'));
    t.teardown(() => fs.rmSync(dir, { recursive: true }));
    this.pageCount = pageCount;
    this.store = makeStore(dir, BLOCK, kind, pageCount * PAGE_SIZE);
    this.there = makeStore(dir, `${BLOCK}-there`, kind, pageCount * PAGE_SIZE);
    this.store.options.name = this.there.options.name = BLOCK;
    this.#bitmap = new Int32Array(new SharedArrayBuffer(4 * Math.ceil(pageCount / 32)));
    this.dirty = form === 'bitmap' ? { [BLOCK]: this.#bitmap } : () => this.#ranges();
    this.#random = new Random(seed);
    // Half of it has never been written to.
    for (let page = 0; page < pageCount / 2; page++) {
      const bytes = Buffer.alloc(PAGE_SIZE);
      this.#random.bytes(bytes.subarray(0, page % 3 === 0 ? 64 : PAGE_SIZE));
      this.store.write(page * PAGE_SIZE, bytes);
    }
    const { memory } = this.store.options;
    if (memory instanceof SharedArrayBuffer) this.#startThread(t, memory, seed);
    else {
      this.#turn();
      t.teardown(() => clearImmediate(this.#timer));
    }
  }

  async pause(): Promise<void> {
    this.calls.push('pause');
    clearImmediate(this.#timer);
    if (!(this.store.options.memory instanceof SharedArrayBuffer)) return;
    Atomics.store(this.#control, 0, PAUSE);
    const wait = Atomics.waitAsync(this.#control, 0, PAUSE);
    if (wait.async) await wait.value;
  }

  resume(): void {
    this.calls.push('resume');
    if (this.store.options.memory instanceof SharedArrayBuffer) {
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
