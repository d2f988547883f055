/** Each kind of fault that `multifd stress engine` has strikes, and the engine does as it should. */
import t from 'tap';
import { FAULT_KINDS } from '../../src/stress/engine-plan.js';
import { Run, type Line } from '../cli/cli.js';
import { strikes } from './strikes.js';

for (const kind of FAULT_KINDS) {
  // tap's loader, which is in each process that a test starts, ends it at a signal that Node leaves alone (SIGXFSZ).
  if (kind === 'disk-full') continue;
  t.test(`${kind}: strikes five times, and nothing is wrong`, { timeout: 240_000 }, async (t) => {
    await strikes(t, [kind], 5);
  });
}

t.test('disk-full, as users run it: strikes five times, and nothing is wrong', async (t) => {
  const struck = ({ faults }: Line): number =>
    (faults as Record<string, { struck: number }> | undefined)?.['disk-full']?.struck ?? 0;
  const run = new Run(t, ['stress', 'engine', '--seed', '1', '--fault', 'disk-full', '--json']);
  await run.line((line) => line.type === 'progress' && struck(line) >= 5);
  run.child.kill('SIGINT');
  const { code } = await run.ended;
  t.equal(code, 130);
  t.same(run.result?.failed, []);
  t.ok(struck(run.result as Line) >= 5);
});
