/**
 * Loads addons in threads that may be ended at any moment. One that is ended while an addon starts, or makes functions of a
 * library, takes the process with it: Node-API cannot throw any more then, and calls that fatal. So who ends threads shuts the
 * gate first, and waits for those that are within. Calls of functions that are made have been seen to bear it.
 *
 *     thread                                    calling thread
 *     WITHIN + 1; SHUT?  yes: WITHIN - 1, throw   SHUT = 1
 *                        no: load; WITHIN - 1     until WITHIN is 0; then the threads are ended
 *
 * Both write first and read then, so that one of the two sees the other. A thread knows its gate by its workerData; any other,
 * the embedder's among them, has none.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { isMainThread, workerData } from 'node:worker_threads';

const WITHIN = 0;
const SHUT = 1;
const POLL_MS = 5;
/** By choice: loading an addon from a disk that hangs is not waited for longer. */
const WAIT_MS = 10_000;

/** Part of a thread's workerData. */
export interface AddonGate {
  addonGate: SharedArrayBuffer;
}

export function makeAddonGate(): AddonGate {
  return { addonGate: new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT) };
}

/** @throws Error if the thread is about to be ended, and what `load` throws */
export function loadAddon<T>(load: () => T): T {
  const given = isMainThread ? undefined : (workerData as Partial<AddonGate> | null)?.addonGate;
  if (!(given instanceof SharedArrayBuffer)) return load();
  const words = new Int32Array(given);
  Atomics.add(words, WITHIN, 1);
  try {
    if (Atomics.load(words, SHUT) !== 0) throw new Error('the thread is about to be ended');
    return load();
  } finally {
    Atomics.sub(words, WITHIN, 1);
  }
}

/** Before threads are ended. Afterwards none of them is within an addon's start, or ever will be. */
export async function shutAddonGate({ addonGate }: AddonGate): Promise<void> {
  const words = new Int32Array(addonGate);
  Atomics.store(words, SHUT, 1);
  const late = performance.now() + WAIT_MS;
  while (Atomics.load(words, WITHIN) > 0 && performance.now() < late) await sleep(POLL_MS);
}
