/** `multifd park` and `multifd resume` over TLS: QEMU's credentials are its own objects, named by their ids. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { Run } from '../cli/cli.js';
import { ended, settingsOf, startVm, type Vm } from './park-command.js';
import { requirePrograms } from './programs.js';
import { workFolder } from './qemu.js';
import { HOST, makeFolders } from './tls.js';

const { qemu, qemu72 } = requirePrograms();

for (const kind of ['x509', 'psk'] as const) {
  t.test(`parked and resumed over TLS, ${kind}`, async (t) => {
    const folder = workFolder(t);
    const dir = (await makeFolders(folder))[kind];
    const object = (endpoint: string): string[] => [
      '-object',
      `tls-creds-${kind},id=tls0,endpoint=${endpoint},dir=${dir}`,
    ];
    const unfit = ['-object', `tls-creds-${kind},id=a0,endpoint=server,dir=${dir}`];
    const source = await startVm(t, qemu, folder, { extra: [...object('client'), ...unfit] });
    const settings = await settingsOf(source);
    const out = path.join(folder, 'vm.mig');
    const parkArgs = ['park', '--qmp', source.qmp, '--out', out, '--json', '--tls-creds', dir];

    const unnamed = new Run(t, parkArgs);
    t.equal((await ended(unnamed, 'park')).code, 1);
    t.match(
      unnamed.result?.error?.message,
      /option --qemu-tls-creds: not given, .*endpoint=client: it has tls0/,
    );
    t.notOk(fs.existsSync(out));

    const hostname = kind === 'x509' ? ['--qemu-tls-hostname', HOST] : [];
    const parked = new Run(t, [...parkArgs, '--qemu-tls-creds', 'tls0', ...hostname]);
    const { code, stderr } = await ended(parked, 'park');
    t.equal(code, 0, stderr);
    t.equal(await settingsOf(source), settings, 'its settings are as they were');
    const ram = await source.qemu.ram();

    const machine = parked.result?.machine as string;
    const destination = await startVm(t, qemu, folder, {
      machine,
      incoming: true,
      extra: object('server'),
    });
    const resumed = new Run(t, [
      ...['resume', out, '--qmp', destination.qmp, '--json', '--tls-creds', dir, '--qemu-tls-creds', 'tls0'],
      ...(kind === 'x509' ? ['--tls-hostname', HOST] : []),
    ]);
    const end = await ended(resumed, 'resume');
    t.equal(end.code, 0, end.stderr);
    t.same(differingPages(await destination.qemu.ram(), ram), [], 'all guest RAM is equal');
  });
}

for (const program of [qemu, qemu72]) {
  t.test(
    `QEMU ${program.version} has tls-creds, and no credentials are given: never through TCP`,
    async (t) => {
      const folder = workFolder(t);
      const dir = (await makeFolders(folder)).psk;
      const start = async (endpoint: 'client' | 'server', machine?: string): Promise<Vm> => {
        const vm = await startVm(t, program, folder, {
          extra: ['-object', `tls-creds-psk,id=tls0,endpoint=${endpoint},dir=${dir}`],
          ...(machine !== undefined && { incoming: true, machine }),
        });
        await vm.qemu.setParameters({ 'tls-creds': 'tls0' });
        return vm;
      };
      const refused = async (vm: Vm, args: string[]): Promise<void> => {
        const settings = await settingsOf(vm);
        const run = new Run(t, [...args, '--qmp', vm.qmp, '--json']);
        t.equal((await ended(run, args[0])).code, 1);
        t.match(run.result?.error, { code: 'ERR_MULTIFD_TLS', message: /QEMU has tls-creds "tls0"/ });
        t.equal(await settingsOf(vm), settings);
      };
      const told = async (vm: Vm, args: string[]): Promise<Run> => {
        const settings = await settingsOf(vm);
        const run = new Run(t, [...args, '--qmp', vm.qmp, '--json']);
        const { code, stderr } = await ended(run, args[0]);
        t.equal(code, 0, stderr);
        t.same(run.result?.switchedOff, ['tls-creds']);
        t.equal(await settingsOf(vm), settings, 'its settings are as they were');
        return run;
      };
      const source = await start('client');
      const out = path.join(folder, 'vm.mig');
      await refused(source, ['park', '--out', out, '--listen', 'tcp:127.0.0.1:0']);
      t.equal(await source.qemu.status(), 'running');
      const parked = await told(source, ['park', '--out', out]);
      const ram = await source.qemu.ram();
      for (const mode of [[], ['--instant']]) {
        const destination = await start('server', parked.result?.machine as string);
        await refused(destination, ['resume', out, '--to', 'tcp:127.0.0.1:0', ...mode]);
        await told(destination, ['resume', out, ...mode]);
        t.same(differingPages(await destination.qemu.ram(), ram), [], 'all guest RAM is equal');
        await destination.qemu.kill();
      }
    },
  );
}
