/** Failures of `multifd stress engine` that are not one run's alone: memory that grows, a process that does not start. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { MemoryWatch } from '../../src/stress/memory-watch.js';
import { fixture, runs } from './runs.js';

t.test('growth is of all runs that a process has had, and is said once', async (t) => {
  const watch = new MemoryWatch();
  const look = (runs: number, heapBytes: number, pid = 1): { wrong: string[]; runs: number } => {
    const left = { heapBytes, residentBytes: 0, descriptors: [], threads: 0, resources: [] };
    const quiet = { outcome: undefined, died: undefined, tookMs: undefined, left };
    const nothing = { ...quiet, left: undefined };
    const sides = { source: { pid: 99, runs }, destination: { pid, runs } };
    return watch.look({ sides: { source: nothing, destination: quiet } }, sides);
  };
  t.same(look(4, 1e6), { wrong: [], runs: 0 });
  t.same(look(5, 100e6), { wrong: [], runs: 0 }, 'what it has now is held against it from here on');
  t.same(look(6, 140e6), { wrong: [], runs: 0 });
  const { wrong, runs } = look(7, 160e6);
  t.match(wrong, [/received 160000000 bytes, expected about 100000000 as after its first 5 runs/]);
  t.equal(runs, 7);
  t.same(look(8, 161e6), { wrong: [], runs: 0 });
});

t.test(
  'a process that is killed while it starts is a failed run, and the next one starts anew',
  async (t) => {
    process.env.STRESS_DIES_ONCE = path.join(t.testdir({}), 'died');
    t.teardown(() => delete process.env.STRESS_DIES_ONCE);
    const { totals, reports } = await runs(t, fixture('stress-dying-process'), 2);
    t.match(reports[0].wrong, [/^the (source|destination)'s process did not start: killed by SIGKILL$/]);
    t.same(reports[0].repeat, { run: 0, runs: 1 });
    t.ok(fs.existsSync(path.join(totals.failed[0].folder, 'sides.json')));
    t.same([totals.runs, totals.failed.length, totals.equal], [2, 1, 1]);
  },
);

t.test('when none starts any more it ends, with a code', async (t) => {
  const program = path.join(t.testdir({ 'ends.js': '' }), 'ends.js');
  await t.rejects(runs(t, program, 100), {
    code: 'ERR_MULTIFD_WORKER',
    message: /^5 runs, one after the other, did not begin; the last: .*exited with code 0/,
  });
});
