/** Thread of one send channel: a piscina task. See src/send/channel.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { runSendChannel, type ChannelOutcome, type SendChannelTask } from '../src/send/channel.js';
import { METHODS } from '../src/methods/methods.js';
import type { ChannelThread } from '../src/session.js';
import { markBooted } from '../src/shared/control.js';

export default function sendChannel(task: SendChannelTask): Promise<ChannelOutcome> {
  return runSendChannel(task, (multifd, data) => parentPort?.postMessage({ multifd, data }));
}

const { control, compression } = workerData as ChannelThread;
// Before the thread counts as booted: one that is ended while it loads modules leaves a file open.
await METHODS[compression].load?.();
markBooted(control);
