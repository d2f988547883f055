/** Memory that grows from run to run of `multifd stress engine`, from the first run to what is told of it. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { fixture, runs } from './runs.js';

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
