/** Each fuzzer, for a few thousand inputs of a fixed seed: `npm run fuzz` has others, and minutes. */
import t from 'tap';
import { allFuzzers } from './register.js';
import { FuzzRun } from './run.js';

const SEED = 20_26;

for (const fuzzer of await allFuzzers()) {
  t.test(`${fuzzer.name}: ${fuzzer.what}`, async (t) => {
    const run = await FuzzRun.open(fuzzer);
    t.teardown(() => run.close());
    const failures = [await run.seeds(), await run.corpus(), await run.batch(SEED, fuzzer.runs)];
    for (const failure of failures) {
      if (failure === undefined) continue;
      t.fail(failure.why, {
        bytes: failure.input.length,
        hex: failure.input.toString('hex').slice(0, 2000),
        file: failure.file,
      });
    }
    t.ok(run.inputs >= fuzzer.runs);
  });
}
