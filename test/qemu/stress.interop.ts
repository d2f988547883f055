/** `multifd stress qemu` with a real QEMU 10.0, as its source and as its destination: each fault strikes, and what QEMU does is told. */
import path from 'node:path';
import t, { type Test } from 'tap';
import { parkVm } from '../../src/index.js';
import { qemuPlan, type QemuFaultKind } from '../../src/stress/qemu-plan.js';
import { MEMORY_BYTES } from '../../src/cli/demo/qemu/boot-sector.js';
import { Run, run, tempRoot, gone, type Line } from '../cli/cli.js';
import { settingsOf, startVm } from './park-command.js';
import { requirePrograms } from './programs.js';
import { workFolder } from './qemu.js';

const PROGRAM = requirePrograms().qemu;
const CHANNELS = 2;
const SEED = 1;
const LIMIT = ['--limit', '4'];

/** The first that strikes a channel in the middle of one of its first packets. */
function runOf(kind: QemuFaultKind, seed = SEED): string[] {
  for (let number = 0; ; number++) {
    const { channel, packet, place, byte } = qemuPlan(seed, number, CHANNELS, kind);
    if (channel === 'main' || packet > 5 || place < 0.5 || byte > 2 ** 20) continue;
    return ['--seed', `${seed}`, '--run', `${number}`, '--fault', kind];
  }
}

function runLine(lines: readonly Line[]): Line {
  return lines.find((line) => line.type === 'run') as Line;
}

async function stressed(t: Test, env: NodeJS.ProcessEnv, args: string[]): Promise<Line> {
  const { code, lines, stderr } = await run(t, ['stress', 'qemu', ...args, ...LIMIT, '--json'], { env });
  t.equal(code, 0, stderr);
  const line = runLine(lines);
  t.same(line.wrong, []);
  return line;
}

t.test(
  'a QEMU as source: what it says of each fault; its guest runs on, with the settings that it had',
  async (t) => {
    const vm = await startVm(t, PROGRAM, workFolder(t));
    const { env, left } = tempRoot(t);
    const before = await settingsOf(vm);
    const args = ['--qmp', vm.qmp];
    for (const [kind, verdict] of [
      ['none', /^failed as told$/],
      ['delay', /^failed as told$/],
      ['hold-channel', /^failed as told$/],
      ['cut-packet', /^failed$/],
      ['cut-byte', /^failed$/],
      ['stall', /^hung/],
    ] as const) {
      const line = await stressed(t, env, [...args, ...runOf(kind)]);
      t.equal(line.struck, kind !== 'none', `${kind} strikes`);
      t.match(line.verdict, verdict, kind);
      t.equal(await vm.qemu.status(), 'running', kind);
      t.equal(await settingsOf(vm), before, kind);
    }
    t.same(left(), []);
  },
);

t.test('Ctrl-C: the migration is cancelled, the guest runs on, and the settings are back', async (t) => {
  const vm = await startVm(t, PROGRAM, workFolder(t));
  const { env, left } = tempRoot(t);
  const before = await settingsOf(vm);
  const command = new Run(t, ['stress', 'qemu', '--qmp', vm.qmp, '--fault', 'none', '--json'], { env });
  await command.line((line) => line.type === 'run');
  command.child.kill('SIGINT');
  const { code } = await command.ended;
  t.equal(code, 130);
  t.match(command.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
  t.equal(await vm.qemu.status(), 'running');
  t.equal(await settingsOf(vm), before);
  t.same(left(), []);
});

t.test(
  'a QEMU as destination, started anew for each run: loaded, loaded wrong, refused or hung',
  async (t) => {
    const folder = workFolder(t);
    const vm = await startVm(t, PROGRAM, folder);
    const file = path.join(folder, 'vm.mig');
    await parkVm({ qmp: vm.qmp as `unix:${string}`, out: file, then: 'quit' });
    const { env, left } = tempRoot(t);
    const incoming = `unix:${path.join(folder, 'in.sock')}`;
    const qemu = [
      PROGRAM.command,
      ...PROGRAM.firmware,
      ...[
        '-nodefaults',
        '-display',
        'none',
        '-accel',
        'tcg',
        '-machine',
        'pc',
        '-m',
        `${MEMORY_BYTES / 2 ** 20}M`,
      ],
      ...['-serial', 'null', '-boot', 'a', '-S'],
      ...['-drive', `if=floppy,format=raw,readonly=on,file=${path.join(folder, 'boot.img')}`],
      ...['-global', 'migration.x-multifd=on', '-incoming', incoming],
    ];
    const pidFile = path.join(folder, 'pid');
    const start = `echo $$ > ${pidFile}; exec ${qemu.map((word) => `'${word}'`).join(' ')}`;
    for (const [kind, verdict] of [
      ['none', /^loaded$/],
      ['delay', /^loaded$/],
      ['hold-channel', /^loaded$/],
      ['duplicate', /^loaded$/],
      ['flip', /^loaded wrong RAM$/],
      ['drop', /^loaded wrong RAM$/],
      ['cut-packet', /^(refused|hung)$/],
      ['stall', /^hung$/],
    ] as const) {
      const args = ['--incoming', incoming, '--file', file, '--start', start];
      const line = await stressed(t, env, [...args, ...runOf(kind)]);
      t.equal(line.struck, kind !== 'none', `${kind} strikes`);
      t.match(line.verdict, verdict, `${kind}: ${JSON.stringify(line)}`);
      await gone(Number((await import('node:fs')).readFileSync(pidFile, 'utf8')));
    }
    t.same(left(), []);
  },
);
