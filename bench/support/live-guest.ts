/** A model guest for the bench `live`: memory, a dirty bitmap, and a thread (live-writer.ts) that writes to both until it is paused. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { fillImage } from './image.js';

export interface LiveWriterTask {
  memory: SharedArrayBuffer;
  bitmap: SharedArrayBuffer;
  /** One word of these. */
  control: SharedArrayBuffer;
}

export const RUN = 0;
/** Asked for, and done. */
export const PAUSE = 1;
export const PAUSED = 2;

const PAGE_BYTES = 4096;

export class LiveGuest {
  readonly memory: SharedArrayBuffer;
  readonly bitmap: Int32Array;
  readonly #control = new Int32Array(new SharedArrayBuffer(4));

  constructor(bytes: number) {
    this.memory = new SharedArrayBuffer(bytes);
    this.bitmap = new Int32Array(new SharedArrayBuffer(bytes / PAGE_BYTES / 8));
    fillImage(this.memory, 'random');
  }

  async run(): Promise<void> {
    const { memory } = this;
    const bitmap = this.bitmap.buffer as SharedArrayBuffer;
    const workerData: LiveWriterTask = { memory, bitmap, control: this.#control.buffer };
    await once(new Worker(new URL('./live-writer.js', import.meta.url), { workerData }), 'message');
  }

  async pause(): Promise<void> {
    Atomics.store(this.#control, 0, PAUSE);
    Atomics.notify(this.#control, 0);
    const wait = Atomics.waitAsync(this.#control, 0, PAUSE);
    if (wait.async) await wait.value;
  }
}
