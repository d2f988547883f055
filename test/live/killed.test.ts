/** Ends that are killed, as processes: a source, whose destination starts nothing; a destination, whose source's guest runs on. */
import { fork, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  type Address,
  type MigrationSourceOptions,
} from '../../src/index.js';
import { within } from '../support/within.js';
import { MACHINE, SIZE, WAIT_MS, deferred, failure, runsOnHere } from './scene.js';
import { IN_LOAD, STEPS } from './steps.js';

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

const DESTINATION = fileURLToPath(new URL('../fixtures/live-destination-process.js', import.meta.url));

for (const [when, step] of Object.entries({ ...STEPS, 'in load()': IN_LOAD })) {
  t.test(`the destination is killed ${when}: the guest runs on`, async (t) => {
    const child: ChildProcess = fork(DESTINATION, step === IN_LOAD ? ['slow'] : []);
    t.teardown(() => child.kill('SIGKILL'));
    const notes: string[] = [];
    const [to] = (await within(once(child, 'message'), WAIT_MS, 'its address')) as [Address];
    const exit = once(child, 'exit');
    const kill = (): void => void child.kill('SIGKILL');
    child.on('message', (message: string) => {
      notes.push(message);
      if (message === 'load') kill();
    });
    const own = step(kill).source ?? {};
    const source = await createMigrationSource({
      to,
      machine: MACHINE,
      blocks: [{ name: 'ram', memory: new SharedArrayBuffer(SIZE) }],
      dirty: () => [],
      devices: [{ idstr: 'cpu', save: () => Buffer.from('state') }],
      ...own,
      pause: () => {
        notes.push('pause');
        return own.pause?.();
      },
      resume: () => void notes.push('resume'),
    } satisfies MigrationSourceOptions);
    t.teardown(() => source.cancel());
    const error = await failure(source.done);
    t.match(error.code, /^ERR_MULTIFD_(CONNECTION|EOF|STREAM)$/);
    t.equal(source.state, 'failed');
    await within(exit, WAIT_MS, 'the end of the destination');
    runsOnHere(t, { notes });
    t.equal(notes.includes('load'), step === IN_LOAD);
  });
}
