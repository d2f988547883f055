/** What a receive channel tells the calling thread, and what it waits for (src/recv/calling-thread.ts), on one thread. */
import t from 'tap';
import { CallingThread } from '../../src/recv/calling-thread.js';
import { Control, STOP_END } from '../../src/shared/control.js';
import { isPending } from '../support/raw-channel.js';
import { within } from '../support/within.js';

const WAIT_MS = 10_000;
const FAR_MS = 3_600_000;

function setUp(): { control: Control; callingThread: CallingThread } {
  const control = Control.create({ channels: 2, clients: 0, pageSize: 4096, dataBytes: 4096 });
  return { control, callingThread: new CallingThread(Control.attach(control.shared), 1) };
}

t.test('progress is told as often as it is wanted, not at each packet', (t) => {
  const { control, callingThread } = setUp();
  for (let i = 0; i < 10; i++) callingThread.progress();
  t.equal(control.progressCount, 0, 'nobody wants to hear it');
  control.progressMs = FAR_MS;
  for (let i = 0; i < 10; i++) callingThread.progress();
  t.ok(control.progressCount <= 1, `${control.progressCount} within an hour`);
  t.end();
});

t.test('a sync waits until it is released, and so does the next one', async (t) => {
  const { control, callingThread } = setUp();
  for (let sync = 1; sync <= 2; sync++) {
    const waiting = callingThread.sync(sync);
    t.equal(control.syncsDone(1), sync);
    t.equal(control.syncAlloc(1), sync);
    control.releaseSync(0);
    t.ok(await isPending(waiting), 'another channel was released');
    control.releaseSync(1);
    await within(waiting, WAIT_MS, 'sync()');
  }
  const stopped = callingThread.sync(3);
  control.stop(STOP_END);
  await within(stopped, WAIT_MS, 'sync() of a session that stops');
});
