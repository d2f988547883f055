/** `multifd park` and `multifd resume` over TLS: QEMU's credentials are its own objects, named by their ids. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { Run } from '../cli/cli.js';
import { ended, settingsOf, startVm } from './park-command.js';
import { requirePrograms } from './programs.js';
import { workFolder } from './qemu.js';
import { HOST, makeFolders } from './tls.js';

const { qemu: program } = requirePrograms();

for (const kind of ['x509', 'psk'] as const) {
  t.test(`parked and resumed over TLS, ${kind}`, async (t) => {
    const folder = workFolder(t);
    const dir = (await makeFolders(folder))[kind];
    const object = (endpoint: string): string[] => [
      '-object',
      `tls-creds-${kind},id=tls0,endpoint=${endpoint},dir=${dir}`,
    ];
    const source = await startVm(t, program, folder, { extra: object('client') });
    const settings = await settingsOf(source);
    const out = path.join(folder, 'vm.mig');
    const parkArgs = ['park', '--qmp', source.qmp, '--out', out, '--json', '--tls-creds', dir];

    const unnamed = new Run(t, parkArgs);
    t.equal((await ended(unnamed, 'park')).code, 1);
    t.match(
      unnamed.result?.error?.message,
      /option --qemu-tls-creds: .*QEMU's tls-creds object: it has tls0/,
    );
    t.notOk(fs.existsSync(out));

    const hostname = kind === 'x509' ? ['--qemu-tls-hostname', HOST] : [];
    const parked = new Run(t, [...parkArgs, '--qemu-tls-creds', 'tls0', ...hostname]);
    const { code, stderr } = await ended(parked, 'park');
    t.equal(code, 0, stderr);
    t.equal(await settingsOf(source), settings, 'its settings are as they were');
    const ram = await source.qemu.ram();

    const machine = parked.result?.machine as string;
    const destination = await startVm(t, program, folder, {
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
