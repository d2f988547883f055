/** `multifd stress qemu` with a real QEMU, as its destination and as its source. */
import path from 'node:path';
import t from 'tap';
import { parkVm, receiveMigration, sendMigration, type Address, type AddressText } from '../../src/index.js';
import { readMappedRam } from '../../src/mapped-ram/read.js';
import { stressDestination, type QemuDestinationOptions } from '../../src/stress/qemu-destination.js';
import { qemuPlan, type QemuPlan } from '../../src/stress/qemu-plan.js';
import { PassOn, type PassedConnection } from '../../src/transport/pass-on.js';
import { Run, type Line } from '../cli/cli.js';
import { counts, ended, settingsOf, startVm } from './park-command.js';
import { requirePrograms } from './programs.js';
import { workFolder } from './qemu.js';

const programs = requirePrograms();
const never = new AbortController().signal;
const folder = workFolder(t);
/** As many as it takes until each of these has struck; a seed has all of them early. */
const SEED = 5;
const MOST_RUNS = 60;

/** Runs until `isEnough`, then Ctrl-C. @returns the run lines, and the result */
async function stress(
  run: Run,
  isEnough: (runs: Line[]) => boolean,
): Promise<{ runs: Line[]; code: number | null }> {
  const runs: Line[] = [];
  for (let i = 0; !isEnough(runs) && i < MOST_RUNS; i++)
    runs.push(await run.line((line) => line.type === 'run' && line.run === i));
  run.child.kill('SIGINT');
  const { code } = await ended(run, 'stress qemu');
  return { runs, code };
}

/** Of the main stream that the file is sent as. */
async function mainBytes(file: string): Promise<number> {
  const out = path.join(folder, 'again.mig');
  const address = { path: path.join(folder, 'again.sock') };
  let receiving: Promise<unknown> | undefined;
  const far = await new Promise<Address>((resolve, reject) => {
    receiving = receiveMigration({ address, channels: 2, out, onListening: resolve });
    receiving.catch(reject);
  });
  const near = { path: path.join(folder, 'near.sock') };
  const connection = (one: PassedConnection) => one.connect();
  const passOn = await PassOn.listen(near, far, { connection });
  try {
    await Promise.all([sendMigration({ file, to: near, channels: 2 }), receiving]);
    return passOn.connections[0].towards.bytes;
  } finally {
    await passOn.close();
  }
}

const enough = (runs: Line[]): boolean =>
  runs.filter(({ struck }) => struck === true).length >= 4 && runs.some(({ kind }) => kind === 'none');

const listens = path.join(folder, 'in.sock');
const file = path.join(folder, 'vm.mig');
let start: string;

/** A parked guest, and the command for a QEMU that waits for it. */
t.before(async () => {
  const source = await startVm(t, programs.qemu, folder);
  const { machine, blocks } = await parkVm({ qmp: source.qmp as AddressText, out: file, then: 'quit' });
  const { command, firmware } = programs.qemu;
  const bytes = blocks.find(({ name }) => name === 'pc.ram')?.size ?? 0;
  start = [
    ...[
      'exec',
      command,
      ...firmware,
      '-nodefaults',
      '-display',
      'none',
      '-accel',
      'tcg',
      '-machine',
      machine,
    ],
    ...['-m', `${bytes / 2 ** 20}M`, '-serial', 'null', '-boot', 'a'],
    ...['-drive', `if=floppy,format=raw,readonly=on,file=${path.join(folder, 'boot.img')}`],
    ...['-global', 'migration.x-multifd=on', '-incoming', `unix:${listens}`],
  ].join(' ');
});

t.test('a destination that is started anew for each run loads what nobody has touched', async (t) => {
  const args = ['--incoming', `unix:${listens}`, '--file', file, '--start', start];
  const run = new Run(t, ['stress', 'qemu', ...args, '--seed', `${SEED}`, '--limit', '5', '--json']);
  const { runs, code } = await stress(run, enough);
  t.equal(code, 130);
  t.same(
    runs.flatMap(({ wrong }) => wrong),
    [],
    'this side did as it should',
  );
  for (const { kind, verdict, words } of runs) if (kind === 'none') t.equal(verdict, 'loaded', String(words));
  t.ok(
    runs.some(({ verdict }) => verdict !== 'loaded'),
    'and what was broken has come to something else',
  );
});

t.test('one whose stream is cut behind its last device has loaded, and does not hang', async (t) => {
  const qmp = path.join(folder, 'in.qmp');
  const options: QemuDestinationOptions = {
    incoming: { path: listens },
    file,
    channels: 2,
    compression: 'none',
    start: `${start} -qmp unix:${qmp},server=on,wait=off`,
    limitMs: 3000,
  };
  const plan: QemuPlan = { ...qemuPlan(1, 1, 2, 'none') };
  const whole = await stressDestination(plan, options, never);
  t.equal(whole.verdict, 'loaded', whole.ours);
  // The main stream has the file's tail at its end, and that the description.
  const { tailBytes = 0 } = await readMappedRam(file);
  t.ok(tailBytes > 0);
  const total = await mainBytes(file);
  const cut = (byte: number) =>
    stressDestination({ ...plan, kind: 'cut-byte', channel: 'main', byte }, options, never);
  const behind = await cut(total - 10);
  t.ok(behind.struck, behind.what);
  t.match(behind.ours, /^ERR_MULTIFD_/);
  t.equal(behind.verdict, 'loaded', behind.words);
  const before = await cut(total - tailBytes + 10);
  t.ok(before.struck, before.what);
  t.equal(before.verdict, 'refused', before.words);
});

t.test(
  'a source is told that it failed, and its guest runs on with its settings, whatever was broken',
  async (t) => {
    const vm = await startVm(t, programs.qemu, folder);
    const settings = await settingsOf(vm);
    const run = new Run(t, [
      'stress',
      'qemu',
      '--qmp',
      vm.qmp,
      '--seed',
      `${SEED}`,
      '--limit',
      '5',
      '--json',
    ]);
    const { runs, code } = await stress(run, enough);
    t.equal(code, 130);
    t.same(
      runs.flatMap(({ wrong }) => wrong),
      [],
      'this side did as it should',
    );
    for (const { kind, verdict } of runs.filter(({ kind }) => kind === 'none'))
      t.equal(verdict, 'failed as told', String(kind));
    t.equal(await settingsOf(vm), settings);
    await counts(t, vm.qemu, 'the guest runs');
    await vm.qemu.kill();
  },
);
