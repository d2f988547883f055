/** A thread of the runs: the calling thread, which goes from run to run, or a channel's. */
import fs from 'node:fs';
import { parentPort, workerData, type MessagePort } from 'node:worker_threads';
import type { ReceiveChannelTask } from '../../../src/recv/channel.js';
import type { SendChannelTask } from '../../../src/send/channel.js';
import type { OutcomeMail, TaskMail } from './pool.js';
import type * as Pieces from './pieces.js';
import { receiveRun } from './receiving.js';
import { sendRun } from './sending.js';
import { Stepper } from './stepper.js';

export interface StepThread {
  side: 'send' | 'receive';
  words: SharedArrayBuffer;
  thread: number;
  ports: (MessagePort | undefined)[];
  bundle: string;
  from: number;
  count: number;
  /** Where the traces go, if they are wanted: each its seed, its length, its events. */
  traces: number | undefined;
}

declare global {
  /** The thread's, and in the bundle what `Atomics` and the clocks are. */
  var stepped: Stepper;
}

const { side, words, thread, ports, bundle, from, count, traces } = workerData as StepThread;
const stepper = (globalThis.stepped = new Stepper(words, thread, ports));
const pieces = (await import(bundle)) as typeof Pieces;

async function runs(): Promise<void> {
  const run = side === 'send' ? sendRun : receiveRun;
  let steps = 0;
  for (let seed = from; seed < from + count; seed++) {
    stepper.begin(seed);
    await run(stepper, pieces);
    await stepper.finish();
    steps += stepper.steps;
    if (traces === undefined) continue;
    const events = stepper.trace();
    fs.writeSync(traces, Buffer.from(Int32Array.of(seed, events.length, ...events).buffer));
  }
  parentPort?.postMessage({ steps });
}

if (thread === 0) {
  runs().catch((thrown: unknown) => stepper.fail((thrown as Error).stack ?? String(thrown)));
} else {
  stepper.onMail = (mail) => {
    const task = mail as TaskMail & { stream?: Uint8Array };
    stepper.watch(task.shared.control, task.shared.shape);
    stepper.stream = task.stream;
    const channel =
      side === 'send'
        ? pieces.runSendChannel(task as SendChannelTask)
        : pieces.runReceiveChannel(task as ReceiveChannelTask);
    void channel.then((outcome) => stepper.mail(0, { id: task.id, outcome } satisfies OutcomeMail));
  };
  stepper.enter();
}
await stepper.run();
