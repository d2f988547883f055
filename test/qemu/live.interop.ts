/** A stock QEMU as the destination of a VM that it does not know: it refuses the machine type, and the source's guest runs on. */
import path from 'node:path';
import t from 'tap';
import { createMigrationSource } from '../../src/index.js';
import { SLEEPER, failsAndRunsOn, makePc, sourceOf } from '../live/v86.js';
import { within } from '../support/within.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const WAIT_MS = 60_000;
const program = requirePrograms().qemu;
const folder = workFolder(t);

for (const machine of ['v86-1.0', 'pc-i440fx-2.1']) {
  t.test(
    `a machine type that it has not, ${machine}: refused, the source is told, and its guest runs on`,
    async (t) => {
      const destination = await Qemu.start(t, program, folder, { incoming: true });
      await destination.setMultifd({ channels: 2, compression: 'none', returnPath: true });
      const to = `unix:${path.join(folder, `${machine}.sock`)}` as const;
      await destination.execute('migrate-incoming', { uri: to });
      const calls: string[] = [];
      const source = await createMigrationSource({
        to,
        machine,
        blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(2 ** 20) }],
        dirty: () => [],
        pause: () => void calls.push('pause'),
        resume: () => void calls.push('resume'),
      });
      t.teardown(() => source.cancel());
      const error = await within(
        source.done.then(
          () => undefined,
          (thrown: unknown) => thrown,
        ),
        WAIT_MS,
        'the source',
      );
      t.match(error, { name: 'MultifdError', message: new RegExp(`what was sent: machine ${machine}`) });
      t.equal(source.state, 'failed');
      // It is refused before the guest is stopped, and if not, it was let run.
      t.ok(['', 'pause,resume'].includes(calls.join()));
    },
  );
}

t.test('a PC of v86: refused, the source is told, and its guest runs on', async (t) => {
  const destination = await Qemu.start(t, program, folder, { incoming: true });
  await destination.setMultifd({ channels: 2, compression: 'none', returnPath: true });
  const file = path.join(folder, 'pc.sock');
  await destination.execute('migrate-incoming', { uri: `unix:${file}` });
  const here = await makePc(t, SLEEPER);
  const source = await sourceOf(t, here, { path: file });
  t.match(await failsAndRunsOn(t, { here, source }), {
    name: 'MultifdError',
    message: /what was sent: machine v86-1\.0/,
  });
  t.equal(source.state, 'failed');
});
