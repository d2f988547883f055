/** Option resumable and a stock QEMU, in either role: it cannot carry on, and both sides come to know. */
import path from 'node:path';
import t from 'tap';
import { createMigrationDestination, createMigrationSource, type MultifdError } from '../../src/index.js';
import { within } from '../support/within.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const WAIT_MS = 60_000;
const program = requirePrograms().qemu;
const folder = workFolder(t);

function failure(done: Promise<unknown>): Promise<MultifdError> {
  const failed = done.then(
    () => {
      throw new Error('it succeeded');
    },
    (error: unknown) => error as MultifdError,
  );
  return within(failed, WAIT_MS, 'done');
}

t.test('a QEMU as the destination does not answer: the source says why, and its guest runs on', async (t) => {
  const destination = await Qemu.start(t, program, folder, { incoming: true });
  await destination.setMultifd({ channels: 2, compression: 'none', returnPath: true });
  const to = `unix:${path.join(folder, 'to-qemu.sock')}` as const;
  await destination.execute('migrate-incoming', { uri: to });
  const calls: string[] = [];
  const source = await createMigrationSource({
    to,
    machine: 'pc-i440fx-10.0',
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(2 ** 20) }],
    dirty: () => [],
    resumable: true,
    connectTimeoutMs: 2000,
    pause: () => void calls.push('pause'),
    resume: () => void calls.push('resume'),
  });
  t.teardown(() => source.cancel());
  const error = await failure(source.done);
  t.match(error.message, /option resumable: only createMigrationDestination\(\{ resumable: true \}\)/);
  t.match(error.message, /no QEMU/);
  t.equal(source.state, 'failed');
  t.same(calls, []);
});

t.test('a QEMU as the source is refused by name, and its guest runs on', async (t) => {
  const source = await Qemu.start(t, program, folder);
  const listen = { path: path.join(folder, 'from-qemu.sock') };
  const destination = await createMigrationDestination({
    listen,
    machine: 'pc-i440fx-10.0',
    acceptBlocks: () => [],
    resumable: true,
    start: () => void t.fail('nothing is started'),
  });
  t.teardown(() => destination.cancel());
  await source.setMultifd({ channels: 2, compression: 'none', returnPath: true });
  await source.execute('migrate', { uri: `unix:${listen.path}` });
  const error = await failure(destination.done);
  t.match(error, { code: 'ERR_MULTIFD_STREAM', message: /a QEMU, or sendMigration\(\), cannot carry on/ });
  t.equal(destination.state, 'failed');
  let status = '';
  for (let i = 0; i < 100 && status !== 'failed'; i++) {
    ({ status } = (await source.execute('query-migrate')) as { status: string });
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  t.equal(status, 'failed');
  t.match(await source.execute('query-status'), { running: true });
});
