/** Packed files and a real QEMU: parked packed, read by QEMU itself when zstd has unpacked it, resumed both ways as it is. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { parkVm, type AddressText } from '../../src/index.js';
import { Run } from '../cli/cli.js';
import { ended, startVm } from './park-command.js';
import { requirePrograms } from './programs.js';
import { workFolder } from './qemu.js';

const programs = requirePrograms();
const folder = workFolder(t);
const file = path.join(folder, 'vm.mig.zst');
const source = await startVm(t, programs.qemu, folder);
const parked = await parkVm({ qmp: source.qmp as AddressText, out: file, compression: 'zstd' });
const ram = await source.qemu.ram();
const counter = await source.qemu.counter();
const { machine } = parked;

t.test('parked into a name that ends with .zst it is packed, and nothing else is there', async (t) => {
  const { fileBytes, packedBytes = 0 } = parked;
  t.equal(fs.statSync(file).size, packedBytes);
  t.ok(packedBytes < fileBytes);
  t.same(
    fs.readdirSync(folder).filter((name) => name.startsWith('vm.mig')),
    ['vm.mig.zst'],
  );
});

for (const [name, args] of [
  ['resume', []],
  ['resume --direct-io', ['--direct-io']],
  ['resume --instant', ['--instant']],
  ['resume --instant --direct-io', ['--instant', '--direct-io']],
] as const) {
  t.test(`${name}: the guest goes on, and all its RAM is equal`, async (t) => {
    const vm = await startVm(t, programs.qemu, folder, { machine, incoming: true });
    const run = new Run(t, ['resume', file, '--qmp', vm.qmp, ...args, '--paused', '--json']);
    const { code, stderr } = await ended(run, name);
    t.equal(code, 0, stderr);
    t.same(differingPages(await vm.qemu.ram(), ram), []);
    await vm.qemu.execute('cont');
    await vm.qemu.waitForSerial(/\.{2}/);
    t.ok((await vm.qemu.counter()) > counter, 'it counts on');
    await vm.qemu.kill();
  });
}

t.test('what zstd makes of it QEMU loads itself', async (t) => {
  const plain = path.join(folder, 'plain.mig');
  const zstd = spawnSync('zstd', ['-dq', file, '-o', plain], { timeout: 60_000 });
  if (zstd.error !== undefined) {
    const run = new Run(t, ['unpack', file, '--out', plain]);
    t.equal((await ended(run, 'unpack')).code, 0);
  } else t.equal(zstd.status, 0, String(zstd.stderr));
  const vm = await startVm(t, programs.qemu, folder, { machine, incoming: true });
  await vm.qemu.setCapabilities({ 'mapped-ram': true });
  await vm.qemu.execute('migrate-incoming', { uri: `file:${plain}` });
  await vm.qemu.migrationEnd();
  t.same(differingPages(await vm.qemu.ram(), ram), []);
  await vm.qemu.kill();
});

t.test('a file that is damaged says so, and the QEMU that waited is told', async (t) => {
  const bytes = fs.readFileSync(file);
  bytes[bytes.length >> 1] ^= 1;
  const damaged = path.join(folder, 'damaged.zst');
  fs.writeFileSync(damaged, bytes);
  const vm = await startVm(t, programs.qemu, folder, { machine, incoming: true });
  const run = new Run(t, ['resume', damaged, '--qmp', vm.qmp, '--json']);
  const { code, stderr } = await ended(run, 'resume of a damaged file');
  t.equal(code, 1);
  t.match(stderr, /packed file: frame \d+ at byte/);
  await vm.qemu.kill();
});
