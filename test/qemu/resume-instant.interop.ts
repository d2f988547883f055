/** `multifd resume --instant` with a real QEMU, which is told everything by its monitor; broken off, and gone on with. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { parkVm, resumeVm, type AddressText } from '../../src/index.js';
import { Run, type Line } from '../cli/cli.js';
import { ended, settingsOf, startVm, type Vm } from './park-command.js';
import { requirePrograms } from './programs.js';
import { workFolder } from './qemu.js';

const programs = requirePrograms();
const folder = workFolder(t);
const file = path.join(folder, 'vm.mig');
const source = await startVm(t, programs.qemu, folder);
const { machine } = await parkVm({ qmp: source.qmp as AddressText, out: file });
const ram = await source.qemu.ram();
const counter = await source.qemu.counter();
/** The guest is at its destination, which holds it (-S). */
const isUnderWay = ({ type, state }: Line): boolean => type === 'progress' && state === 'running';

/** Objects of ours in QEMU. */
async function marksOf({ qemu }: Vm): Promise<number> {
  const objects = (await qemu.execute('qom-list', { path: '/objects' })) as { name: string }[];
  return objects.filter(({ name }) => name.startsWith('multifd-')).length;
}

t.test('the guest goes on, all its RAM is equal, and the settings are as they were', async (t) => {
  const vm = await startVm(t, programs.qemu, folder, { machine, incoming: true });
  await vm.qemu.setParameters({ 'multifd-channels': 7 });
  await vm.qemu.setCapabilities({ multifd: true });
  const settings = await settingsOf(vm);
  const run = new Run(t, ['resume', file, '--qmp', vm.qmp, '--instant', '--json']);
  const { code, stderr } = await ended(run, 'resume --instant');
  t.equal(code, 0, stderr);
  t.match(run.result, { ok: true, mode: 'postcopy', state: 'completed', status: 'paused', problem: null });
  t.same(run.result?.switchedOff, ['multifd']);
  t.equal(await settingsOf(vm), settings);
  t.same(differingPages(await vm.qemu.ram(), ram), []);
  await vm.qemu.execute('cont');
  await vm.qemu.waitForSerial(/\.{2}/);
  t.ok((await vm.qemu.counter()) > counter, 'it counts on');
  await vm.qemu.kill();
});

t.test('a guest that was paused when it was parked is not started, unless --cont says so', async (t) => {
  const parked = path.join(folder, 'paused.mig');
  const other = await startVm(t, programs.qemu, folder);
  await other.qemu.execute('stop');
  await parkVm({ qmp: other.qmp as AddressText, out: parked, then: 'quit' });
  for (const [more, status] of [
    [[], 'paused'],
    [['--cont'], 'running'],
  ] as const) {
    // Without -S.
    const vm = await startVm(t, programs.qemu, folder, {
      machine,
      extra: ['-incoming', 'defer'],
      waits: true,
    });
    const run = new Run(t, ['resume', parked, '--qmp', vm.qmp, '--instant', '--json', ...more]);
    const { code, stderr } = await ended(run, 'resume --instant');
    t.equal(code, 0, stderr);
    t.match(run.result, { ok: true, state: 'completed', status });
    t.equal(
      run.lines.some(({ type }) => type === 'running'),
      status === 'running',
      'it is said to run only if it does',
    );
    t.equal(await vm.qemu.status(), status);
    await vm.qemu.kill();
  }
});

t.test('Ctrl-C while the guest runs says how to go on, and --recover does', async (t) => {
  const vm = await startVm(t, programs.qemu, folder, { machine, incoming: true });
  const args = ['resume', file, '--qmp', vm.qmp, '--instant', '--json'];
  const broken = new Run(t, [...args, '--max-bandwidth', '2M']);
  await broken.line(isUnderWay);
  broken.child.kill('SIGINT');
  const first = await ended(broken, 'Ctrl-C');
  t.equal(first.code, 130);
  t.match(first.stderr, /the same command with --recover/);
  const parked = path.join(folder, 'paused.mig');
  const other = new Run(t, ['resume', parked, ...args.slice(2), '--recover']);
  t.equal((await ended(other, 'another file')).code, 1);
  t.match(other.result?.error, { code: 'ERR_MULTIFD_OPTION', message: /another parking's/ });
  t.equal(await marksOf(vm), 1);
  const again = new Run(t, [...args, '--recover']);
  const second = await ended(again, '--recover');
  t.equal(second.code, 0, second.stderr);
  t.match(again.result, { ok: true, state: 'completed', status: 'paused' });
  t.equal(await marksOf(vm), 0, 'nothing is left in QEMU');
  t.same(differingPages(await vm.qemu.ram(), ram), []);
  await vm.qemu.kill();
});

t.test(
  'a resume that is killed leaves a guest that --recover goes on with, and then once more',
  async (t) => {
    const vm = await startVm(t, programs.qemu, folder, { machine, incoming: true });
    const args = ['resume', file, '--qmp', vm.qmp, '--instant', '--json'];
    for (const more of [[], ['--recover']]) {
      const broken = new Run(t, [...args, ...more, '--max-bandwidth', '2M']);
      await broken.line(isUnderWay);
      broken.child.kill('SIGKILL');
      await ended(broken, 'SIGKILL');
    }
    const last = new Run(t, [...args, '--recover']);
    const { code, stderr } = await ended(last, '--recover');
    t.equal(code, 0, stderr);
    t.match(last.result, { ok: true, state: 'completed', status: 'paused' });
    t.same(differingPages(await vm.qemu.ram(), ram), []);
    await vm.qemu.kill();
  },
);

t.test('a QEMU that may not use userfaultfd is told in its own words, and is as it was', async (t) => {
  const allowed = fs.readFileSync('/proc/sys/vm/unprivileged_userfaultfd', 'utf8').trim();
  if (process.getuid?.() !== 0 || allowed !== '0') {
    t.comment('skipped: only root can start one that has no leave, where vm.unprivileged_userfaultfd is 0');
    return;
  }
  // It gives up root when it has begun, and has to reach what is shared with it.
  const vm = await startVm(t, programs.qemu, folder, {
    machine,
    incoming: true,
    extra: ['-run-with', 'user=nobody'],
  });
  const settings = await settingsOf(vm);
  const run = new Run(t, ['resume', file, '--qmp', vm.qmp, '--instant', '--json']);
  const { code } = await ended(run, 'resume --instant');
  t.equal(code, 1);
  t.match(run.result?.error, { code: 'ERR_MULTIFD_QMP', message: /QEMU.*[Pp]ostcopy is not supported/s });
  t.equal(await settingsOf(vm), settings);
  await vm.qemu.kill();
});

t.test('what cannot be is refused before anything is sent', async (t) => {
  const running = resumeVm({ mode: 'postcopy', file, qmp: source.qmp as AddressText });
  await t.rejects(running, { code: 'ERR_MULTIFD_QMP', message: /expected inmigrate/ });
  const paused = resumeVm({ mode: 'postcopy', file, qmp: source.qmp as AddressText, recover: true });
  await t.rejects(paused, { code: 'ERR_MULTIFD_QMP', message: /expected postcopy-paused/ });
  const vm = await startVm(t, programs.qemu, folder, { incoming: true, machine: 'q35' });
  const other = resumeVm({ mode: 'postcopy', file, qmp: vm.qmp as AddressText });
  await t.rejects(other, { code: 'ERR_MULTIFD_QMP', message: /the file does not fit this QEMU/ });
  await vm.qemu.kill();
  await source.qemu.kill();
});
