/** Runs schedules, from one seed on, one after the other: on the test's thread. */
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import { describeEvent, STEP_WORDS, type StepperFailure } from './stepper.js';
import type { StepThread } from './thread.js';

const THREADS = 3;
/** Of what led to a failure, so much is told. */
const TOLD_EVENTS = 60;

export interface Runs {
  side: StepThread['side'];
  /** Of makeBundle(). */
  bundle: string;
  /** The first seed; each run has the next. */
  from: number;
  count: number;
  /** A file for their traces. */
  traces?: number;
}

export interface RunsOutcome {
  /** Of all runs together. */
  steps: number;
  failure?: StepperFailure;
}

export async function runSchedules({ side, bundle, from, count, traces }: Runs): Promise<RunsOutcome> {
  const words = new SharedArrayBuffer(4 * STEP_WORDS);
  // The channels have nothing to do at first: IDLE.
  new Int32Array(words).set([0, 1, 1], 16);
  const ports: MessagePort[][] = Array.from({ length: THREADS }, () => []);
  for (let channel = 1; channel < THREADS; channel++) {
    const { port1, port2 } = new MessageChannel();
    ports[0][channel] = port1;
    ports[channel][0] = port2;
  }
  let workers: Worker[] = [];
  try {
    return await new Promise<RunsOutcome>((resolve, reject) => {
      workers = ports.map((own, thread) => {
        const workerData: StepThread = { side, words, thread, ports: own, bundle, from, count, traces };
        const worker = new Worker(new URL('thread.js', import.meta.url), {
          workerData,
          transferList: own.filter((port) => port !== undefined),
          // Without what tap preloads into every thread.
          execArgv: [],
          env: {},
        });
        worker.on('message', (outcome: { steps: number } | { failure: StepperFailure }) =>
          resolve('failure' in outcome ? { steps: 0, failure: outcome.failure } : outcome),
        );
        worker.on('error', reject);
        worker.on('exit', () => reject(new Error(`thread ${thread} has ended`)));
        return worker;
      });
    });
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

/** For people. */
export function describeFailure(side: Runs['side'], { seed, message, events }: StepperFailure): string {
  const told = events.slice(-TOLD_EVENTS).map((event) => `  ${describeEvent(event)}`);
  return [`${side}, seed ${seed}: ${message}`, ...told].join('\n');
}
