/** Threads are ended when none of them starts an addon any more. */
import { Worker } from 'node:worker_threads';
import t, { type Test } from 'tap';
import { loadAddon, makeAddonGate, shutAddonGate, type AddonGate } from '../../src/native/addon-gate.js';
import { within } from '../support/within.js';

const WAIT_MS = 20_000;
const MODULE = new URL('../../src/native/addon-gate.js', import.meta.url).href;
/** Loads when it is told to, until it is told that this has been long enough. */
const THREAD = `
  const { parentPort, workerData } = require('node:worker_threads');
  import(workerData.module).then(({ loadAddon }) => {
    parentPort.on('message', () => {
      try {
        loadAddon(() => {
          parentPort.postMessage('within');
          Atomics.wait(workerData.words, 0, 0);
        });
        parentPort.postMessage('loaded');
      } catch (error) {
        parentPort.postMessage(error.message);
      }
    });
    parentPort.postMessage('there');
  });`;

function thread(
  t: Test,
  gate: Partial<AddonGate>,
): { worker: Worker; words: Int32Array; next: () => Promise<string> } {
  const words = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(THREAD, { eval: true, workerData: { ...gate, words, module: MODULE } });
  t.teardown(async () => worker.terminate());
  const said: string[] = [];
  let wake = (): void => {};
  worker.on('message', (word: string) => {
    said.push(word);
    wake();
  });
  const next = async (): Promise<string> => {
    while (said.length === 0)
      await within(new Promise<void>((resolve) => (wake = resolve)), WAIT_MS, 'a word');
    return said.shift() as string;
  };
  return { worker, words, next };
}

t.test('it is waited for who is within, and nobody comes in any more', async (t) => {
  const gate = makeAddonGate();
  const { worker, words, next } = thread(t, gate);
  t.equal(await next(), 'there');
  worker.postMessage('load');
  t.equal(await next(), 'within');
  let isShut = false;
  const shut = shutAddonGate(gate).then(() => (isShut = true));
  await new Promise((resolve) => setTimeout(resolve, 50));
  t.notOk(isShut);
  Atomics.store(words, 0, 1);
  Atomics.notify(words, 0);
  await within(shut, WAIT_MS, 'the gate');
  t.equal(await next(), 'loaded');
  worker.postMessage('load');
  t.equal(await next(), 'the thread is about to be ended');
});

t.test('a thread without one, and the main thread, load as they like', async (t) => {
  const gate = makeAddonGate();
  await shutAddonGate(gate);
  t.equal(
    loadAddon(() => 7),
    7,
  );
  const { worker, words, next } = thread(t, {});
  t.equal(await next(), 'there');
  Atomics.store(words, 0, 1);
  worker.postMessage('load');
  t.equal(await next(), 'within');
  t.equal(await next(), 'loaded');
  t.throws(() => loadAddon((): unknown => JSON.parse('{')), SyntaxError);
});
