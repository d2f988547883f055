/** A monitor that is lost in the middle of resumeVm(), with a QEMU that is played: a guest that is loaded is not started twice. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  MultifdError,
  parkVm,
  readMappedRam,
  resumeVm,
  type ResumeVmOptions,
  type ResumedVm,
} from '../../src/index.js';
import { readBytes } from '../migration/captures.js';
import { HandDestination, SHUT_0, SHUT_1 } from '../migration/peers.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { fakeQmp, type Command, type FakeQmp } from './fake-qmp.js';
import { FakeVm } from './fake-vm.js';

const WAIT_MS = 20_000;
/** In the time for which a monitor is looked for, with a pause before each time. */
const MOST_LOSSES = 50;

interface Scene {
  vm: FakeVm;
  fake: FakeQmp;
  destination: HandDestination;
  resumed: Promise<ResumedVm | MultifdError>;
  sent: () => Promise<void>;
}

/** @param on called with each command before it is answered */
async function scene(
  t: Test,
  run?: boolean,
  on: (command: Command, vm: FakeVm) => void = () => {},
  signal?: AbortSignal,
): Promise<Scene> {
  const file = path.join(t.testdir({}), 'vm.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  const { tailBytes = 0 } = await readMappedRam(file);
  const vm = new FakeVm();
  vm.guest = 'inmigrate';
  const fake = await fakeQmp(t, (command) => {
    on(command, vm);
    return vm.say(command);
  });
  const destination = await HandDestination.listen(t);
  const resumed = resumeVm({
    file,
    qmp: { path: fake.path },
    to: destination.address,
    ...(run !== undefined && { run }),
    ...(signal && { signal }),
  }).catch((error: unknown) => {
    if (error instanceof MultifdError) return error;
    throw error;
  });
  const late = within(resumed, WAIT_MS, 'resumeVm()');
  return { vm, fake, destination, resumed: late, sent: () => destination.has(tailBytes) };
}

function load({ vm, destination }: Scene): void {
  vm.migration = { status: 'completed' };
  vm.guest = 'paused';
  destination.main.write(SHUT_0);
}

const OWN = { 'multifd-channels': 7, 'multifd-compression': 'zlib' };

t.test('a monitor that is lost while it is sent, and found again: all is as asked for', async (t) => {
  const it = await scene(t, true);
  await it.sent();
  it.fake.cut();
  load(it);
  t.match(await it.resumed, { status: 'running', problem: undefined });
  t.match(it.vm.parameters, OWN);
});

t.test('a monitor that is lost at cont, and found again: it is said again', async (t) => {
  let cuts = 0;
  const it = await scene(t, true, ({ execute }) => {
    if (execute === 'cont' && cuts++ === 0) it.fake.cut();
  });
  await it.sent();
  load(it);
  t.match(await it.resumed, { status: 'running' });
  t.equal(cuts, 1);
});

t.test('another QEMU that answers in its place is not told to run', async (t) => {
  const it = await scene(t, true);
  await it.sent();
  load(it);
  it.vm.migration = {};
  it.vm.guest = 'paused';
  t.match(await it.resumed, { code: 'ERR_MULTIFD_QMP', message: /migration has gone/ });
  t.notOk(it.fake.commands.some(({ execute }) => execute === 'cont'));
});

t.test('a destination that refuses, its monitor lost: QEMU is not said to have ended', async (t) => {
  const it = await scene(t);
  await it.sent();
  it.fake.cut();
  it.vm.migration = { status: 'failed', 'error-desc': 'no such device' };
  it.destination.main.write(SHUT_1);
  t.match(await it.resumed, { message: /QEMU says: no such device/ });
});

/** Each waits as long as it takes to give the monitor up: at once, so that they wait once. */
const FOR_GOOD: Record<string, (t: Test) => Promise<void>> = {
  'the guest is there, and no second QEMU is to be started': async (t) => {
    const it = await scene(t, true);
    await it.sent();
    it.fake.end();
    load(it);
    const error = (await it.resumed) as MultifdError;
    t.match(error, { code: 'ERR_MULTIFD_QMP', message: /the guest is loaded, QEMU has accepted all of it/ });
    t.match(error.message, /its settings .* they were multifd false, .*multifd-channels 7/);
    t.notMatch(error.message, /start a new QEMU/);
  },
  'again and again, as its settings are put back': async (t) => {
    const it = await scene(t, true, ({ execute }, vm) => {
      if (vm.migration.status === 'completed' && execute === 'query-migrate-parameters') it.fake.cut();
    });
    await it.sent();
    load(it);
    t.match(await it.resumed, { code: 'ERR_MULTIFD_QMP', message: /the guest is loaded, QEMU has accepted/ });
    const times = it.fake.commands.filter(({ execute }) => execute === 'qmp_capabilities').length;
    t.ok(times > 1 && times < MOST_LOSSES, `${times} times`);
  },
};

t.test('a monitor that is lost for good', { jobs: 2 }, async (t) => {
  await Promise.all(Object.entries(FOR_GOOD).map(([name, act]) => t.test(name, { buffered: true }, act)));
});

t.test('an abort ends the search for a monitor: what is known of the guest is said', async (t) => {
  const controller = new AbortController();
  const it = await scene(t, true, () => {}, controller.signal);
  await it.sent();
  it.fake.end();
  load(it);
  setTimeout(() => controller.abort(new Error('enough')), 500);
  t.match(await it.resumed, {
    code: 'ERR_MULTIFD_ABORTED',
    cause: { message: 'enough' },
    message: /^aborted; the guest is loaded, QEMU has accepted all of it; .* they were multifd false/,
  });
});

t.test('--paused: a QEMU that cannot listen is left as it was', async (t) => {
  const it = await scene(t, false, ({ execute }, vm) => {
    if (execute === 'migrate-incoming') vm.refused['migrate-incoming'] = 'No space left';
  });
  t.match(await it.resumed, { code: 'ERR_MULTIFD_QMP', message: /refuses migrate-incoming: No space left/ });
  t.notOk(it.fake.commands.some(({ execute }) => execute === 'stop'));
});

t.test('a path that QEMU is told is a whole one: its folder is another', async (t) => {
  // A socket's path is short.
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  const listens = path.join(path.relative('.', folder), 'r');
  for (const mode of ['precopy', 'postcopy']) {
    const file = path.join(t.testdir({}), 'vm.mig');
    fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
    const vm = new FakeVm();
    vm.guest = 'inmigrate';
    vm.refused['migrate-incoming'] = 'enough';
    const fake = await fakeQmp(t, vm.say);
    const given = { file, qmp: { path: fake.path }, to: { path: listens } };
    await t.rejects(resumeVm({ mode, ...given } as ResumeVmOptions), { message: /enough/ });
    const told = fake.commands.find(({ execute }) => execute === 'migrate-incoming');
    t.equal(told?.arguments.uri, `unix:${path.resolve(listens)}`);
  }
  const vm = new FakeVm();
  vm.refused.migrate = 'enough';
  const fake = await fakeQmp(t, vm.say);
  const out = path.join(t.testdir({}), 'out.mig');
  const parked = parkVm({ qmp: { path: fake.path }, out, listen: `unix:${listens}` });
  await t.rejects(parked, { message: /enough/ });
  const told = fake.commands.find(({ execute }) => execute === 'migrate');
  t.equal(told?.arguments.uri, `unix:${path.resolve(listens)}`);
  const far = resumeVm({ file: 'x', qmp: { path: fake.path }, to: { path: 'c'.repeat(107) } });
  await t.rejects(far, { code: 'ERR_MULTIFD_OPTION', message: /^option to: given "a path of \d+ bytes"/ });
});

t.test('an abort while an answer is held back does not wait for it', async (t) => {
  const held = await fakeQmp(t, () => undefined);
  const file = path.join(t.testdir({}), 'vm.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  const controller = new AbortController();
  const resumed = resumeVm({ file, qmp: { path: held.path }, signal: controller.signal });
  resumed.catch(() => {});
  await eventually(() => held.commands.length > 1, 'it asks');
  controller.abort(new Error('enough'));
  // Its own limit for an answer is 20 s.
  await t.rejects(within(resumed, 10_000, 'an error'), {
    code: 'ERR_MULTIFD_ABORTED',
    cause: { message: 'enough' },
  });
});
