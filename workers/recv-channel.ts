/** Thread of one receive channel: a piscina task. See src/recv/channel.ts, and bundle.js for how it is loaded. */
import { loadThread } from '../src/channel-thread.js';
import { runReceiveChannel } from '../src/recv/channel.js';

const loaded = loadThread();

export default async (
  ...task: Parameters<typeof runReceiveChannel>
): ReturnType<typeof runReceiveChannel> => {
  await loaded;
  return runReceiveChannel(...task);
};
