/** `multifd stress engine` as it is: faults strike and nothing is wrong; a broken engine is caught; Ctrl-C leaves nothing. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { run, Run, gone, tempRoot } from '../cli/cli.js';
import { EngineTotals, stressEngine } from '../../src/stress/engine.js';
import { strikes } from './strikes.js';

const never = new AbortController().signal;

t.test(
  'faults of the network, of a process and of its user strike, and both ends do as they should',
  async (t) => {
    await strikes(t, ['reset', 'kill', 'abort', 'reorder'], 1);
  },
);

t.test(
  'an engine that spoils a byte, and leaves a timer and a folder, is caught, with a command that repeats it and both logs',
  async (t) => {
    const program = fileURLToPath(new URL('../fixtures/stress-spoiling-process.js', import.meta.url));
    const totals = new EngineTotals();
    // The first run that has no file for a destination.
    const options = { seed: 1, firstRun: 5, count: 1, minutes: 10, only: 'no-fault' as const, program };
    await stressEngine(options, { run: () => {} }, totals, never);
    t.equal(totals.runs, 1);
    t.equal(totals.failed.length, 1);
    const [{ wrong, folder }] = totals.failed;
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    t.match(wrong, [
      /^ram0 differs: received SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}$/,
      /^the destination has left open: Timeout$/,
      /^a file is left: spoilt-/,
    ]);
    t.ok(folder.startsWith(path.join(os.tmpdir(), 'multifd-stress-seed-1-run-5-')));
    for (const name of ['plan.json', 'run.log', 'source.log', 'destination.log', 'sides.json'])
      t.ok(fs.statSync(path.join(folder, name)).size > 0, name);
  },
);

t.test('one run by the command: a table, nothing left; a result for machines', async (t) => {
  const { env, left } = tempRoot(t);
  const text = await run(t, ['stress', 'engine', '--seed', '1', '--run', '5', '--fault', 'no-fault'], {
    env,
  });
  t.equal(text.code, 0, text.stderr);
  t.match(text.stdout, /^runs +1$/m);
  t.match(text.stdout, /^equal +1: /m);
  t.match(text.stdout, /^none +1/m);
  t.equal(text.stderr, 'seed 1\n');
  t.same(left(), []);
  const json = await run(
    t,
    ['stress', 'engine', '--seed', '1', '--run', '5', '--fault', 'no-fault', '--json'],
    { env },
  );
  t.match(json.result, {
    ok: true,
    seed: 1,
    runs: 1,
    equal: 1,
    errors: 0,
    failed: [],
    faults: { none: { runs: 1 } },
  });
  t.match(json.lines[0], { type: 'start', seed: 1 });
});

t.test('Ctrl-C: exit code 130, the table so far, no process and no file', async (t) => {
  const { env, left } = tempRoot(t);
  const command = new Run(t, ['stress', 'engine', '--seed', '1', '--json'], { env });
  await command.line((line) => line.type === 'progress');
  const pid = command.child.pid as number;
  const children = childrenOf(pid);
  t.equal(children.length, 2);
  process.kill(pid, 'SIGINT');
  const { code, stderr } = await command.ended;
  t.equal(code, 130);
  t.match(stderr, 'cancelled by SIGINT');
  t.match(command.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' }, seed: 1, failed: [] });
  for (const pid of children) await gone(pid);
  t.same(left(), []);
});

t.test('what is no kind of fault is refused', async (t) => {
  const { code, stderr } = await run(t, ['stress', 'engine', '--fault', 'rest']);
  t.equal(code, 2);
  t.match(stderr, 'Did you mean reset?');
});

function childrenOf(pid: number): number[] {
  const text = fs.readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return text.trim().split(' ').map(Number);
}
