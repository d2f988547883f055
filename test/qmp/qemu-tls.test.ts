/** QEMU's side of TLS, with one that is played: tls-creds of its operator's are never switched off without a word. */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { parkVm, resumeVm, type Address, type ParkVmOptions } from '../../src/index.js';
import { qemuTlsParameters, type TlsAsked } from '../../src/qmp/qemu-tls.js';
import { Qmp } from '../../src/qmp/qmp.js';
import { MigrationSettings } from '../../src/qmp/settings.js';
import { readBytes } from '../migration/captures.js';
import { temporaryDirectory } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { answer, fakeQmp, refusal, type FakeQmp, type Script } from './fake-qmp.js';
import { FakeVm } from './fake-vm.js';

const WAIT_MS = 20_000;
const TCP = { host: '127.0.0.1', port: 0 };
const REFUSED = {
  code: 'ERR_MULTIFD_TLS',
  message: /QEMU has tls-creds "p".* plain text.*--qemu-tls-creds.*migrate_set_parameter tls-creds ""/,
};

/** Its operator has given it credentials. */
function secureVm(guest = 'running'): FakeVm {
  const vm = new FakeVm();
  vm.guest = guest;
  vm.parameters['tls-creds'] = 'p';
  vm.capabilities['postcopy-ram'] = false;
  return vm;
}

function parkedFile(t: Test): string {
  const file = path.join(temporaryDirectory(t), 'vm.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  return file;
}

const isTold = ({ commands }: FakeQmp): boolean =>
  commands.some(({ execute }) => /set-|^migrate|^object-add|^stop/.test(execute));

t.test('without option tls a QEMU with tls-creds is not parked, but through a private socket', async (t) => {
  const vm = secureVm();
  const fake = await fakeQmp(t, vm.say);
  const folder = temporaryDirectory(t);
  const park = async (options: Partial<ParkVmOptions>): Promise<unknown> =>
    within(parkVm({ qmp: { path: fake.path }, out: `${folder}/vm.mig`, ...options }), WAIT_MS, 'parkVm()');
  for (const listen of [TCP, { path: `${folder}/own.sock` }]) await t.rejects(park({ listen }), REFUSED);
  t.notOk(isTold(fake), 'nothing was set');
  t.equal(vm.parameters['tls-creds'], 'p');
  t.same(fs.readdirSync(folder), []);

  let during: unknown;
  vm.onMigrate = () => {
    during = vm.parameters['tls-creds'];
    vm.migration = { status: 'failed', 'error-desc': 'enough' };
  };
  await t.rejects(park({}), { code: 'ERR_MULTIFD_QMP', message: /failed: enough/ });
  t.equal(during, '');
  t.equal(vm.parameters['tls-creds'], 'p', 'they are put back');
});

for (const mode of ['precopy', 'postcopy'] as const) {
  t.test(`nor is a file resumed in such a one, ${mode}`, async (t) => {
    const vm = secureVm('inmigrate');
    const fake = await fakeQmp(t, vm.say);
    const file = parkedFile(t);
    const resume = async (to?: Address): Promise<unknown> => {
      const options = { file, qmp: { path: fake.path }, ...(to && { to }) };
      const resumed: Promise<unknown> =
        mode === 'precopy' ? resumeVm(options) : resumeVm({ ...options, mode });
      return within(resumed, WAIT_MS, 'resumeVm()');
    };
    for (const to of [TCP, { path: `${path.dirname(file)}/own.sock` }]) await t.rejects(resume(to), REFUSED);
    t.notOk(isTold(fake), 'nothing was set');

    vm.refused['migrate-incoming'] = 'enough';
    await t.rejects(resume(), { message: /refuses migrate-incoming: enough/ });
    const set = fake.commands.find(({ execute }) => execute === 'migrate-set-parameters');
    t.equal(set?.arguments['tls-creds'], '');
    t.equal(vm.parameters['tls-creds'], 'p', 'they are put back');
  });
}

t.test('what was off for a private socket is told, and stays off nowhere else', async (t) => {
  const vm = secureVm();
  const { path } = await fakeQmp(t, vm.say);
  const qmp = await Qmp.connect({ path });
  t.teardown(() => qmp.close());
  const settings = await MigrationSettings.remember(qmp);
  t.same(settings.switchedOff(['multifd']), ['xbzrle', 'x-of-the-future']);
  await settings.set(['multifd'], { 'tls-creds': '' });
  t.same(settings.switchedOff(['multifd']), ['xbzrle', 'x-of-the-future', 'tls-creds']);
  t.equal(vm.capabilities['tls-creds'], undefined, 'they are no capability');
  t.match(settings.describe(['multifd']), /tls-creds "p"/);
  await settings.putBack();
  t.equal(vm.parameters['tls-creds'], 'p');
  await settings.set(['multifd'], { 'tls-creds': 'q' });
  t.notOk(settings.switchedOff(['multifd']).includes('tls-creds'), 'another one is none the less TLS');
});

t.test(
  '--recover without option tls goes on through a private socket alone, where TLS was off',
  async (t) => {
    const file = parkedFile(t);
    const objects = [{ name: 'multifd-tls-off' }];
    const vm = new FakeVm();
    vm.migration = { status: 'postcopy-paused' };
    vm.refused['migrate-recover'] = 'enough';
    const fake = await fakeQmp(t, (command) =>
      command.execute === 'qom-list' ? answer(command, objects) : vm.say(command),
    );
    const recover = async (to?: Address): Promise<unknown> =>
      resumeVm({ mode: 'postcopy', file, qmp: { path: fake.path }, recover: true, ...(to && { to }) });
    await t.rejects(recover(TCP), {
      code: 'ERR_MULTIFD_TLS',
      message: /switched off for a private socket.*give no address \(to, --to\)/,
    });
    await t.rejects(recover(), { message: /refuses migrate-recover: enough/ });
    objects.pop();
    await t.rejects(recover(TCP), { message: /refuses migrate-recover: enough/ });
    // Begun with TLS, and gone on with as if it were not.
    vm.parameters['tls-creds'] = 'p';
    for (const to of [TCP, undefined]) await t.rejects(recover(to), REFUSED);
  },
);

t.test('objects of the other endpoint are not offered, nor taken', async (t) => {
  const endpoints: Record<string, unknown> = { zc: 'client', sv: 'server', ac: 'client', odd: 7 };
  const say: Script = (command) => {
    if (command.execute === 'qom-list') {
      const names = [...Object.keys(endpoints), 'silent'];
      const rows = names.map((name) => ({ name, type: 'child<tls-creds-psk>' }));
      return answer(command, [...rows, { name: 'x', type: 'child<secret>' }]);
    }
    const endpoint = endpoints[(command.arguments.path as string).slice('/objects/'.length)];
    return endpoint === undefined ? refusal(command, 'no such property') : answer(command, endpoint);
  };
  const { path } = await fakeQmp(t, say);
  const qmp = await Qmp.connect({ path });
  t.teardown(() => qmp.close());
  const asked: TlsAsked = { qemuTls: undefined, ours: true, endpoint: 'client', present: 'p', address: TCP };
  const code = 'ERR_MULTIFD_OPTION';
  await t.rejects(qemuTlsParameters(qmp, asked), {
    code,
    message: /^option qemuTls\.creds: not given, .*endpoint=client: it has ac, odd, silent, zc$/,
  });
  await t.rejects(qemuTlsParameters(qmp, { ...asked, qemuTls: { creds: 'sv' } }), {
    code,
    message: /given "sv", allowed .*endpoint=client: it has ac, odd, silent, zc$/,
  });
  const server: TlsAsked = { ...asked, endpoint: 'server' };
  await t.rejects(qemuTlsParameters(qmp, server), { message: /endpoint=server: it has odd, silent, sv$/ });
  t.same(await qemuTlsParameters(qmp, { ...asked, qemuTls: { creds: 'zc', hostname: 'h' } }), {
    'tls-creds': 'zc',
    'tls-hostname': 'h',
  });
});
