/** Memory that grows from run to run of `multifd stress engine`, from the first run to what is told of it. */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { EngineTotals, stressEngine } from '../../src/stress/engine.js';
import type { RunReport } from '../../src/stress/engine-run.js';

const never = new AbortController().signal;
const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/${name}.js`, import.meta.url));

async function runs(
  t: Test,
  program: string,
  count: number,
): Promise<{ totals: EngineTotals; reports: RunReport[] }> {
  const totals = new EngineTotals();
  const reports: RunReport[] = [];
  t.teardown(() => {
    for (const { folder } of totals.failed) fs.rmSync(folder, { recursive: true, force: true });
  });
  const options = { seed: 1, firstRun: 0, count, minutes: 10, only: 'no-fault' as const, program };
  await stressEngine(options, { run: (report) => reports.push(report) }, totals, never);
  return { totals, reports };
}

t.test('memory that grows is said once, with the runs that it took, and with evidence', async (t) => {
  const { totals, reports } = await runs(t, fixture('stress-growing-process'), 13);
  const grown = reports.filter(({ wrong }) => wrong.length > 0);
  const [first] = grown;
  t.match(first.wrong, [
    /^the destination's heap and buffers has grown: received \d+ bytes, expected about \d+ as/,
  ]);
  t.same(first.repeat, { run: 0, runs: first.plan.run + 1 }, 'all of the process');
  t.equal(totals.failed.length, grown.length);
  // The next process has five runs that count for nothing, and one to be held against.
  for (const { plan } of grown.slice(1)) t.ok(plan.run > first.plan.run + 5, `${plan.run} ${first.plan.run}`);
  const { folder } = totals.failed[0];
  for (const name of ['sides.json', 'source.stderr', 'destination.stderr', 'run.log'])
    t.ok(fs.existsSync(path.join(folder, name)), name);
});
