/** Thread of one send channel: a piscina task. See src/send/channel.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { runSendChannel, type ChannelOutcome, type SendChannelTask } from '../src/send/channel.js';
import { markBooted } from '../src/shared/control.js';

export default function sendChannel(task: SendChannelTask): Promise<ChannelOutcome> {
  return runSendChannel(task, (multifd, data) => parentPort?.postMessage({ multifd, data }));
}

markBooted(workerData as SharedArrayBuffer);
