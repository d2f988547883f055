/**
 * Thread of one receive channel: a piscina task. See src/recv/channel.ts, with TLS src/recv/tls-seat.ts, and bundle.js for
 * how it is loaded.
 */
import { loadThread, type ChannelOutcome } from '../src/channel-thread.js';
import { runReceiveChannel, type ReceiveChannelTask } from '../src/recv/channel.js';
import { runTlsSeat, type TlsSeatTask } from '../src/recv/tls-seat.js';

const loaded = loadThread();

export default async (task: ReceiveChannelTask | TlsSeatTask): Promise<ChannelOutcome | ChannelOutcome[]> => {
  await loaded;
  return 'port' in task ? runTlsSeat(task) : runReceiveChannel(task);
};
