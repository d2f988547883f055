/**
 * The processor of live-guest.ts: writes to memory as the guest of live-sector.ts does, at the same pace, and sets each page's
 * dirty bit when it has written.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { PAUSED, RUN, type LiveWriterTask } from './live-guest.js';
import { LivePages, PAGES_A_SECOND } from './live-sector.js';

const WORDS_OF_PAGE = 2 ** 10;

const { memory, bitmap, control } = workerData as LiveWriterTask;
const ram = new Int32Array(memory);
const dirty = new Int32Array(bitmap);
const word = new Int32Array(control);
const pages = new LivePages();
const begun = performance.now();
let written = 0;
parentPort?.postMessage('running');
while (Atomics.load(word, 0) === RUN) {
  const due = ((performance.now() - begun) * PAGES_A_SECOND) / 1000;
  for (; written < due; written++) {
    const page = pages.next();
    ram[page * WORDS_OF_PAGE]++;
    Atomics.or(dirty, page >> 5, 1 << (page & 31));
  }
  Atomics.wait(word, 0, RUN, 1);
}
Atomics.store(word, 0, PAUSED);
Atomics.notify(word, 0);
