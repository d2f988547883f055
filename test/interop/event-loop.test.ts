/** The calling thread's event loop goes on turning while it puts pages of private memory into place. */
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { createReceiver } from '../../src/index.js';
import type { SourceTask } from '../fixtures/source-worker.js';
import { within } from '../support/within.js';

const MIB = 2 ** 20;
const WAIT_MS = 30_000;
const SYNCS = 2;
const BYTES = 192 * MIB;
const PACKETS = (SYNCS * BYTES) / (MIB / 2);
/** All channels may offer a packet at the same time, and once more before the loop turns. */
const MAX_PACKETS_BETWEEN_TURNS = 100;

for (const channels of [1, 4, 16]) {
  t.test(
    `a receiver of private memory, ${channels} channels: few packets between two turns of the loop`,
    async (t) => {
      const receiver = await createReceiver({
        address: 'tcp:127.0.0.1:0',
        channels,
        blocks: [{ name: 'pc.ram', memory: new ArrayBuffer(BYTES) }],
      });
      t.teardown(() => receiver.close());
      let most = 0;
      let last = 0;
      let timer: NodeJS.Immediate;
      const look = (): void => {
        const { packets } = receiver.stats();
        most = Math.max(most, packets - last);
        last = packets;
      };
      const lookAgain = (): void => {
        look();
        timer = setImmediate(lookAgain);
      };
      lookAgain();
      t.teardown(() => clearImmediate(timer));
      const task: SourceTask = { address: receiver.address, channels, bytes: BYTES, syncs: SYNCS };
      const worker = new Worker(new URL('../fixtures/source-worker.js', import.meta.url), {
        workerData: task,
      });
      t.teardown(() => worker.terminate());
      for (let n = 0; n < SYNCS; n++) await within(receiver.sync(), WAIT_MS, 'sync()');
      look();
      t.equal(receiver.stats().normalPages, (SYNCS * BYTES) / 4096);
      t.ok(most <= MAX_PACKETS_BETWEEN_TURNS, `${most} of ${PACKETS} packets between two turns`);
      await within(receiver.end(), WAIT_MS, 'end()');
    },
  );
}
