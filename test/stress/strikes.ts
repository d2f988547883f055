/** Runs of `multifd stress engine` until each kind of fault has struck so often; nothing may be wrong with any of them. */
import type { Test } from 'tap';
import { stressEngine, EngineTotals } from '../../src/stress/engine.js';
import type { FaultKind } from '../../src/stress/engine-plan.js';

/** Some come too late for a small guest. */
const MOST_RUNS = 40;

export async function strikes(t: Test, kinds: readonly FaultKind[], times: number): Promise<void> {
  for (const only of kinds) {
    const totals = new EngineTotals();
    const enough = new AbortController();
    const options = { seed: 1, firstRun: 0, count: MOST_RUNS, minutes: 60, only };
    const run = (): void => {
      if ((totals.faults[only]?.struck ?? 0) >= times) enough.abort('enough');
    };
    await stressEngine(options, { run }, totals, enough.signal).catch((reason: unknown) => {
      if (reason !== 'enough') throw reason;
    });
    t.ok((totals.faults[only]?.struck ?? 0) >= times, `${only} has struck, in ${totals.runs} runs`);
    t.same(totals.failed, [], only);
  }
}
