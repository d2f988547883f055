/** `multifd stress qemu` with a real QEMU, as its destination and as its source. */
import path from 'node:path';
import t from 'tap';
import { parkVm, type AddressText } from '../../src/index.js';
import { Run, type Line } from '../cli/cli.js';
import { counts, ended, settingsOf, startVm } from './park-command.js';
import { requirePrograms } from './programs.js';
import { workFolder } from './qemu.js';

const programs = requirePrograms();
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

const enough = (runs: Line[]): boolean =>
  runs.filter(({ struck }) => struck === true).length >= 4 && runs.some(({ kind }) => kind === 'none');

t.test('a destination that is started anew for each run loads what nobody has touched', async (t) => {
  const file = path.join(folder, 'vm.mig');
  const source = await startVm(t, programs.qemu, folder);
  const { machine, blocks } = await parkVm({ qmp: source.qmp as AddressText, out: file, then: 'quit' });
  const listens = path.join(folder, 'in.sock');
  const { command, firmware } = programs.qemu;
  const bytes = blocks.find(({ name }) => name === 'pc.ram')?.size ?? 0;
  const start = [
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
