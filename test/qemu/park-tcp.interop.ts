/** `multifd park` and `multifd resume` with a QEMU that is reached over TCP alone, as one on another host is: monitor and migration. */
import net from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { Run } from '../cli/cli.js';
import { ended, settingsOf, startVm, type Vm } from './park-command.js';
import { requirePrograms, type Program } from './programs.js';
import { workFolder, type QemuOptions } from './qemu.js';
import { HOST, makeFolders } from './tls.js';

const { qemu, qemu72 } = requirePrograms();

async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Its monitor listens on TCP. */
async function startTcp(t: Test, program: Program, folder: string, options: QemuOptions): Promise<Vm> {
  const port = await freePort();
  const extra = [...(options.extra ?? []), '-qmp', `tcp:127.0.0.1:${port},server=on,wait=off`];
  const vm = await startVm(t, program, folder, { ...options, extra });
  return { ...vm, qmp: `tcp:127.0.0.1:${port}` };
}

for (const program of [qemu, qemu72]) {
  for (const kind of ['plain', 'x509', 'psk'] as const) {
    t.test(`QEMU ${program.version}, ${kind}: parked and resumed over TCP`, async (t) => {
      const folder = workFolder(t);
      const dir = kind === 'plain' ? '' : (await makeFolders(folder))[kind];
      const object = (endpoint: string): string[] =>
        kind === 'plain' ? [] : ['-object', `tls-creds-${kind},id=tls0,endpoint=${endpoint},dir=${dir}`];
      const tls = kind === 'plain' ? [] : ['--tls-creds', dir, '--qemu-tls-creds', 'tls0'];
      const source = await startTcp(t, program, folder, { extra: object('client') });
      const settings = await settingsOf(source);
      const out = path.join(folder, 'vm.mig');
      // All of our addresses: QEMU is told the one by which its monitor was reached.
      const where = ['--qmp', source.qmp, '--listen', 'tcp:0.0.0.0:0', '--out', out];
      const named = kind === 'x509' ? ['--qemu-tls-hostname', HOST] : [];
      const parked = new Run(t, ['park', ...where, '--json', '--compression', 'zlib', ...tls, ...named]);
      const { code, stderr } = await ended(parked, 'park');
      t.equal(code, 0, stderr);
      t.equal(await settingsOf(source), settings, 'its settings are as they were');
      const ram = await source.qemu.ram();

      const machine = parked.result?.machine as string;
      const destination = await startTcp(t, program, folder, {
        machine,
        incoming: true,
        extra: object('server'),
      });
      const resumed = new Run(t, [
        ...['resume', out, '--qmp', destination.qmp, '--to', 'tcp:127.0.0.1:0', '--json', ...tls],
        ...(kind === 'x509' ? ['--tls-hostname', HOST] : []),
      ]);
      const end = await ended(resumed, 'resume');
      t.equal(end.code, 0, end.stderr);
      t.same(differingPages(await destination.qemu.ram(), ram), [], 'all guest RAM is equal');
    });
  }
}
