/** Thread of one send channel: a piscina task. See src/send/channel.ts. */
import loadThread = require('./load.cjs');

const modules = loadThread(() => import('../src/send/channel.js'));
type Run = Awaited<typeof modules>['runSendChannel'];

export = async (...task: Parameters<Run>): ReturnType<Run> => (await modules).runSendChannel(...task);
