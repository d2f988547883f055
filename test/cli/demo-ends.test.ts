/** Every way in which a run can end early: nobody hangs, no process is orphaned, no temporary file is left. */
import { execFileSync } from 'node:child_process';
import t, { type Test } from 'tap';
import { setTimeout as sleep } from 'node:timers/promises';
import { Run, gone, run, tempRoot, type RunOptions } from './cli.js';

// Most of the time goes into starting processes and waiting for them.
t.jobs = 3;

/** Would take a quarter of a minute. */
const SLOW = ['demo', '--json', '--size', '64M', '--backing', 'file', '--max-bandwidth', '3M'];

async function startSlow(t: Test, more: string[] = [], options: RunOptions = {}) {
  const temp = tempRoot(t);
  const started = new Run(t, [...SLOW, ...more], { ...options, env: { ...temp.env, ...options.env } });
  const { destinationPid } = await started.running();
  t.equal(temp.left().length, 1, 'its temporary directory');
  return { started, temp, destinationPid };
}

for (const [signal, exitCode] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const) {
  t.test(`${signal} in the middle cancels cleanly`, async (t) => {
    const { started, temp, destinationPid } = await startSlow(t);
    started.child.kill(signal);
    const { code, stderr } = await started.ended;
    t.equal(code, exitCode);
    t.equal(stderr, `multifd: ERR_CLI_SIGNAL: cancelled by ${signal}\n`);
    t.equal(started.lines.at(-1), started.result);
    t.match(started.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
    await gone(destinationPid);
    t.strictSame(temp.left(), []);
  });
}

t.test('Ctrl-C on a terminal reaches both processes at once', async (t) => {
  const { started, temp, destinationPid } = await startSlow(t, [], { detached: true });
  process.kill(-(started.child.pid as number), 'SIGINT');
  const { code, stderr } = await started.ended;
  t.equal(code, 130);
  t.equal(stderr, 'multifd: ERR_CLI_SIGNAL: cancelled by SIGINT\n');
  await gone(destinationPid);
  t.strictSame(temp.left(), []);
});

t.test('the destination leaves Ctrl-C to the source', async (t) => {
  const started = new Run(t, ['demo', '--json', '--size', '8M', '--max-bandwidth', '6M']);
  const start = await started.line((line) => line.type === 'start');
  process.kill(start.destinationPid as number, 'SIGINT');
  const { code, stderr } = await started.ended;
  t.equal(code, 0, stderr);
  t.match(started.result, { ok: true });
});

t.test('Ctrl-C under npm comes twice, and is one', async (t) => {
  const { started, temp, destinationPid } = await startSlow(t);
  started.child.kill('SIGINT');
  started.child.kill('SIGINT');
  await sleep(5);
  started.child.kill('SIGINT');
  const { code } = await started.ended;
  t.equal(code, 130);
  t.match(started.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } }, 'in good order');
  await gone(destinationPid);
  t.strictSame(temp.left(), []);
});

t.test('SIGINT while the guest is being made', async (t) => {
  const temp = tempRoot(t);
  const started = new Run(t, ['demo', '--size', '4G', '--backing', 'file'], temp);
  while (temp.left().length === 0) await sleep(5);
  started.child.kill('SIGINT');
  t.equal((await started.ended).code, 130);
  t.strictSame(temp.left(), []);
});

t.test('a destination that does not answer is killed', async (t) => {
  const { started, temp, destinationPid } = await startSlow(t);
  process.kill(destinationPid, 'SIGSTOP');
  started.child.kill('SIGINT');
  t.equal((await started.ended).code, 130);
  t.match(started.result, { ok: false });
  await gone(destinationPid);
  t.strictSame(temp.left(), []);
});

t.test('a second SIGINT exits at once, and leaves nothing behind either', async (t) => {
  const { started, temp, destinationPid } = await startSlow(t);
  // So that the clean end is not over before the second one comes.
  process.kill(destinationPid, 'SIGSTOP');
  started.child.kill('SIGINT');
  await sleep(650);
  started.child.kill('SIGINT');
  t.equal((await started.ended).code, 130);
  t.equal(started.result, undefined, 'not the orderly end');
  await gone(destinationPid);
  t.strictSame(temp.left(), []);
});

t.test('the destination is killed: the source says so and fails', async (t) => {
  const { started, temp, destinationPid } = await startSlow(t);
  process.kill(destinationPid, 'SIGKILL');
  const { code, stderr } = await started.ended;
  t.equal(code, 1);
  const message = 'the destination process was killed by SIGKILL before it was done';
  t.equal(stderr, `multifd: ERR_CLI_DESTINATION: ${message}\n`);
  t.strictSame(started.result, {
    type: 'result',
    ok: false,
    error: { code: 'ERR_CLI_DESTINATION', message },
  });
  t.strictSame(temp.left(), []);
});

t.test('the source is killed: the destination notices, cleans up, and exits', async (t) => {
  const { started, temp, destinationPid } = await startSlow(t);
  started.child.kill('SIGKILL');
  t.equal((await started.ended).signal, 'SIGKILL');
  await gone(destinationPid);
  t.strictSame(temp.left(), []);
});

t.test('what the destination fails of is told by the source, with the code of the engine', async (t) => {
  const temp = tempRoot(t);
  const args = ['demo', '--json', '--size', '8M', '--backing', 'file'];
  const started = new Run(t, [...args, '--max-bandwidth', '6M'], temp);
  const start = await started.line((line) => line.type === 'start');
  // Its file may not grow any more, nor be written behind its first page.
  execFileSync('prlimit', ['--pid', String(start.destinationPid), '--fsize=4096']);
  const { code, stderr } = await started.ended;
  t.equal(code, 1);
  t.match(stderr, /^multifd: ERR_MULTIFD_IO: destination: .*pc\.ram.*EFBIG.*\n$/);
  t.match(started.result, { ok: false, error: { code: 'ERR_MULTIFD_IO' } });
  await gone(start.destinationPid as number);
  t.strictSame(temp.left(), []);
});

t.test('stdout that is closed early ends the run, without a stack trace', async (t) => {
  for (const args of [SLOW, ['demo', '--size', '1M']]) {
    const temp = tempRoot(t);
    const started = new Run(t, args, temp);
    if (args === SLOW) await started.running();
    started.child.stdout?.destroy();
    const { code, stderr } = await started.ended;
    t.equal(code, 1);
    t.match(
      stderr,
      /^multifd: ERR_CLI_STDOUT: (it is done, but )?stdout was closed before everything was written: .*EPIPE\n$/,
    );
    t.strictSame(temp.left(), []);
  }
});

t.test('--verbose and DEBUG add the stack to an error', async (t) => {
  const tooLarge = ['demo', '--size', '4096T'];
  for (const [more, env] of [
    [['--verbose'], {}],
    [[], { DEBUG: '1' }],
  ] as const) {
    const { code, stderr } = await run(t, [...tooLarge, ...more], { env });
    t.equal(code, 1);
    t.match(stderr, /^multifd: ERR_CLI_ROOM: .*\nCliError: .*\n {4}at /);
  }
  const { stderr } = await run(t, tooLarge, { env: { DEBUG: undefined } });
  t.match(stderr, /^multifd: ERR_CLI_ROOM: .*\n$/);
});
