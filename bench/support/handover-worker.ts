/**
 * A channel's thread that does nothing but take jobs and give them back: the loop of src/send/channel.ts over the real
 * Control, without a socket. A worker of handover.ts.
 */
import { workerData } from 'node:worker_threads';
import { CHANNEL_RUNNING, Control, STOP_RUN, type SharedControl } from '../../src/shared/control.js';

export interface HandoverTask {
  shared: SharedControl;
  id: number;
}

/** As many looks as the channels take before they sleep. */
const SPIN = 400;

const { shared, id } = workerData as HandoverTask;
const control = Control.attach(shared);
// waitAsync() does not keep a thread alive.
const keepAlive = setInterval(() => {}, 1000);
control.setChannelState(id, CHANNEL_RUNNING);
for (;;) {
  const seen = control.semCount(id);
  if (control.hasJob(id)) {
    if (control.slotOf(id).num !== 1) throw new Error(`channel ${id}: a job that was not published`);
    control.done(id);
    continue;
  }
  if (control.stopped !== STOP_RUN) break;
  const wait = control.waitSem(id, seen, SPIN);
  if (wait !== undefined) await wait;
}
clearInterval(keepAlive);
