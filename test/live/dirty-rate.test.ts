/** The rate that progress tells at the end is that of the guest as it ran. */
import t from 'tap';
import { within } from '../support/within.js';
import { WAIT_MS, scene } from './scene.js';

t.test(
  'the last round, which is sent while the guest stands still, leaves the dirty rate as it was',
  async (t) => {
    let isPaused = false;
    const it = await scene(t, {
      source: {
        dirty: () => (isPaused ? [] : [{ block: 'ram', offset: 0, length: 4096 }]),
        pause: () => void (isPaused = true),
      },
    });
    const { ram } = await within(it.source.done, WAIT_MS, 'the source');
    t.ok(ram.dirtyPagesRate > 0, String(ram.dirtyPagesRate));
    t.equal(it.source.stats().ram.dirtyPagesRate, ram.dirtyPagesRate);
  },
);
