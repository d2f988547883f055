/** Thread of one receive channel: a piscina task. See src/recv/channel.ts. */
import loadThread = require('./load.cjs');

const modules = loadThread(() => import('../src/recv/channel.js'));
type Run = Awaited<typeof modules>['runReceiveChannel'];

export = async (...task: Parameters<Run>): ReturnType<Run> => (await modules).runReceiveChannel(...task);
