/** koffi leaves something behind in each thread: there is a last one that has it, and those behind it do without. */
import fs from 'node:fs';
import { Worker } from 'node:worker_threads';
import t, { type Test } from 'tap';
import { createReceiver, createSender } from '../../src/index.js';
import { findKoffi } from '../../src/native/koffi.js';
import { MAX_KOFFI_THREADS, koffiThreads, type KoffiThreads } from '../../src/native/koffi-threads.js';
import { hasNodeZstd } from '../../src/methods/zstd-node.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';

const WAIT_MS = 20_000;
const MODULE = new URL('../../src/native/koffi.js', import.meta.url).href;
const skip = findKoffi() === undefined && 'there is no koffi here';

interface Found {
  found: boolean;
  why: string;
  stack?: number;
  /** What a function of the C library has answered. */
  call?: number;
}

/** Resolves when the thread has ended. */
async function inThread(t: Test, data: Partial<KoffiThreads>): Promise<Found> {
  const code = `
    const { parentPort, workerData } = require('node:worker_threads');
    import(workerData.module).then(({ findKoffi, whyNoKoffi }) => {
      const koffi = findKoffi();
      parentPort.postMessage({
        found: koffi !== undefined,
        why: whyNoKoffi(),
        stack: koffi?.config().sync_stack_size,
        call: koffi?.load(null).func('int getpid()')(),
      });
    });`;
  const worker = new Worker(code, { eval: true, workerData: { ...data, module: MODULE } });
  t.teardown(async () => worker.terminate());
  const said = new Promise<Found>((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  const ended = new Promise((resolve) => worker.once('exit', resolve));
  const found = await within(said, WAIT_MS, 'what a thread has found');
  await within(ended, WAIT_MS, 'its end');
  return found;
}

t.test('the last one that has it, and the next', { skip }, async (t) => {
  const data = { koffiThreads: new SharedArrayBuffer(4) };
  const words = new Int32Array(data.koffiThreads);
  words[0] = MAX_KOFFI_THREADS - 1;
  t.match(await inThread(t, data), { found: true, stack: 256 * 1024, call: process.pid });
  t.match(await inThread(t, data), { found: false, why: `${MAX_KOFFI_THREADS} threads of this process` });
  t.equal(words[0], MAX_KOFFI_THREADS);
  t.match(await inThread(t, {}), { found: true, stack: 2 * 1024 * 1024 }, "one of somebody else's");
});

t.test(
  'behind the last one zstd goes on',
  { skip: hasNodeZstd ? 'this Node has a zstd of its own' : skip },
  async (t) => {
    const words = new Int32Array(koffiThreads().koffiThreads);
    const before = words[0];
    for (const count of [before, MAX_KOFFI_THREADS]) {
      words[0] = count;
      const size = 2 ** 20;
      const [source, there] = [new SharedArrayBuffer(size), new SharedArrayBuffer(size)];
      new Random(3).bytes(Buffer.from(source, 0, size / 2));
      const [from, to] = [source, there].map((memory) => [{ name: 'ram', memory }]);
      const receiver = await createReceiver({ address: { port: 0 }, compression: 'zstd', blocks: to });
      t.teardown(async () => receiver.close());
      const sender = await createSender({ address: receiver.address, compression: 'zstd', blocks: from });
      t.teardown(async () => sender.close());
      await within(sender.queueRange('ram', 0, size), WAIT_MS, 'to queue');
      await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'the sync point');
      await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'the end');
      t.ok(Buffer.from(source).equals(Buffer.from(there)));
      t.equal(
        words[0],
        count === before ? before + 4 : MAX_KOFFI_THREADS,
        'two channels a side have been counted',
      );
    }
  },
);

t.test('what koffi leaves behind in a thread is as much as is said of it', { skip }, async (t) => {
  const mappings = (): number => fs.readFileSync('/proc/self/maps', 'utf8').split('\n').length;
  const data = { koffiThreads: new SharedArrayBuffer(4) };
  for (let i = 0; i < 5; i++) await inThread(t, data);
  const before = mappings();
  const COUNT = 10;
  for (let i = 0; i < COUNT; i++) await inThread(t, data);
  const after = mappings();
  // Should it be none some day, the count has no more reason.
  t.ok(after - before <= 4 * COUNT, `${COUNT} threads, ${after - before} mappings`);
});
