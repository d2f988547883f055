/** Each kind of fault that `multifd stress engine` has strikes, and the engine does as it should. */
import t from 'tap';
import { FAULT_KINDS } from '../../src/stress/engine-plan.js';
import { strikes } from './strikes.js';

for (const kind of FAULT_KINDS) {
  t.test(`${kind}: strikes five times, and nothing is wrong`, { timeout: 240_000 }, async (t) => {
    await strikes(t, [kind], 5);
  });
}
