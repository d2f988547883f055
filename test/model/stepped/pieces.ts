/** Of the code under test what the threads of a run call: the way into the bundle (bundle.ts). */
export { createSender } from '../../../src/send/sender.js';
export { createReceiver } from '../../../src/recv/receiver.js';
export { runSendChannel } from '../../../src/send/channel.js';
export { runReceiveChannel } from '../../../src/recv/channel.js';
