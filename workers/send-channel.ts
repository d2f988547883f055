/** Thread of one send channel: a piscina task. See src/send/channel.ts, and bundle.js for how it is loaded. */
import { loadThread } from '../src/channel-thread.js';
import { runSendChannel } from '../src/send/channel.js';

const loaded = loadThread();

export default async (...task: Parameters<typeof runSendChannel>): ReturnType<typeof runSendChannel> => {
  await loaded;
  return runSendChannel(...task);
};
