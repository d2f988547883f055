/** Thread that packs or unpacks a migration file, frame by frame: piscina tasks. See src/packed/pack-thread.ts. */
import { workerData } from 'node:worker_threads';
import { PackThread, type PackJob } from '../src/packed/pack-thread.js';

const thread = new PackThread(workerData as PackJob);

export default (...task: Parameters<PackThread['run']>): ReturnType<PackThread['run']> => thread.run(...task);
