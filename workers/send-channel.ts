/** Thread of one send channel: a piscina task. See src/send/channel.ts. */
import { bootThread } from '../src/channel-thread.js';

export { runSendChannel as default } from '../src/send/channel.js';

await bootThread();
