/** Thread of one receive channel: a piscina task. See src/recv/channel.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import type { ChannelOutcome } from '../src/send/channel.js';
import { runReceiveChannel, type ReceiveChannelTask } from '../src/recv/channel.js';
import { METHODS } from '../src/methods/methods.js';
import type { ChannelThread } from '../src/session.js';
import { markBooted } from '../src/shared/control.js';

export default function receiveChannel(task: ReceiveChannelTask): Promise<ChannelOutcome> {
  return runReceiveChannel(task, (multifd, data) => parentPort?.postMessage({ multifd, data }));
}

const { control, compression } = workerData as ChannelThread;
// Before the thread counts as booted: one that is ended while it loads modules leaves a file open.
await METHODS[compression].load?.();
markBooted(control);
