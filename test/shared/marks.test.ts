/** Marks of pages, set by several channels in the same words at once. */
import { Worker } from 'node:worker_threads';
import t from 'tap';
import type { MarkPagesTask } from '../fixtures/mark-pages-worker.js';
import { within } from '../support/within.js';

const WAIT_MS = 60_000;
const THREADS = 2;
const ROUNDS = 64;
const WORDS = ROUNDS * 1024;

t.test("two threads that mark pages of the same words lose none of each other's marks", async (t) => {
  const bitmap = new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT);
  const started = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
  const ends = Array.from({ length: THREADS }, (_, first) => {
    const task: MarkPagesTask = { started, threads: THREADS, bitmap, first, rounds: ROUNDS };
    const worker = new Worker(new URL('../fixtures/mark-pages-worker.js', import.meta.url), {
      workerData: task,
      execArgv: [],
      env: {},
    });
    t.teardown(() => worker.terminate());
    return new Promise<number>((resolve, reject) => worker.once('exit', resolve).once('error', reject));
  });
  t.same(await within(Promise.all(ends), WAIT_MS, 'the threads'), [0, 0]);
  const lost = new Int32Array(bitmap).filter((word) => word !== -1).length;
  t.equal(lost, 0, 'words that lack a mark');
});
