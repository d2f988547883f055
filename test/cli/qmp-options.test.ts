/** What park and resume tell of a failure. */
import t from 'tap';
import { CliError } from '../../src/cli/cli-error.js';
import { toldByQmp } from '../../src/cli/commands/qmp-options.js';
import { runMigration } from '../../src/cli/commands/run-migration.js';
import type { Output } from '../../src/cli/terminal/output.js';
import { MultifdError } from '../../src/errors.js';

t.test('a signal that comes too late does not hide where the guest is', async (t) => {
  const controller = new AbortController();
  const reason = new CliError('ERR_CLI_SIGNAL', 'cancelled by SIGINT', { exitCode: 130 });
  controller.abort(reason);
  const output = { failed: () => {} } as unknown as Output;
  const fail = async (message: string): Promise<never> => {
    const thrown = new MultifdError('ERR_MULTIFD_ABORTED', message, { cause: reason });
    throw toldByQmp(thrown, controller.signal);
  };
  const run = async (message: string): Promise<void> =>
    runMigration(
      output,
      controller.signal,
      () => fail(message),
      () => ({ record: {}, text: () => '' }),
    );
  await t.rejects(run('aborted; too late: the guest is whole in vm.mig'), {
    exitCode: 130,
    message: 'cancelled by SIGINT: aborted; too late: the guest is whole in vm.mig',
  });
  await t.rejects(run('aborted'), { exitCode: 130, message: 'cancelled by SIGINT' });
});

t.test("options are told by the command line's names", async (t) => {
  const error = new MultifdError('ERR_MULTIFD_OPTION', 'option qemuTls.creds: not given');
  t.match(toldByQmp(error, new AbortController().signal), {
    message: 'option --qemu-tls-creds: not given',
  });
});
