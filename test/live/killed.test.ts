/** A source that is killed, as a process: its destination ends with an error and starts nothing. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { createMigrationDestination } from '../../src/index.js';
import { within } from '../support/within.js';
import { MACHINE, SIZE, WAIT_MS, deferred, failure } from './scene.js';

const PROGRAM = fileURLToPath(new URL('../fixtures/live-source-process.js', import.meta.url));

for (const [when, rounds] of [
  ['in its rounds', 'endless'],
  ['when it has sent all, in load()', 'one'],
]) {
  t.test(`killed ${when}: nothing is started`, async (t) => {
    const reached = deferred();
    const dead = deferred();
    const notes: string[] = [];
    const destination = await createMigrationDestination({
      listen: { host: '127.0.0.1', port: 0 },
      machine: MACHINE,
      blocks: [{ name: 'ram', memory: new SharedArrayBuffer(SIZE) }],
      devices: [
        {
          idstr: 'cpu',
          load: async () => {
            notes.push('load');
            reached.resolve();
            await dead.promise;
          },
        },
      ],
      start: () => void notes.push('start'),
      onState: (state) => {
        if (state === 'active' && rounds === 'endless') setTimeout(reached.resolve, 100);
      },
    });
    t.teardown(() => destination.cancel());
    const { host, port } = destination.address as { host: string; port: number };
    const source = spawn(process.execPath, [PROGRAM, `tcp:${host}:${port}`, rounds], { stdio: 'ignore' });
    t.teardown(() => source.kill('SIGKILL'));
    const exit = new Promise((resolve) => source.once('exit', resolve));
    await within(reached.promise, WAIT_MS, when);
    source.kill('SIGKILL');
    await within(exit, WAIT_MS, 'the end of the source');
    dead.resolve();
    const error = await failure(destination.done);
    t.match(error.code, /^ERR_MULTIFD_(CONNECTION|EOF)$/);
    t.equal(destination.state, 'failed');
    t.same(notes, rounds === 'endless' ? [] : ['load']);
  });
}
