/** Thread of one receive channel: a piscina task. See src/recv/channel.ts. */
import { bootThread } from '../src/channel-thread.js';

export { runReceiveChannel as default } from '../src/recv/channel.js';

await bootThread();
