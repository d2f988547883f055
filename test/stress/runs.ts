/** Runs of `multifd stress engine` without a fault, by a sides' program of the tests' own. */
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import { EngineTotals, stressEngine } from '../../src/stress/engine.js';
import type { RunReport } from '../../src/stress/engine-run.js';

const never = new AbortController().signal;
export const fixture = (name: string): string =>
  fileURLToPath(new URL(`../fixtures/${name}.js`, import.meta.url));

/** From run 0 on. */
export async function runs(
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
