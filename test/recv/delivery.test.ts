/** The delivery's hand-over with the channels, where real threads hardly ever meet it. */
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import t from 'tap';
import { Delivery } from '../../src/recv/delivery.js';
import { Control, STOP_FAIL } from '../../src/shared/control.js';
import { WORD_READY } from '../../src/shared/layout.js';

t.test('race: a stop right behind the look at STOP does not leave the delivery asleep', async (t) => {
  const control = Control.create({ channels: 1, clients: 0, pageSize: 65536, dataBytes: 65536 });
  let looks = 0;
  const raced = {
    channels: 1,
    get stopped() {
      const { stopped } = control;
      // A channel's, at once: nobody posts READY any more.
      if (looks++ === 0) control.stop(STOP_FAIL);
      return stopped;
    },
    get readyCount() {
      return control.readyCount;
    },
    hasJob: (id: number) => control.hasJob(id),
    waitReady: (seen: number, spin: number) => control.waitReady(seen, spin),
  };
  const delivery = new Delivery({
    control: raced as unknown as Control,
    devices: new Map(),
    pages: undefined,
    deviceState: async () => {},
    fail: (error) => t.error(error),
  });
  delivery.start([], 65536);
  await yieldToLoop();
  t.equal(looks, 2, 'it has looked again');
  t.equal(Atomics.notify(new Int32Array(control.shared.control), WORD_READY), 0, 'nobody sleeps');
});
