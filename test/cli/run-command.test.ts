/** The exit code of a command that a signal came to. */
import t from 'tap';
import { runCommand } from '../../src/cli/commands/run-command.js';

t.test('a signal behind the decision does not turn success into failure', async (t) => {
  const before = process.exitCode;
  t.teardown(() => (process.exitCode = before));
  let aborted = false;
  await runCommand(false, (cancelled) => {
    process.emit('SIGINT');
    aborted = cancelled.aborted;
    return Promise.resolve(0);
  });
  t.ok(aborted, 'the command was told');
  t.equal(process.exitCode, 0);
});
