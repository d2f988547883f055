/** resumeVm() of what libvirt has saved, into a QEMU that is played: whether the domain goes on. */
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import { receiveMigration, resumeVm, type Address, type ResumeVmOptions } from '../../src/index.js';
import { RAW, STREAM, UUID, imageOf, pack, readImage } from '../libvirt/images.js';
import { within } from '../support/within.js';
import { answer, fakeQmp } from './fake-qmp.js';
import { FakeVm } from './fake-vm.js';

const WAIT_MS = 30_000;

interface Saved {
  wasRunning: boolean;
  format: 'raw' | 'sparse';
}

/** @returns the guest's state in the end, and what QEMU was told */
async function resumed(
  t: Test,
  { wasRunning, format }: Saved,
  options: Partial<ResumeVmOptions> = {},
): Promise<{ status: string; told: string[] }> {
  const folder = t.testdir({});
  const image = Buffer.from(format === 'raw' ? RAW : readImage('sparse'));
  image.writeUInt32LE(wasRunning ? 1 : 0, 24);
  const file = path.join(folder, 'vm.save');
  fs.writeFileSync(file, image);
  let receiving: Promise<unknown> = Promise.resolve();
  const to = await new Promise<Address>((resolve) => {
    const out = path.join(folder, 'vm.mig');
    receiving = receiveMigration({ address: { port: 0 }, out, onListening: resolve });
  });
  const vm = new FakeVm();
  vm.guest = 'inmigrate';
  const fake = await fakeQmp(t, (command) => {
    const said = vm.say(command);
    if (command.execute === 'migrate-incoming') {
      // As QEMU ends: its own section in the stream says that libvirt has paused it.
      vm.migration = { status: 'completed' };
      vm.guest = 'paused';
    }
    return said;
  });
  const call = resumeVm({ file, to, qmp: { path: fake.path }, ...options });
  const [{ status }] = await within(Promise.all([call, receiving]), WAIT_MS, 'resumeVm()');
  return { status, told: fake.commands.map(({ execute }) => execute) };
}

for (const format of ['raw', 'sparse'] as const) {
  t.test(`${format}: one that ran runs, one that was paused does not, and option run decides`, async (t) => {
    t.equal((await resumed(t, { wasRunning: true, format })).status, 'running');
    const paused = await resumed(t, { wasRunning: false, format });
    t.equal(paused.status, 'paused');
    t.notOk(paused.told.includes('cont'));
    t.equal((await resumed(t, { wasRunning: false, format }, { run: true })).status, 'running');
    const held = await resumed(t, { wasRunning: true, format }, { run: false });
    t.equal(held.status, 'paused');
    t.ok(held.told.includes('stop'));
  });
}

const saved = t.testdir({});
const NEEDS = `-machine pc-i440fx-9.2 -m 16M -uuid ${UUID} -incoming defer`;

for (const format of ['raw', 'gzip', 'sparse'] as const) {
  const file = path.join(saved, `${format}.save`);
  const image = format === 'sparse' ? readImage('sparse') : imageOf(format, pack(format, STREAM) as Buffer);
  fs.writeFileSync(file, image);

  t.test(`${format}: a QEMU of another machine and memory is told so, and nothing is sent`, async (t) => {
    const vm = new FakeVm();
    vm.guest = 'inmigrate';
    const fake = await fakeQmp(t, (command) => {
      if (command.execute === 'qom-get') return answer(command, 'pc-q35-9.2-machine');
      if (command.execute === 'query-memdev') return answer(command, [{ id: 'pc.ram', size: 2 ** 23 }]);
      return vm.say(command);
    });
    await t.rejects(within(resumeVm({ file, qmp: { path: fake.path } }), WAIT_MS, 'resumeVm()'), {
      code: 'ERR_MULTIFD_QMP',
      message: new RegExp(
        `machine type: received pc-q35-9.2, .*RAM block pc.ram: received 8388608, expected 16777216, .*start QEMU with ${NEEDS}$`,
      ),
    });
    t.notOk(fake.commands.some(({ execute }) => /^migrate-/.test(execute)));
  });

  t.test(`${format}: of one that refuses later it is told what the file is of`, async (t) => {
    const vm = new FakeVm();
    vm.guest = 'inmigrate';
    const fake = await fakeQmp(t, vm.say);
    const server = net.createServer((socket) => socket.destroy());
    t.teardown(() => server.close());
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const to = { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port };
    await t.rejects(within(resumeVm({ file, to, qmp: { path: fake.path } }), WAIT_MS, 'resumeVm()'), {
      message: new RegExp(`the file is of a QEMU with ${NEEDS}.*, and RAM blocks pc.ram of 16777216 bytes`),
    });
  });
}
