/** The watch for stalls: when it fires, when it does not, and what a process that was stopped makes of it. */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { watchStall } from '../../src/transport/stall.js';
import { within } from '../support/within.js';

const STALL_MS = 160;
const WAIT_MS = 10_000;

t.test('what does not move is told, once, and not before its time', async (t) => {
  const begun = performance.now();
  let times = 0;
  const fired = new Promise<void>((resolve) => {
    t.teardown(
      watchStall(
        STALL_MS,
        () => 7,
        () => {
          times++;
          resolve();
        },
      ),
    );
  });
  await within(fired, WAIT_MS, 'stall');
  t.ok(performance.now() - begun >= STALL_MS, 'not before its time');
  await sleep(2 * STALL_MS);
  t.equal(times, 1);
});

for (const [what, moved] of [
  ['what moves', () => performance.now()],
  ['what is not waited for', () => undefined],
] as [string, () => number | undefined][]) {
  t.test(`${what} is no stall`, async (t) => {
    let times = 0;
    const end = watchStall(STALL_MS, moved, () => times++);
    await sleep(4 * STALL_MS);
    end();
    t.equal(times, 0);
  });
}

t.test('a watch that was ended does not fire', async (t) => {
  let times = 0;
  watchStall(
    STALL_MS,
    () => 1,
    () => times++,
  )();
  await sleep(3 * STALL_MS);
  t.equal(times, 0);
});

t.test('a process that was stopped first reads what has come', async (t) => {
  let bytes = 0;
  let times = 0;
  const end = watchStall(
    STALL_MS,
    () => bytes,
    () => times++,
  );
  await sleep(STALL_MS / 4);
  // Timers that are due run before anything is read.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4 * STALL_MS);
  setImmediate(() => bytes++);
  await sleep(STALL_MS / 2);
  t.equal(times, 0);
  end();
});
