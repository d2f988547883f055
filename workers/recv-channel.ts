/** Thread of one receive channel: a piscina task. See src/recv/channel.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import type { ChannelOutcome } from '../src/send/channel.js';
import { runReceiveChannel, type ReceiveChannelTask } from '../src/recv/channel.js';
import { markBooted } from '../src/shared/control.js';

export default function receiveChannel(task: ReceiveChannelTask): Promise<ChannelOutcome> {
  return runReceiveChannel(task, (multifd, data) => parentPort?.postMessage({ multifd, data }));
}

markBooted(workerData as SharedArrayBuffer);
