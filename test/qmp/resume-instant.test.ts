/** resumeVm({ mode: 'postcopy' }) with a QEMU that is played: whether the guest runs, and what is said of that. */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  MultifdError,
  resumeVm,
  type InstantResumeOptions,
  type InstantlyResumedVm,
} from '../../src/index.js';
import { readBytes } from '../migration/captures.js';
import { PostcopyDestination } from '../postcopy/destination.js';
import { within } from '../support/within.js';
import { answer, fakeQmp } from './fake-qmp.js';
import { FakeVm } from './fake-vm.js';

const WAIT_MS = 20_000;
const NAME = Buffer.from('\x0bglobalstate\0\0\0\0\0\0\0\x01', 'latin1');

interface Scene {
  commands: string[];
  destination: PostcopyDestination;
  resumed: Promise<InstantlyResumedVm | MultifdError>;
  /** Times at which the guest was said to run. */
  ran: number[];
}

/** @param parked how it was when it was parked */
async function scene(
  t: Test,
  parked: 'running' | 'paused',
  options: Partial<InstantResumeOptions> = {},
  { isHeld = false, refused = {} } = {},
): Promise<Scene> {
  const file = path.join(t.testdir({}), 'vm.mig');
  const bytes = readBytes('q100-mappedram-multifd.mig');
  const at = bytes.lastIndexOf(NAME) + NAME.length;
  bytes.writeUInt32BE(parked.length + 1, at);
  bytes.fill(0, at + 4, at + 104).write(parked, at + 4);
  fs.writeFileSync(file, bytes);
  const vm = new FakeVm();
  vm.guest = 'inmigrate';
  vm.refused = refused;
  Object.assign(vm.capabilities, { 'postcopy-ram': false });
  const commands: string[] = [];
  const fake = await fakeQmp(t, (command) => {
    commands.push(command.execute);
    return vm.say(command);
  });
  const destination = await PostcopyDestination.listen(t);
  destination.onCommand = (command) => {
    // RUN: as QEMU does it, unless it has been told to stop, or was started so.
    if (command === 5) vm.guest = isHeld || commands.includes('stop') ? 'paused' : 'running';
  };
  const ran: number[] = [];
  const resumed = resumeVm({
    mode: 'postcopy',
    file,
    qmp: { path: fake.path },
    to: destination.address,
    onRunning: (afterMs) => void ran.push(afterMs),
    ...options,
  }).catch((error: unknown) => {
    if (error instanceof MultifdError) return error;
    throw error;
  });
  const look = setInterval(() => {
    if (!destination.isWhole) return;
    clearInterval(look);
    vm.migration = { status: 'completed' };
    destination.shut(0);
  }, 10);
  void resumed.finally(() => clearInterval(look));
  return { commands, destination, resumed: within(resumed, WAIT_MS, 'resumeVm()'), ran };
}

t.test('a guest that ran when it was parked runs, and that is said', async (t) => {
  const it = await scene(t, 'running');
  t.match(await it.resumed, { status: 'running', problem: undefined });
  t.equal(it.ran.length, 1);
  t.notOk(it.commands.includes('stop'));
});

t.test('one that was paused stays so: QEMU is told before it is told to run', async (t) => {
  const it = await scene(t, 'paused');
  t.match(await it.resumed, { status: 'paused' });
  t.same(it.ran, [], 'nobody says that it runs');
  t.ok(it.commands.indexOf('stop') > it.commands.indexOf('migrate-incoming'));
  t.notOk(it.commands.includes('cont'));
});

t.test('option run decides otherwise, either way', async (t) => {
  const runs = await scene(t, 'paused', { run: true });
  t.match(await runs.resumed, { status: 'running' });
  t.equal(runs.ran.length, 1);
  t.notOk(runs.commands.includes('stop'));
  const held = await scene(t, 'running', { run: false });
  t.match(await held.resumed, { status: 'paused' });
  t.same(held.ran, []);
});

t.test('a QEMU that was started with -S holds it, and it is not said to run', async (t) => {
  const it = await scene(t, 'running', {}, { isHeld: true });
  t.match(await it.resumed, { status: 'paused' });
  t.same(it.ran, []);
  t.notOk(it.commands.includes('stop'));
});

t.test('onRunning that throws is what the call ends with, while pages are missing', async (t) => {
  const it = await scene(t, 'running', {
    maxBandwidth: 4096,
    onRunning: () => {
      throw new Error('mine');
    },
  });
  const error = (await it.resumed) as MultifdError;
  t.match(error, { code: 'ERR_MULTIFD_POSTCOPY_PAUSED', cause: { code: 'ERR_MULTIFD_HOOK' } });
  t.match(error.message, /^onRunning\(\) failed: .*mine; .*--recover/);
});

t.test('a QEMU that cannot listen is not told to stop', async (t) => {
  const it = await scene(t, 'paused', {}, { refused: { 'migrate-incoming': 'No space left' } });
  const error = (await it.resumed) as MultifdError;
  t.match(error, { code: 'ERR_MULTIFD_QMP', message: /No space left/ });
  t.notMatch(error.message, /start a new QEMU/, 'it waits as before');
  t.notOk(it.commands.includes('stop'));
});

t.test(
  '--recover from the file of another parking is refused, where QEMU has the mark of its own',
  async (t) => {
    const file = path.join(t.testdir({}), 'vm.mig');
    fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
    const vm = new FakeVm();
    vm.migration = { status: 'postcopy-paused' };
    const commands: string[] = [];
    const objects = [{ name: 'multifd-file-0123' }, { name: 'pc.ram' }, { odd: 1 }, null];
    const fake = await fakeQmp(t, (command) => {
      commands.push(command.execute);
      return command.execute === 'qom-list' ? answer(command, objects) : vm.say(command);
    });
    const given = { mode: 'postcopy', file, qmp: { path: fake.path }, recover: true } as const;
    await t.rejects(resumeVm(given), {
      code: 'ERR_MULTIFD_OPTION',
      message: /^option file: .*another parking's/,
    });
    t.notOk(commands.includes('migrate-recover'));
    objects.splice(0, 1);
    // Nobody has left one: it is gone on with.
    vm.refused['migrate-recover'] = 'enough';
    await t.rejects(resumeVm(given), { message: /refuses migrate-recover: enough/ });
  },
);
